"""A model is judged by validation sections as they were made, or not at all."""

import shutil
from pathlib import Path

import pytest

from unet_ray.config.network import network_config
from unet_ray.engine.validation import validate
from unet_ray.errors import VolumeError
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
