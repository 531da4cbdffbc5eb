"""The forward pass that segmentation and validation share."""

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from unet_ray.config.network import layers, network_config
from unet_ray.geometry.receptive_field import halo_px, margin_px
from unet_ray.network.batch_norm import BatchNorm
from unet_ray.network.predict import (
    OutputDtype,
    Precision,
    Predictor,
    Tta,
    _as_dtype,
    fast_layout,
    hardware_precision,
)
from unet_ray.network.unet import new_network

VIEWS = {"none": (0,), "flips": (0, 2, 4, 6), "dihedral": tuple(range(8))}


@pytest.mark.parametrize(
    ("precision", "before", "inside"),
    [("float32", True, False), ("float32", False, False), ("bfloat16", True, True)],
)
def test_float32_is_never_tensorfloat32(
    precision: Precision, before: bool, inside: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", before)
    config = network_config("default", base_channels=2, depth=2)
    predictor = Predictor(config, new_network(config, 0).state_dict(), precision=precision)
    allowed: list[bool] = []
    predictor.network.register_forward_hook(lambda *_: allowed.append(torch.backends.cudnn.allow_tf32))
    predictor(np.zeros((1, 1, 32, 32), np.uint8))
    assert allowed == [inside]
    assert torch.backends.cudnn.allow_tf32 == before


@pytest.mark.parametrize(
    ("amx", "avx512", "gpu", "device", "wanted"),
    [
        (False, False, True, "cpu", "float32"),
        (True, False, False, "cpu", "bfloat16"),
        (False, True, False, "cpu", "bfloat16"),
        (True, True, False, "cuda", "float32"),
        (False, False, True, "cuda", "bfloat16"),
    ],
)
def test_bfloat16_is_for_hardware_that_has_it(
    amx: bool, avx512: bool, gpu: bool, device: str, wanted: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: gpu or including_emulation)
    assert hardware_precision(device) == wanted


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("classes", [1, 2, 3])
def test_logits_and_then_their_probability_are_a_prediction(precision: Precision, classes: int) -> None:
    config = network_config("default", base_channels=2, depth=2, classes=classes)
    predictor = Predictor(config, new_network(config, 0).state_dict(), precision=precision)
    windows = np.random.default_rng(0).integers(0, 256, (2, 1, 32, 48), dtype=np.uint8)
    logits, found = predictor.logits(windows), predictor(windows)
    assert logits.dtype == torch.float32
    assert logits.shape == (2, classes, 32, 48)
    assert np.array_equal(predictor.probability(logits), found)
    assert found.shape == ((2, 3, 32, 48) if classes == 3 else (2, 32, 48))
    # Normalisation is folded into the convolutions.
    assert not [module for module in predictor.network.modules() if isinstance(module, BatchNorm)]


def on_processor_with(capability: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)


@pytest.mark.parametrize(
    ("device", "precision", "capability", "last"),
    [
        ("cpu", "float32", "AVX2", False),
        ("cpu", "float32", "DEFAULT", False),
        ("cpu", "float32", "AVX512", True),
        ("cpu", "bfloat16", "AVX2", True),
        ("cuda", "float32", "AVX2", True),
    ],
)
def test_layout_is_the_fastest_of_the_hardware(
    device: str, precision: str, capability: str, last: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_processor_with(capability, monkeypatch)
    assert fast_layout(device, precision) == (torch.channels_last if last else torch.contiguous_format)


@pytest.mark.parametrize(("preset", "sides"), [("paper", (220, 252)), ("keras", (208, 240)), ("default", (208, 240))])
@pytest.mark.parametrize("classes", [1, 3])
def test_layout_changes_no_probability(
    preset: str, sides: tuple[int, int], classes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = network_config(preset, base_channels=4, classes=classes, in_channels=3)
    state = new_network(config, 0).state_dict()
    windows = np.random.default_rng(0).integers(0, 256, (2, 3, *sides), dtype=np.uint8)
    found = []
    for capability in ("AVX2", "AVX512"):
        on_processor_with(capability, monkeypatch)
        predictor = Predictor(config, state)
        first = next(p for p in predictor.network.parameters() if p.ndim == 4 and p.shape[1] > 1)
        assert first.is_contiguous(memory_format=torch.channels_last) == (capability == "AVX512")
        found.append(predictor(windows))
    assert float(np.abs(found[0] - found[1]).max()) < 1e-6


@pytest.mark.parametrize("tta", VIEWS)
@pytest.mark.parametrize("classes", [1, 3])
def test_views_are_the_mean_of_turned_windows_turned_back(tta: Tta, classes: int) -> None:
    config = network_config("default", base_channels=2, depth=2, classes=classes, in_channels=3)
    state = new_network(config, 0).state_dict()
    windows = np.random.default_rng(0).integers(0, 256, (2, 3, 48, 48), dtype=np.uint8)
    once, found = Predictor(config, state), []
    for turn in VIEWS[tta]:
        turned = np.rot90(windows, turn % 4, axes=(-2, -1))
        view = once(np.ascontiguousarray(turned[..., ::-1] if turn >= 4 else turned))
        found.append(np.rot90(view[..., ::-1] if turn >= 4 else view, -(turn % 4), axes=(-2, -1)))
    assert np.array_equal(Predictor(config, state, tta=tta)(windows), np.mean(found, axis=0))


@given(arrays.arrays(np.float32, st.integers(1, 40), elements=st.floats(0, 1, width=32)))
def test_values_as_they_are_stored_are_the_nearest(values: npt.NDArray[np.float32]) -> None:
    steps = np.arange(256) / 255
    nearest = np.abs(steps - values.astype(np.float64)[:, None]).argmin(axis=1)
    found = _as_dtype(torch.from_numpy(values), "uint8").numpy()
    assert found.dtype == np.uint8
    # At the middle of two steps either is as near.
    off = np.abs(steps[found] - values.astype(np.float64)) - np.abs(steps[nearest] - values.astype(np.float64))
    assert off.max() < 1e-7
    assert np.array_equal(found, np.rint(values * 255).astype(np.uint8))
    assert np.array_equal(_as_dtype(torch.from_numpy(values), "float16").numpy(), values.astype(np.float16))


@pytest.mark.parametrize("dtype", ["uint8", "float16", "float32"])
@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("tta", ["none", "flips"])
def test_what_is_cut_and_rounded_on_the_device_is_what_numpy_makes(dtype: OutputDtype, classes: int, tta: Tta) -> None:
    config = network_config("default", base_channels=2, depth=2, classes=classes)
    state = new_network(config, 0).state_dict()
    # Of whole vectors of the processor: at the end of others PyTorch computes exp otherwise.
    windows = np.random.default_rng(0).integers(0, 256, (2, 1, 48, 72), dtype=np.uint8)
    whole = Predictor(config, state, tta=tta)(windows)[..., 4:-4, 4:-4]
    found = Predictor(config, state, tta=tta, crop=4, dtype=dtype)(windows)
    assert found.dtype == dtype
    assert found.shape == (2, *([3] if classes == 3 else []), 40, 64)
    assert np.array_equal(found, np.rint(whole * 255).astype(np.uint8) if dtype == "uint8" else whole.astype(dtype))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("capability", ["AVX2", "AVX512"])  # the layout of float32 follows it
@pytest.mark.parametrize(
    ("preset", "members", "classes", "spared"),
    [("paper", 1, 2, 2), ("keras", 1, 1, 108), ("default", 1, 1, 94), ("default", 1, 3, 94), ("default", 2, 1, 94)],
)
def test_what_is_cropped_is_not_computed_and_no_bit_changes(
    preset: str,
    members: int,
    classes: int,
    spared: int,
    capability: str,
    precision: Precision,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if precision != "float32" and hardware_precision("cpu") != precision:
        pytest.skip(f"this processor emulates {precision}")
    on_processor_with(capability, monkeypatch)
    config = network_config(preset, base_channels=8, members=members, classes=classes, in_channels=3)
    listed = layers(config)
    halo = halo_px(listed)
    state, crop = new_network(config, 0).state_dict(), halo - margin_px(listed)
    windows = np.random.default_rng(0).integers(0, 256, (2, 3, 48 + 2 * halo, 80 + 2 * halo), dtype=np.uint8)
    whole, cropped = Predictor(config, state, "cpu", precision), Predictor(config, state, "cpu", precision, crop=crop)
    sides: list[torch.Size] = []
    for predictor in (whole, cropped):
        for network in predictor.network.members if members > 1 else [predictor.network]:  # type: ignore[union-attr]
            network.merge[-1].register_forward_pre_hook(lambda _, given: sides.append(given[0].shape[-2:]))  # type: ignore[index, union-attr]
    found = cropped(windows)
    assert found.shape[-2:] == (48, 80)
    assert np.array_equal(found, whole(windows)[..., crop : crop + 48, crop : crop + 80])
    valid = 4 if config.padding == "valid" else 0  # what the last two convolutions take off
    for computed, needless in ((sides[:members], crop - spared), (sides[members:], crop)):
        assert set(computed) == {(48 + valid + 2 * needless, 80 + valid + 2 * needless)}
