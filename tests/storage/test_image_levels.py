"""All resolutions of an image, whoever wrote it."""

from itertools import pairwise

import numpy as np
import pytest
import tifffile
import zarr

from tests.scenes import write_segmentation
from unet_ray.errors import VolumeError
from unet_ray.geometry.box import Box
from unet_ray.storage.image_levels import open_levels
from unet_ray.storage.open_objects import open_objects


def write_group(path, version, axes="zyx", levels=2, prefix=""):
    """An OME-Zarr image as others write it; level k divides y and x by 2**k."""
    datasets = []
    for level in range(levels):
        shape = {"t": 1, "c": 1, "z": 3, "y": 64 >> level, "x": 48 >> level}
        array = zarr.create_array(
            str(path), name=f"{prefix}s{level}", shape=tuple(shape[a] for a in axes), dtype="uint8",
            chunks=tuple(shape[a] for a in axes), zarr_format=3 if version == "0.5" else 2,
        )  # fmt: skip
        array[...] = level + 1
        scale = [{"z": 50.0, "y": 4.0 * 2**level, "x": 4.0 * 2**level}.get(a, 1.0) for a in axes]
        datasets.append({"path": f"s{level}", "coordinateTransformations": [{"type": "scale", "scale": scale}]})
    described = [{"name": a, "type": "space", "unit": "nanometer"} for a in axes]
    for axis in described:
        if axis["name"] in "tc":
            axis.update(type={"t": "time", "c": "channel"}[axis["name"]])
            del axis["unit"]
    multiscales = [{"version": version, "axes": described, "datasets": datasets}]
    attributes = (
        {"ome": {"version": "0.5", "multiscales": multiscales}} if version == "0.5" else {"multiscales": multiscales}
    )
    group = zarr.open_group(str(path), path=prefix, mode="a", zarr_format=3 if version == "0.5" else 2)
    group.attrs.update(attributes)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("axes", ["zyx", "tczyx", "yx"])
def test_a_pyramid(tmp_path, version, axes):
    write_group(tmp_path / "a.zarr", version, axes)
    image = open_levels(str(tmp_path / "a.zarr"))
    depth = 3 if "z" in axes else 1
    assert [volume.shape for volume in image.volumes] == [(depth, 64, 48), (depth, 32, 24)]
    assert image.scales == ((1.0, 1.0, 1.0), (1.0, 2.0, 2.0))
    assert (image.group, image.axes) == (str(tmp_path / "a.zarr"), tuple(axes))
    assert [int(volume.read(Box.of_shape((1, 1, 1)))[0, 0, 0]) for volume in image.volumes] == [1, 2]


def test_the_first_image_of_bioformats2raw(tmp_path):
    path = tmp_path / "a.zarr"
    zarr.create_group(str(path), attributes={"bioformats2raw.layout": 3})
    write_group(path, "0.5", prefix="0/")
    image = open_levels(str(path))
    assert image.group == f"{path}/0"
    assert len(image.volumes) == 2


def test_a_channel_of_a_segmentation(tmp_path):
    path = str(write_segmentation(tmp_path / "s.zarr", classes=3))
    images = [open_levels(path, channel) for channel in range(3)]
    assert [[volume.shape for volume in image.volumes] for image in images] == [[(5, 150, 200), (5, 75, 100)]] * 3
    box = Box.of_shape((5, 75, 100))
    read = [image.volumes[1].read(box) for image in images]
    assert all((a != b).any() for a, b in pairwise(read))


def test_what_is_no_pyramid_has_one_level(tmp_path):
    values = np.zeros((2, 5, 6), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="minisblack")
    for version in (2, 3):
        array = zarr.create_array(str(tmp_path / f"{version}.zarr"), shape=(2, 5, 6), dtype="u1", zarr_format=version)
        array[...] = 1
    for name in ("a.tif", "2.zarr", "3.zarr"):
        image = open_levels(str(tmp_path / name))
        assert ([v.shape for v in image.volumes], image.scales, image.group) == ([(2, 5, 6)], ((1.0, 1.0, 1.0),), None)


@pytest.mark.usefixtures("impatient")
def test_a_store_that_is_lost_on_the_way_is_told_in_one_sentence(tmp_path, s3, s3_proxy):
    write_group(tmp_path / "a.zarr", "0.5")
    local, stored = open_objects(str(tmp_path)), open_objects(s3)
    for info in local.list():
        stored.put(info.key, local.get(info.key))
    assert len(open_levels(f"{s3}/a.zarr").volumes) == 2
    asked = []

    def lost(kind, key):
        if key.endswith("/a.zarr/zarr.json"):
            asked.append(kind)
        return "error" if len(asked) > 1 else None  # the volume is opened before its group's levels are read

    s3_proxy.choose = lost
    with pytest.raises(VolumeError, match=r"a\.zarr.* gives no whole answer"):
        open_levels(f"{s3}/a.zarr")


def test_a_level_that_is_not_there_is_named(tmp_path):
    write_group(tmp_path / "a.zarr", "0.5")
    (tmp_path / "a.zarr" / "s1" / "zarr.json").unlink()
    with pytest.raises(VolumeError, match="s1"):
        open_levels(str(tmp_path / "a.zarr"))
