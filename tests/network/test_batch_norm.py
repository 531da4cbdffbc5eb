"""Statistics over ranks, against PyTorch's own batch normalisation of the whole batch."""

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn

from unet_ray.network.batch_norm import BatchNorm, set_reduce

CHANNELS = 5


def passed(norm, images, gradient):
    """Output, and gradients of input, weight and bias."""
    images = images.detach().requires_grad_()  # keeps the memory layout
    output = norm(images)
    output.backward(gradient)
    return output.detach(), images.grad, norm.weight.grad, norm.bias.grad


@pytest.fixture
def norm():
    made = BatchNorm(CHANNELS)
    with torch.no_grad():
        made.weight.copy_(torch.linspace(0.5, 2, CHANNELS))
        made.bias.copy_(torch.linspace(-1, 1, CHANNELS))
    return made


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5), (torch.bfloat16, 0.06)]
)
def test_one_rank_alone_is_pytorchs_own(norm, dtype, tolerance, layout):
    generator = torch.Generator().manual_seed(1)
    # Far from 0, as sums of squares lose digits there.
    images = (30 + 4 * torch.randn(3, CHANNELS, 8, 10, generator=generator)).to(dtype, memory_format=layout)
    gradient = torch.randn(3, CHANNELS, 8, 10, generator=generator).to(dtype, memory_format=layout)
    norm = norm.double() if dtype == torch.float64 else norm
    alone = copy.deepcopy(norm)
    set_reduce(norm, lambda sums: sums)
    for found, expected in zip(passed(norm, images, gradient), passed(alone, images, gradient), strict=True):
        assert found.dtype == expected.dtype
        assert found.stride() == expected.stride()
        torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * float(expected.abs().max()))
    for name, expected in alone.state_dict().items():
        torch.testing.assert_close(norm.state_dict()[name], expected, rtol=max(tolerance / 10, 1e-9), atol=0)


def test_a_neighbour_that_has_the_same_patches_changes_nothing_but_the_size(norm):
    """Twice the batch: the same mean and variance, and half the share of each value in them."""
    images, gradient = torch.randn(2, CHANNELS, 4, 4), torch.randn(2, CHANNELS, 4, 4)
    whole = copy.deepcopy(norm)
    set_reduce(norm, lambda sums: 2 * sums)
    output, of_images, of_weight, _ = passed(norm, images, gradient)
    expected = passed(whole, torch.cat((images, images)), torch.cat((gradient, gradient)))
    torch.testing.assert_close(output, expected[0][:2])
    torch.testing.assert_close(of_images, expected[1][:2])
    torch.testing.assert_close(2 * of_weight, expected[2])  # ranks add theirs up elsewhere
    torch.testing.assert_close(norm.running_var, whole.running_var)


def test_a_rank_without_patches_takes_part_in_both_sums(norm):
    sums = []
    set_reduce(norm, lambda values: sums.append(len(values)) or values)
    output = norm(torch.zeros(0, CHANNELS, 4, 4, requires_grad=True))
    output.sum().backward()
    assert sums == [2 * CHANNELS + 1, 2 * CHANNELS]
    assert norm.weight.grad.abs().max() == 0
    assert norm.num_batches_tracked == 0
    assert torch.equal(norm.running_var, torch.ones(CHANNELS))


def test_evaluation_asks_no_other_rank(norm):
    def refuse(_):
        raise AssertionError("asked")

    set_reduce(norm, refuse)
    images = torch.randn(2, CHANNELS, 4, 4)
    expected = nn.functional.batch_norm(images, norm.running_mean, norm.running_var, norm.weight, norm.bias)
    assert torch.equal(norm.eval()(images), expected)


def test_the_compiler_is_loaded_where_it_is_asked_for_alone():
    """It takes seconds, and every worker imports this module."""
    code = "import sys, unet_ray.network.unet; print('torch._dynamo' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "False\n"


def test_a_compiled_network_sums_over_ranks_all_the_same(norm):
    plain = copy.deepcopy(norm)
    images, gradient = torch.randn(2, CHANNELS, 4, 4), torch.randn(2, CHANNELS, 4, 4)
    set_reduce(plain, lambda sums: 2 * sums)
    set_reduce(norm, lambda sums: 2 * sums, compiled=True)
    compiled = torch.compile(norm, backend="eager")
    expected = passed(plain, images, gradient)
    found = images.detach().requires_grad_()
    output = compiled(found)
    output.backward(gradient)
    torch.testing.assert_close(output, expected[0])
    torch.testing.assert_close(found.grad, expected[1])
    torch.testing.assert_close(norm.running_var, plain.running_var)


def test_channels_of_one_large_value_are_not_torn_by_rounding():
    """As of a blank section: the difference of two squares must not fall below 0."""
    values = 1e6 * torch.arange(1, 1001).sqrt()
    norm = BatchNorm(1000)
    set_reduce(norm, lambda sums: sums)
    assert norm(values.reshape(1, -1, 1, 1).expand(1, -1, 7, 7).contiguous()).isfinite().all()
