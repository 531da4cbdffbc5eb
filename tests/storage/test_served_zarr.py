"""What a viewer may fetch: a stored group's own bytes and nothing else, or a volume as zarr."""

import json

import numpy as np
import pytest
import tifffile
import zarr
from zarr.storage import MemoryStore

from unet_ray.storage.served_zarr import StoredZarr, VirtualZarr, is_safe_key
from unet_ray.storage.volume import open_volume


@pytest.fixture
def group(tmp_path):
    folder = tmp_path / "group.zarr"
    (folder / "0" / "c").mkdir(parents=True)
    (folder / "zarr.json").write_text("{}")
    (folder / "0" / "c" / "0").write_bytes(bytes(range(10)))
    (folder / ".hidden").write_text("secret")
    (tmp_path / "outside").write_text("secret")
    (tmp_path / "group.zarr-other").mkdir()
    (tmp_path / "group.zarr-other" / "file").write_text("secret")
    return folder


def test_a_stored_group_is_served_as_it_is(group):
    served = StoredZarr(str(group))
    assert served.size("0/c/0") == 10
    assert served.get_part("0/c/0", 3, 4) == bytes([3, 4, 5, 6])
    assert served.get_part("0/c/0", 8, 4) == bytes([8, 9])
    assert (served.size("0/c/1"), served.get_part("0/c/1", 0, 1)) == (None, None)


@pytest.mark.parametrize(
    "key",
    ["../outside", "0/../../outside", "../group.zarr-other/file", "/etc/passwd", ".hidden", "0", "0/c", "0/c/", "", ".",
     "..\\outside", "0//c/0", "0/c/0\0", "loop", "away", "away-folder/file"],
)  # fmt: skip
def test_no_key_leads_out_of_the_group_or_to_a_folder(group, key):
    (group / "loop").symlink_to(group / "loop")
    (group / "away").symlink_to(group.parent / "outside")
    (group / "away-folder").symlink_to(group.parent / "group.zarr-other")
    served = StoredZarr(str(group))
    assert (served.size(key), served.get_part(key, 0, 1)) == (None, None)


def test_links_inside_the_group_and_to_the_group_are_followed(group, tmp_path):
    (group / "same").symlink_to(group / "0" / "c" / "0")
    (tmp_path / "link.zarr").symlink_to(group)
    assert StoredZarr(str(tmp_path / "link.zarr")).size("same") == 10


def test_a_group_in_an_object_store(s3):
    from unet_ray.storage.open_objects import open_objects

    open_objects(s3).put("0/c/0", bytes(range(10)))
    served = StoredZarr(s3)
    assert (served.size("0/c/0"), served.get_part("0/c/0", 7, 9), served.size("0/c")) == (10, bytes([7, 8, 9]), None)


def test_zarr_2_names_with_a_point_are_safe():
    assert all(map(is_safe_key, [".zgroup", "0/.zarray", "0/.zattrs", ".zmetadata"]))


def opened(served):
    """zarr-python's view of it: every object copied under its key."""
    objects = {}
    store = MemoryStore(objects)
    buffer = zarr.core.buffer.default_buffer_prototype().buffer
    keys = ["zarr.json", "0/zarr.json"]
    array = json.loads(served.get_part("0/zarr.json", 0, 1 << 20))
    chunk = array["chunk_grid"]["configuration"]["chunk_shape"]
    counts = [-(-n // c) for n, c in zip(array["shape"], chunk, strict=True)]
    keys += [f"0/c/{'/'.join(map(str, place))}" for place in np.ndindex(*counts)]
    for key in keys:
        data = served.get_part(key, 0, 1 << 30)
        assert len(data) == served.size(key)
        objects[key] = buffer.from_bytes(data)
    return zarr.open_group(store, mode="r")


@pytest.mark.parametrize(
    ("dtype", "shown"),
    [("uint8", "uint8"), (">u2", "uint16"), ("int16", "int16"), ("float32", "float32"), ("float64", "float32")],
)
def test_a_volume_as_zarr_has_the_volumes_voxels(tmp_path, dtype, shown):
    values = np.arange(2 * 600 * 530).reshape(2, 600, 530).astype(dtype)
    tifffile.imwrite(tmp_path / "stack.tif", values, photometric="minisblack", byteorder=">")
    group = opened(VirtualZarr(open_volume(str(tmp_path / "stack.tif")), (50.0, 4.0, 4.0)))
    assert group["0"].dtype == shown
    assert group["0"].chunks == (1, 512, 512)
    np.testing.assert_array_equal(group["0"][...], values.astype(shown))
    multiscale = group.attrs["ome"]["multiscales"][0]
    assert [axis["unit"] for axis in multiscale["axes"]] == ["nanometer"] * 3
    assert multiscale["datasets"][0]["coordinateTransformations"] == [{"type": "scale", "scale": [50.0, 4.0, 4.0]}]


def test_a_volume_as_zarr_has_no_other_keys(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((3, 8, 9), np.uint8), photometric="minisblack")
    served = VirtualZarr(open_volume(str(tmp_path / "a.tif")), None)
    assert served.size("0/c/2/0/0") == 8 * 9
    keys = ["0/c/3/0/0", "0/c/0/1/0", "0/c/0/0", "0/c/0/0/0/0", "0/c/-1/0/0", "0/c/x/0/0", "0", "", "1/zarr.json"]
    keys += [f"0/c/{'9' * 5000}/0/0", "0/c/0/0/\u0661"]
    assert {served.size(key) for key in keys} == {None}
    assert {served.get_part(key, 0, 1) for key in keys} == {None}
    assert b"nanometer" not in served.get_part("zarr.json", 0, 1 << 20)
