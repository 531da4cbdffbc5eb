"""Dropout as a hash: its reference, its statistics, and what it does not depend on."""

import copy
import itertools

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from unet_ray.config.network import network_config
from unet_ray.network.dropout import Dropout, _dropped, dropout_masks
from unet_ray.network.unet import network_input, new_network

SHAPE = (8, 32, 32)


def split_mix(start, count):
    """SplitMix64 as its authors print it, on whole numbers of Python."""
    wrap = 2**64 - 1
    for _ in range(count):
        start = (start + 0x9E3779B97F4A7C15) & wrap
        word = start
        word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & wrap
        word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & wrap
        yield word ^ (word >> 31)


def dropped(probability=0.5, seed=1, step=0, samples=(0,), layer=0):
    """Which of ones at SHAPE become zero, one row per sample."""
    drop = Dropout(probability, layer)
    with dropout_masks(drop, seed=seed, step=step, samples=torch.tensor(samples)):
        return (drop(torch.ones(len(samples), *SHAPE)) == 0).flatten(1)


def test_masks_are_the_lanes_of_split_mix():
    # 6457827717110365317 is the first word of the published stream of seed 1234567.
    words = list(split_mix(1234567, 5))
    assert words[0] == 6457827717110365317
    lanes = [(word >> 16 * lane) % 65536 for lane in (3, 2, 1, 0) for word in words]
    for threshold in (1, 13107, 32768, 65535):
        expected = [(lane ^ 0x8000) < threshold for lane in lanes][:18]
        assert _dropped(torch.tensor([1234567]), 18, threshold)[0].tolist() == expected


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
def test_the_share_is_the_probability_and_the_mean_stays(probability):
    drop = Dropout(probability, 0)
    with dropout_masks(drop, seed=3, step=5, samples=torch.arange(64)):
        found = drop(torch.full((64, *SHAPE), 2.0))
    share = float((found == 0).double().mean())
    sd = (probability * (1 - probability) / found.numel()) ** 0.5
    assert abs(share - probability) < 4 * sd + 2**-16
    kept = found[found != 0]
    assert torch.all(kept == kept[0])
    assert float(kept[0]) == pytest.approx(2 / (1 - probability), abs=2e-3)
    # Each sample and each channel by itself, too: the hash has no weak corner.
    spread = (found == 0).double().mean((2, 3)) - probability
    assert float(spread.abs().max()) < 6 * (probability * (1 - probability) / (SHAPE[1] * SHAPE[2])) ** 0.5


@pytest.mark.parametrize("probability", [0.0, 0.1, 0.25, 1 / 3, 0.9999999, 1.0])
def test_the_share_is_the_nearest_step_and_never_all(probability):
    share = Dropout(probability, 0).dropped_of_65536 / 65536
    assert abs(share - min(probability, 1 - 2**-16)) <= 2**-17


def test_seeds_steps_samples_layers_and_neighbours_are_independent():
    base = {"seed": 1, "step": 0, "samples": (0,), "layer": 0}
    others = [{"seed": 2}, {"step": 1}, {"samples": (1,)}, {"layer": 1}, {"seed": 2**70}, {"step": 1, "samples": (1,)}]
    rows = [dropped(**(base | other))[0].double() - 0.5 for other in [{}, *others]]
    rows += [rows[0].roll(shift) for shift in (1, 2, 3, 4, 32, 1024)]
    for one, two in itertools.combinations(rows, 2):
        # The mean of 8192 products of independent signs of 1/2.
        assert abs(float((one * two).mean())) < 5 * 0.25 / 8192**0.5


def test_a_mask_belongs_to_its_sample_wherever_that_is():
    whole = dropped(samples=(0, 1, 2, 3))
    assert torch.equal(dropped(samples=(3, 1)), whole[[3, 1]])
    assert torch.equal(dropped(samples=(2,)), whole[2:3])
    assert torch.equal(whole, dropped(samples=(0, 1, 2, 3)))
    assert len(dropped(samples=())) == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_memory_layout_and_dtype_do_not_matter(dtype):
    drop = Dropout(0.3, 2)
    features = 1 + torch.rand(3, 5, 7, 9, generator=torch.Generator().manual_seed(1)).to(dtype)
    with dropout_masks(drop, seed=1, step=1, samples=torch.tensor([4, 5, 6])):
        plain = drop(features)
        last = drop(features.to(memory_format=torch.channels_last))
        exact = drop(features.double())
    assert torch.equal(plain, last)
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(plain == 0, exact == 0)
    assert plain.dtype == dtype


def test_gradients_pass_where_values_pass():
    drop = Dropout(0.5, 0)
    features = torch.ones(1, 2, 8, 8, requires_grad=True)
    with dropout_masks(drop, seed=1, step=1, samples=torch.tensor([0])):
        found = drop(features)
    found.sum().backward()
    assert torch.equal(features.grad, found)


def test_untold_is_a_mistake_and_evaluation_needs_nothing():
    drop = Dropout(0.5, 0)
    features = torch.ones(2, 1, 4, 4)
    with pytest.raises(AssertionError, match="needs dropout_masks"):
        drop(features)
    with (
        pytest.raises(AssertionError, match="told of 1 samples and sees 2"),
        dropout_masks(drop, seed=1, step=1, samples=torch.tensor([0])),
    ):
        drop(features)
    with pytest.raises(AssertionError, match="needs dropout_masks"):  # not told any more
        drop(features)
    assert drop.eval()(features) is features


def test_the_layers_of_a_network_differ():
    config = network_config("keras", base_channels=2, depth=3)
    layers = [module for module in new_network(config, 1).modules() if isinstance(module, Dropout)]
    assert len({layer.layer for layer in layers}) == len(layers) == 2


def test_a_compiled_network_drops_the_same(patches):
    """In one graph, made once: the samples of the next step are a tensor like any other."""
    counter = CompileCounterWithBackend("aot_eager")
    model = new_network(network_config("keras", base_channels=1, depth=2), 1).double()
    compiled = torch.compile(copy.deepcopy(model), backend=counter)
    for step in range(3):
        images = network_input(patches(3, 10, seed=step).image).double()
        found = []
        for network in (model, compiled):
            with dropout_masks(network, seed=1, step=step, samples=torch.tensor([3, 4, 6 + step])):
                found.append(network(images))
        assert torch.allclose(*found, rtol=0, atol=1e-13)
    assert counter.frame_count == 1


def test_what_the_compiler_is_told_of_the_operation_holds():
    torch.library.opcheck(_dropped, (torch.tensor([1, 2]), 50, 32768))
