"""A mask holds the voxels that its own resolution says, however it is stored."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import given
from hypothesis import strategies as st

from tests.shipped import shipped
from unet_ray.errors import VolumeError
from unet_ray.geometry.box import Box
from unet_ray.storage.mask_volume import MaskVolume, open_mask
from unet_ray.storage.volume import Volume, open_volume


class InMemory(Volume):
    def __init__(self, values: np.ndarray[Any, Any]) -> None:
        self.path, self.values, self.shape, self.dtype = "memory", values, values.shape, values.dtype
        self.voxel_size_nm = self.pixel_size_nm = None

    def identity(self) -> dict[str, object]:
        return {}

    def _read_inside(self, box: Box) -> np.ndarray[Any, Any]:
        return self.values[box.slices]


@given(data=st.data(), shape=st.tuples(*[st.integers(1, 11)] * 3), factor=st.tuples(*[st.integers(1, 4)] * 3))
def test_any_box_is_cut_from_the_enlarged_mask(
    data: st.DataObject, shape: tuple[int, int, int], factor: tuple[int, int, int]
) -> None:
    coarse = tuple(-(-side // f) for side, f in zip(shape, factor, strict=True))
    values = np.random.default_rng(data.draw(st.integers(0, 99))).integers(-2, 3, coarse)
    whole = values > 0
    for axis, f in enumerate(factor):
        whole = whole.repeat(f, axis)
    whole = whole[tuple(slice(side) for side in shape)]
    start = [data.draw(st.integers(0, side - 1)) for side in shape]
    stop = [data.draw(st.integers(a + 1, side)) for a, side in zip(start, shape, strict=True)]
    box = Box(tuple(start), tuple(stop))
    found = MaskVolume(InMemory(values), factor).inside(box)
    assert found.dtype == bool
    assert np.array_equal(found, whole[box.slices])


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    """Of 7 x 61 x 40 voxels."""
    tifffile.imwrite(tmp_path / "volume.tif", np.zeros((7, 61, 40), np.uint8), photometric="minisblack")
    return open_volume(str(tmp_path / "volume.tif"))


def test_any_format_and_level(volume: Volume, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 2, (7, 16, 40))
    tifffile.imwrite(tmp_path / "mask.tif", values.astype(np.float32), photometric="minisblack")
    tifffile.imwrite(tmp_path / "section.tif", values[0, :, ::4].astype(np.uint16), photometric="minisblack")
    whole = values.repeat(4, 1)[:, :61] > 0
    everything = Box.of_shape(volume.shape)
    array = zarr.create_array(str(tmp_path / "mask.zarr"), shape=values.shape, dtype=bool)
    array[...] = values > 0
    for path in ("mask.tif", "mask.zarr"):
        mask = open_mask(str(tmp_path / path), volume)
        assert mask.factor == (1, 4, 1)
        assert np.array_equal(shipped(mask).inside(everything), whole)
    section = open_mask(str(tmp_path / "section.tif"), volume)  # holds for all sections
    assert section.factor == (7, 4, 4)
    enlarged = values[0, :, ::4].repeat(4, 0).repeat(4, 1)[:61] > 0
    assert np.array_equal(section.inside(everything), np.broadcast_to(enlarged, volume.shape))


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((7, 61, 41), "no whole factor makes 41 of 40 voxels along x"),
        ((5, 61, 40), "no whole factor makes 5 of 7 voxels along z"),
        ((7, 61, 5), "along x that may be a factor of 8 as well as of 9"),
        ((7, 5, 40), "along y that may be a factor of 13 as well as of 15"),
        ((40, 61, 7), "no whole factor makes 40 of 7 voxels along z"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(
    volume: Volume, shape: tuple[int, int, int], words: str, tmp_path: Path
) -> None:
    tifffile.imwrite(tmp_path / "mask.tif", np.ones(shape, np.uint8), photometric="minisblack")
    with pytest.raises(VolumeError, match=words) as caught:
        open_mask(str(tmp_path / "mask.tif"), volume)
    assert str(shape) in str(caught.value)
    assert str(volume.shape) in str(caught.value)
