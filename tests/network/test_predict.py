"""The forward pass that segmentation and validation share."""

import numpy as np
import pytest
import torch

from unet_ray.config.network import network_config
from unet_ray.network.predict import Precision, Predictor, Tta
from unet_ray.network.unet import new_network

VIEWS = {"none": (0,), "flips": (0, 2, 4, 6), "dihedral": tuple(range(8))}


@pytest.mark.parametrize(("precision", "exact"), [("float32", True), ("bfloat16", False)])
def test_float32_is_never_tensorfloat32(precision: Precision, exact: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    config = network_config("default", base_channels=2, depth=2)
    predictor = Predictor(config, new_network(config, 0).state_dict(), precision=precision)
    allowed: list[bool] = []
    predictor.network.register_forward_hook(lambda *_: allowed.append(torch.backends.cudnn.allow_tf32))
    predictor(np.zeros((1, 1, 32, 32), np.uint8))
    assert allowed == [not exact]
    assert torch.backends.cudnn.allow_tf32


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
