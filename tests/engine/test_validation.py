"""A model is judged by validation sections as they were made, or not at all."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from unet_ray.config.network import layers, network_config
from unet_ray.engine import validation
from unet_ray.engine.validation import validate
from unet_ray.errors import VolumeError
from unet_ray.geometry.receptive_field import halo_px, margin_px
from unet_ray.network.predict import Predictor
from unet_ray.network.unet import new_network
from unet_ray.storage.patch_cache import PatchCache


@pytest.mark.parametrize("name", ["image", "label", "weight"])
@pytest.mark.parametrize("number", [0, 1])
def test_a_section_that_is_lost_meanwhile_is_not_scored_as_zeros(
    cache: str, tmp_path: Path, number: int, name: str
) -> None:
    """What a training asks at its start ends at the first section that tells models apart, and may be hours ago."""
    config = network_config("default", base_channels=2, depth=2)
    predictor = Predictor(config, new_network(config, 0).state_dict())
    shutil.copytree(cache, tmp_path / "cache.zarr")
    lossy = PatchCache(str(tmp_path / "cache.zarr"))
    assert 0 < validate(predictor, lossy, weighted=True)[0].pixel_mismatch < 1
    (tmp_path / "cache.zarr" / lossy.shard_key("validation", name, number)).unlink()
    with pytest.raises(VolumeError, match=rf"validation shard {number} of .* is damaged \(its {name} is missing\)"):
        validate(predictor, lossy, weighted=True)


@pytest.mark.parametrize("preset", ["default", "keras", "paper"])
@pytest.mark.parametrize("tile_px", [32, 512])
def test_a_section_is_predicted_as_in_one_piece(
    cache: str, preset: str, tile_px: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validation, "LARGEST_TILE_PX", tile_px)
    config = network_config(preset, base_channels=2, depth=3)
    predictor, whole = Predictor(config, new_network(config, 0).state_dict()), PatchCache(cache)
    listed = layers(config)
    halo = halo_px(listed)
    crop, shown, wrong, known, loss, weight = halo - margin_px(listed), [], 0, 0, 0.0, 0.0
    for number in range(whole.plan().validation):
        patch = whole.read_checked("validation", number)
        height, width = patch.label.shape
        after = [halo + -side % 32 for side in (height, width)]
        window = np.pad(patch.image, ((0, 0), (halo, after[0]), (halo, after[1])), mode="reflect")
        logits = predictor.logits(window[None])[..., crop : crop + height, crop : crop + width]
        probability = predictor.probability(logits)[0]
        shown.append(np.rint(255 * probability))
        labelled = patch.weight > 0
        wrong += int(((probability > 0.5) != patch.label)[labelled].sum())
        known += int(labelled.sum())
        target, weights = torch.from_numpy(patch.label)[None], torch.from_numpy(patch.weight.astype(np.float32))
        if config.classes == 1:
            each = functional.binary_cross_entropy_with_logits(logits[:, 0], target.float(), reduction="none")
        else:
            each = functional.cross_entropy(logits, target.long(), reduction="none")
        loss, weight = loss + float((each[0] * weights).sum()), weight + float(weights.sum())
    found, predicted = validate(predictor, whole, weighted=True)
    assert predicted is not None
    # Windows of other shapes may round otherwise.
    assert np.abs(predicted.probability - shown[0]).max() <= 1
    assert (predicted.probability != shown[0]).mean() < 1e-3
    assert found.pixel_mismatch == pytest.approx(wrong / known, abs=2 / known)
    assert found.loss == pytest.approx(loss / weight, rel=1e-5)
