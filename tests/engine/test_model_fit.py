"""What is made of a volume's own voxel size."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile

from unet_ray.config.segment import SegmentConfig
from unet_ray.engine.model_fit import voxel_size
from unet_ray.network.model_file import decode
from unet_ray.storage.volume import open_volume

MODELS = (50.0, 4.5, 4.5)


@pytest.mark.parametrize(
    ("asked", "tags", "models", "expected"),
    [
        ((40.0, 5.0, 5.0), True, MODELS, (40.0, 5.0, 5.0)),
        (None, True, MODELS, (50.0, 4.0, 5.0)),
        (None, True, None, None),  # nobody knows z
        (None, False, MODELS, MODELS),
        (None, False, None, None),
    ],
)
def test_what_the_file_does_not_tell_is_the_models(
    asked: tuple[float, float, float] | None,
    tags: bool,
    models: tuple[float, float, float] | None,
    expected: tuple[float, float, float] | None,
    tmp_path: Path,
    write_model: Callable[..., str],
) -> None:
    """Resolution tags of a TIFF tell y and x alone."""
    path, model = f"{tmp_path}/v.tif", write_model(tmp_path / "model", voxel_size_nm=models)
    resolution = {"resolution": (2_000_000, 2_500_000), "resolutionunit": "CENTIMETER"} if tags else {}
    tifffile.imwrite(path, np.zeros((2, 9, 9), np.uint8), photometric="minisblack", metadata=None, **resolution)
    volume = open_volume(path)
    assert volume.pixel_size_nm == ((4, 5) if tags else None)
    config = SegmentConfig(volume=path, model=model, output="unused", voxel_size_nm=asked)
    assert voxel_size(config, volume, decode(Path(model).read_bytes())[2]) == expected
