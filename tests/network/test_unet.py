"""The network: sizes, reach, initial weights, probabilities."""

import math
from itertools import islice

import pytest
import torch

from unet_ray.config.network import layers, network_config
from unet_ray.geometry.receptive_field import (
    halo_px,
    input_interval,
    legal_output_sides,
    margin_px,
    output_side,
)
from unet_ray.network.dropout import dropout_masks
from unet_ray.network.unet import (
    UNet,
    add_descriptors,
    by_member,
    class_probability,
    expected_shapes,
    fold_batch_norm,
    membrane_probability,
    network_from_state,
    network_input,
    new_network,
    without_descriptors,
)

SMALL = {
    "paper": network_config("paper", base_channels=2, depth=3),
    "keras": network_config("keras", base_channels=2, depth=3),
    "default": network_config("default", base_channels=2, depth=3),
    "nearest-norm": network_config("default", base_channels=2, depth=4, up="nearest"),
    "flat": network_config("paper", base_channels=2, depth=1),
    "valid-head": network_config("paper", base_channels=2, depth=2, head_channels=3),
}


def shape_on_meta(config, side):
    with torch.device("meta"):
        return tuple(UNet(config).eval()(torch.empty(1, config.in_channels, side, side)).shape)


# Golden: 31,030,658 is the count of the paper's released architecture with 2 classes and all biases,
# 31,031,685 what Keras' model.summary() says for the notebook.
@pytest.mark.parametrize(("preset", "count"), [("paper", 31_030_658), ("keras", 31_031_685)])
def test_parameter_counts(preset, count):
    shapes = expected_shapes(network_config(preset))
    assert sum(math.prod(shape) for shape in shapes.values()) == count


def test_sources_output_shapes():
    assert shape_on_meta(network_config("paper"), 572) == (1, 2, 388, 388)
    assert shape_on_meta(network_config("keras"), 512) == (1, 1, 512, 512)


@pytest.mark.parametrize("name", SMALL)
def test_output_side_is_what_geometry_says(name):
    config = SMALL[name]
    listed = layers(config)
    sides = legal_output_sides(listed)
    for _ in range(6):
        window = next(sides) + 2 * margin_px(listed)
        assert shape_on_meta(config, window)[2:] == (output_side(listed, window),) * 2


@pytest.mark.parametrize(("sides", "said"), [((18, 16), r"\(9, 8\)"), ((16, 18), r"\(8, 9\)")])
def test_odd_side_at_a_pooling_is_refused(sides, said):
    with torch.device("meta"), pytest.raises(ValueError, match=f"pooling 2 meets an odd side: {said}"):
        UNet(SMALL["default"]).eval()(torch.empty(1, 1, *sides))


@pytest.mark.parametrize("name", SMALL)
def test_gradient_reaches_exactly_as_far_as_geometry_says(name):
    """With positive weights no path cancels: the gradient's support is the receptive field."""
    config = SMALL[name]
    listed = layers(config)
    model = new_network(config, seed=1).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.abs_()
    sides = legal_output_sides(listed, at_least=2 * halo_px(listed) + 16)
    side = next(sides)
    window = side + 2 * margin_px(listed)
    # Random noise makes the maximum of a pooling window fall on each of its pixels for some draw.
    generator = torch.Generator().manual_seed(2)
    for position in (side // 2, side // 2 + 1, side // 2 + 3):
        touched = torch.zeros(window, dtype=torch.bool)
        for _ in range(40):
            images = torch.rand(1, 1, window, window, dtype=torch.float64, generator=generator)
            images.requires_grad_()
            model(images)[0, :, position, position].sum().backward()
            touched |= (images.grad[0, 0] != 0).any(dim=1)
        first, last = input_interval(listed, window, position, position + 1)
        found = touched.nonzero().flatten()
        first, last = max(first, 0), min(last, window)
        assert first <= int(found.min()) <= first + 1
        assert last - 2 <= int(found.max()) < last


@pytest.mark.parametrize("name", SMALL)
def test_the_two_axes_are_alike(name):
    """With transposed kernels the network makes of a transposed image its transposed output."""
    config = SMALL[name]
    listed = layers(config)
    model = new_network(config, seed=1).double().eval()
    turned = {key: value.mT if value.ndim == 4 else value for key, value in model.state_dict().items()}
    height, _, width = (side + 2 * margin_px(listed) for side in islice(legal_output_sides(listed, 8), 3))
    images = torch.rand(1, 1, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        found = network_from_state(config, turned)(images.mT)
        assert float((found - model(images).mT).abs().max()) < 1e-12


@pytest.mark.parametrize("name", SMALL)
def test_change_outside_the_halo_does_not_show(name):
    config = SMALL[name]
    listed = layers(config)
    halo, margin = halo_px(listed), margin_px(listed)
    tile = 16
    window = tile + 2 * halo
    model = new_network(config, seed=3).double().eval()
    generator = torch.Generator().manual_seed(4)
    large = torch.rand(1, 1, window + 32, window + 32, dtype=torch.float64, generator=generator)
    small = large[..., 16 : 16 + window, 16 : 16 + window]
    inner = slice(halo - margin, halo - margin + tile)
    outer = slice(halo - margin + 16, halo - margin + 16 + tile)
    with torch.no_grad():
        difference = model(small)[..., inner, inner] - model(large)[..., outer, outer]
    assert float(difference.abs().max()) < 1e-13


def test_initial_weights_are_he_and_a_function_of_the_seed():
    config = network_config("keras", base_channels=16, depth=3)
    before = torch.get_rng_state()
    one, same, other = (new_network(config, seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(one[name], same[name]) for name in one)
    kernel = one["down.2.2.weight"]  # 64 x 64 x 3 x 3
    assert not torch.equal(kernel, other["down.2.2.weight"])
    assert float(kernel.std()) == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.02)
    assert all(not bool(one[name].any()) for name in one if name.endswith("bias"))
    paper = new_network(network_config("paper", base_channels=16, depth=3), 1)
    assert float(paper.up[0].weight.detach().std()) == pytest.approx((2 / 64) ** 0.5, rel=0.04)


def test_keras_drops_at_both_deepest_levels_and_in_the_skip():
    config = network_config("keras", base_channels=2, depth=3)
    model = new_network(config, seed=1).train()
    assert [type(module).__name__ for module in model.dropout] == ["Identity", "Dropout", "Dropout"]
    seen = []
    model.merge[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][:, :4]))
    model.down[2].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with dropout_masks(model, seed=1, step=0, samples=torch.tensor([0])):
        model(torch.rand(1, 1, 64, 64))
    below, skip = seen
    # Skip first in the concatenation, and the same dropped values as the way down.
    assert torch.equal(below, torch.nn.functional.max_pool2d(skip, 2))


def test_even_convolution_reads_the_pixel_after():
    model = new_network(network_config("keras", base_channels=1, depth=2), seed=1).up[0]
    with torch.no_grad():
        model.convolution.weight.zero_()[..., 1, 1] = 1.0
        given = torch.arange(1.0, 5.0).reshape(1, 1, 2, 2).expand(1, 2, 2, 2)
        shifted = model(given)[0, 0] / 2
    assert shifted.tolist() == [[1, 2, 2, 0], [3, 4, 4, 0], [3, 4, 4, 0], [0, 0, 0, 0]]


def test_all_but_the_last_layer_end_in_relu():
    model = new_network(SMALL["keras"], seed=1).eval()
    least = []
    for module in (*model.down, *model.up, *model.merge, model.head):
        module.register_forward_hook(lambda _, __, found: least.append(float(found.min())))
    with torch.no_grad():
        model(torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(2)))
    assert len(least) == 8
    assert min(least) >= 0


@pytest.mark.parametrize("name", ["paper", "keras", "default"])
def test_channels_last_and_bfloat16(name):
    config = SMALL[name]
    model = new_network(config, seed=5).eval()
    images = torch.rand(2, 1, 76, 76, generator=torch.Generator().manual_seed(6))
    with torch.no_grad():
        plain = model(images)
        last = model.to(memory_format=torch.channels_last)(images.to(memory_format=torch.channels_last))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            low = model(images)
    assert float((plain - last).abs().max()) < 1e-5
    assert low.dtype == torch.bfloat16
    assert membrane_probability(low).dtype == class_probability(low).dtype == torch.float32
    assert float((membrane_probability(low) - membrane_probability(plain)).abs().max()) < 0.05


def test_probabilities():
    logits = torch.randn(2, 2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    both = membrane_probability(logits)
    assert torch.allclose(both, membrane_probability(logits[:, 1:] - logits[:, :1]))
    assert torch.allclose(both, class_probability(logits)[:, 1])
    with pytest.raises(ValueError, match="no one membrane"):
        membrane_probability(torch.zeros(1, 3, 2, 2))


@pytest.mark.parametrize("up", ["transposed", "nearest"])
def test_folded_batch_norm_is_the_same_function(up):
    config = network_config("default", base_channels=3, depth=3, up=up, head_channels=2)
    model = new_network(config, seed=9).double()
    generator = torch.Generator().manual_seed(10)
    images = torch.rand(2, 1, 16, 16, dtype=torch.float64, generator=generator)
    for tensor in model.state_dict().values():
        if tensor.ndim == 1:
            tensor.copy_(0.5 + torch.rand(tensor.shape, dtype=torch.float64, generator=generator))
    folded = fold_batch_norm(model.eval())
    assert not folded.config.batch_norm
    assert float((folded(images) - model(images)).detach().abs().max()) < 1e-12
    assert fold_batch_norm(folded) is folded


def test_state_makes_the_same_network():
    model = new_network(SMALL["default"], seed=8).eval()
    again = network_from_state(model.config, model.state_dict())
    images = network_input(torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16))
    assert torch.equal(model(images), again(images))
    assert not again.training


@pytest.mark.parametrize("preset", ["paper", "keras"])
def test_full_presets_run(preset):
    model = new_network(network_config(preset), seed=1).eval()
    side = {"paper": 188, "keras": 16}[preset]
    with torch.no_grad():
        logits = model(torch.zeros(1, 1, side, side))
    assert logits.shape[2:] == (output_side(layers(model.config), side),) * 2


@pytest.mark.parametrize("members", [1, 2])
@pytest.mark.parametrize("preset", ["default", "paper"])
def test_descriptors_come_behind_logits_that_stay_as_they_are(preset, members):
    config = network_config(preset, base_channels=2, depth=2, members=members)
    side = 8 + 2 * margin_px(layers(config))
    images = torch.rand(2, 1, side, side, generator=torch.Generator().manual_seed(0))

    def logits(model):
        model.train()
        with dropout_masks(model, seed=0, step=0, samples=torch.arange(2)):
            return by_member(model(images))

    model = new_network(config, seed=1)
    before = logits(model)
    assert without_descriptors(model) is model
    add_descriptors(model, seed=2)
    after = logits(model)
    assert after.shape == (members, 2, config.classes + 6, 8, 8)
    torch.testing.assert_close(after[:, :, : config.classes], before, rtol=1e-6, atol=1e-6)
    telling = after[:, :, config.classes :]
    assert telling.std() > 0.1
    # Of their own seed; each member's its own.
    other = new_network(config, seed=1)
    add_descriptors(other, seed=2)
    assert torch.equal(logits(other), after)
    assert members == 1 or not torch.equal(
        model.members[0].out.weight[config.classes :], model.members[1].out.weight[config.classes :]
    )
    plain = without_descriptors(model)
    expected = new_network(config, seed=1)
    assert plain.config == config
    assert plain.state_dict().keys() == expected.state_dict().keys()
    for name, tensor in expected.named_parameters():
        assert torch.equal(plain.state_dict()[name], tensor), name
