import json
import shutil
import tempfile
import warnings

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.shipped import shipped
from unet_ray.errors import VolumeError
from unet_ray.geometry.box import Box
from unet_ray.storage.ome_metadata import find_level
from unet_ray.storage.volume import open_volume
from unet_ray.storage.volume_zarr import open_zarr

SHAPES = st.tuples(st.integers(1, 6), st.integers(1, 40), st.integers(1, 40))
STARTS = st.tuples(*[st.integers(-90, 90)] * 3)
SIDES = st.tuples(*[st.integers(1, 15)] * 3)


def flat_index(shape, dtype=np.uint16):
    return np.arange(np.prod(shape), dtype=dtype).reshape(shape)


def save(path, stack, *, version=3, chunks=None, **options):
    chunks = chunks or tuple(min(n, 16) for n in stack.shape)
    array = zarr.create_array(
        str(path), shape=stack.shape, dtype=stack.dtype, chunks=chunks, zarr_format=version, **options
    )
    array[...] = stack


def axes_04(names, unit="nanometer"):
    kinds = {"t": "time", "c": "channel"}
    return [{"name": n, "type": kinds.get(n, "space")} | ({"unit": unit} if n in "zyx" and unit else {}) for n in names]


def save_ome(folder, stack, version, *, names="zyx", unit="nanometer", scale=(50.0, 4.0, 4.0), common=None):
    """Group metadata written by hand, as the specification has it; two levels."""
    zarr_format = 3 if version == "0.5" else 2
    full = stack.reshape((1,) * (len(names) - stack.ndim) + stack.shape)
    ones = [1.0] * (len(names) - len(scale))
    datasets = []
    for level, step in (("full", 1), ("half", 2)):
        save(f"{folder}/{level}", full[..., ::step, ::step], version=zarr_format)
        factors = [*ones, *scale[:-2], scale[-2] * step, scale[-1] * step]
        datasets.append({"path": level, "coordinateTransformations": [{"type": "scale", "scale": factors}]})
    multiscale = {"name": "em", "axes": axes_04(names, unit), "datasets": datasets}
    if common:
        multiscale["coordinateTransformations"] = [{"type": "scale", "scale": common}]
    if version == "0.5":
        attributes = {"ome": {"version": "0.5", "multiscales": [multiscale]}}
        document = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
        with open(f"{folder}/zarr.json", "w") as file:
            json.dump(document, file)
    else:
        with open(f"{folder}/.zgroup", "w") as file:
            json.dump({"zarr_format": 2}, file)
        with open(f"{folder}/.zattrs", "w") as file:
            json.dump({"multiscales": [multiscale | {"version": "0.4"}]}, file)


@pytest.mark.parametrize("version", [2, 3])
@settings(max_examples=12, deadline=None)
@given(shape=SHAPES, start=STARTS, sides=SIDES)
def test_voxels_are_where_they_belong(version, shape, start, sides):
    stack = flat_index(shape)
    box = Box.of_shape(sides, start)
    with tempfile.TemporaryDirectory() as folder:
        save(f"{folder}/a.zarr", stack, version=version)
        volume = open_volume(f"{folder}/a.zarr")
        assert (volume.shape, volume.dtype) == (shape, np.dtype(np.uint16))
        before = [max(0, -a) for a in box.start]
        after = [max(0, b - n) for b, n in zip(box.stop, shape, strict=True)]
        expected = np.pad(stack, list(zip(before, after, strict=True)), mode="reflect")[box.shift(before).slices]
        got = shipped(volume).read(box)
        assert got.flags.c_contiguous
        np.testing.assert_array_equal(got, expected)
        np.testing.assert_array_equal(volume.read(box), expected)


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("dtype", ["?", "u1", "<u2", ">u2", "i4", "u8", "f2", "f4", "f8"])
def test_dtypes(tmp_path, version, dtype):
    stack = (flat_index((2, 9, 9)) % 100).astype(dtype)
    save(tmp_path / "a.zarr", stack, version=version)
    volume = open_volume(str(tmp_path / "a.zarr"))
    assert volume.dtype == np.dtype(dtype).newbyteorder("=")
    np.testing.assert_array_equal(volume.read(Box((0, 1, 0), (2, 9, 8))), stack[:, 1:, :8])


def test_fortran_order_comes_out_c_contiguous(tmp_path):
    stack = flat_index((3, 20, 30))
    save(tmp_path / "a.zarr", stack, version=2, order="F", chunks=(3, 20, 30))
    with zarr.config.set({"array.order": "F"}):
        got = open_volume(str(tmp_path / "a.zarr")).read(Box.of_shape((3, 20, 30)))
    assert got.flags.c_contiguous
    np.testing.assert_array_equal(got, stack)


def test_workers_open_their_own_array(tmp_path):
    """A pickle names the place and holds no store, so it is small and opens at the first read."""
    save(tmp_path / "a.zarr", flat_index((3, 20, 30)))
    volume = open_volume(str(tmp_path / "a.zarr"))
    copy = shipped(volume)
    shutil.rmtree(tmp_path / "a.zarr")
    with pytest.raises(VolumeError, match=r"(cannot find a zarr array or group at|cannot open the zarr) .*a\.zarr"):
        copy.read(Box.of_shape((1, 5, 5)))


def test_sharded_with_checksums_and_2d(tmp_path):
    stack = flat_index((40, 30))
    save(tmp_path / "a.zarr", stack, chunks=(8, 8), shards=(16, 16))
    volume = open_volume(str(tmp_path / "a.zarr"))
    assert volume.shape == (1, 40, 30)
    np.testing.assert_array_equal(volume.read(Box((-3, 2, 1), (1, 40, 30)))[1], stack[2:, 1:])


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("names", ["zyx", "czyx", "tczyx"])
def test_ome_zarr(tmp_path, version, names):
    stack = flat_index((3, 20, 30))
    save_ome(tmp_path, stack, version, names=names)
    volume = open_volume(str(tmp_path))
    assert (volume.shape, volume.voxel_size_nm, volume.pixel_size_nm) == (
        (3, 20, 30),
        (50.0, 4.0, 4.0),
        (4.0, 4.0),
    )
    box = Box((0, 2, 3), (3, 20, 25))
    np.testing.assert_array_equal(shipped(volume).read(box), stack[box.slices])
    half = open_volume(str(tmp_path), array="half")
    assert (half.shape, half.voxel_size_nm) == ((3, 10, 15), (50.0, 8.0, 8.0))
    np.testing.assert_array_equal(half.read(Box((1, 0, 0), (2, 10, 15)))[0], stack[1, ::2, ::2])


def test_one_of_several_channels(tmp_path):
    stack = flat_index((4, 3, 20, 30))
    save_ome(tmp_path, stack, "0.5", names="czyx")
    box, where = Box((0, 2, 3), (3, 20, 25)), str(tmp_path)
    volumes = [open_zarr(where, where, None, channel) for channel in range(4)]
    for channel, volume in enumerate(volumes):
        assert (volume.shape, volume.voxel_size_nm) == ((3, 20, 30), (50.0, 4.0, 4.0))
        np.testing.assert_array_equal(shipped(volume).read(box), stack[channel][box.slices])
    assert volumes[0].identity() != volumes[1].identity()
    with pytest.raises(VolumeError, match=r"has shape \(4, 3, 20, 30\) and no channel 4"):
        open_zarr(where, where, None, 4)
    with pytest.raises(VolumeError, match="one channel and time of it"):
        open_volume(where)
    save(tmp_path / "a.zarr", stack[0])
    with pytest.raises(VolumeError, match="no channel 0"):
        open_zarr(f"{where}/a.zarr", f"{where}/a.zarr", None, 0)


@pytest.mark.parametrize(
    ("unit", "scale", "common", "voxel"),
    [
        ("micrometer", (0.05, 0.004, 0.004), None, (50.0, 4.0, 4.0)),
        ("angstrom", (500.0, 40.0, 40.0), None, (50.0, 4.0, 4.0)),
        ("nanometer", (1.0, 1.0, 1.0), [50.0, 4.0, 5.0], (50.0, 4.0, 5.0)),
        (None, (50.0, 4.0, 4.0), None, None),
        ("furlong", (50.0, 4.0, 4.0), None, None),
    ],
)
def test_ome_voxel_size_units(tmp_path, unit, scale, common, voxel):
    save_ome(tmp_path, flat_index((2, 8, 8)), "0.5", unit=unit, scale=scale, common=common)
    assert open_volume(str(tmp_path)).voxel_size_nm == voxel


def test_ome_image_of_two_axes(tmp_path):
    save_ome(tmp_path, flat_index((8, 9)), "0.4", names="yx", scale=(4.0, 5.0))
    volume = open_volume(str(tmp_path))
    assert (volume.shape, volume.voxel_size_nm, volume.pixel_size_nm) == ((1, 8, 9), None, (4.0, 5.0))


def test_ome_single_channel_of_a_flat_image(tmp_path):
    """Axes c y x of shape (1, 8, 9): the first one is a channel, not a section."""
    save_ome(tmp_path, flat_index((8, 9)), "0.5", names="cyx", scale=(4.0, 4.0))
    assert open_volume(str(tmp_path)).shape == (1, 8, 9)


def test_bioformats2raw_layout(tmp_path):
    (tmp_path / ".zgroup").write_text('{"zarr_format": 2}')
    (tmp_path / ".zattrs").write_text('{"bioformats2raw.layout": 3}')
    (tmp_path / "0").mkdir()
    save_ome(tmp_path / "0", flat_index((2, 8, 8)), "0.4")
    assert open_volume(str(tmp_path)).shape == (2, 8, 8)


def test_unnamed_axes_of_old_versions():
    """0.2: t c z y x, without names or scales."""
    level = find_level("a", {"multiscales": [{"version": "0.2", "datasets": [{"path": "0"}]}]})
    assert (level.array, level.axes, level.voxel_size_nm) == ("0", ("t", "c", "z", "y", "x"), None)


def test_files_beside_the_arrays_are_not_warned_of(tmp_path):
    zarr.open_group(str(tmp_path), mode="w").create_array("raw", data=np.zeros((2, 3, 4), np.uint8))
    (tmp_path / "notes.txt").write_text("x")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(VolumeError, match=r"name one: raw$"):
            open_volume(str(tmp_path))


def test_array_of_a_plain_group(tmp_path):
    root = zarr.open_group(str(tmp_path), mode="w")
    stack = flat_index((2, 8, 8))
    root.create_group("volumes").create_array("raw", data=stack, chunks=(1, 8, 8))
    root["volumes"].create_array("labels", data=stack, chunks=(1, 8, 8))
    with pytest.raises(VolumeError, match=r"without multiscales.*name one: volumes/labels, volumes/raw"):
        open_volume(str(tmp_path))
    with pytest.raises(VolumeError, match=r"no array volumes/row; did you mean volumes/raw\?"):
        open_volume(str(tmp_path), array="volumes/row")
    with pytest.raises(VolumeError, match="no array volumes; "):
        open_volume(str(tmp_path), array="volumes")
    np.testing.assert_array_equal(
        open_volume(str(tmp_path), array="volumes/raw").read(Box((0, 0, 0), (2, 8, 8))), stack
    )
    with pytest.raises(VolumeError, match="is itself an array; leave the array out"):
        open_volume(str(tmp_path / "volumes" / "raw"), array="raw")


def test_url_of_a_store(tmp_path):
    """file:// like any path; what a bucket's URL adds is tested with a server."""
    save(tmp_path / "a.zarr", flat_index((2, 8, 8)))
    assert open_volume((tmp_path / "a.zarr").as_uri()).shape == (2, 8, 8)


def test_identity_follows_metadata_and_listing(tmp_path):
    stack = flat_index((4, 32, 32))
    save(tmp_path / "a.zarr", stack)
    first = open_volume(str(tmp_path / "a.zarr")).identity()
    assert open_volume(str(tmp_path / "a.zarr")).identity() == first
    shutil.copytree(tmp_path / "a.zarr", tmp_path / "b.zarr")  # keeps the times
    assert open_volume(str(tmp_path / "b.zarr")).identity() == first
    zarr.open_array(str(tmp_path / "a.zarr"), mode="r+")[0, 0, 0] = 7
    changed = open_volume(str(tmp_path / "a.zarr")).identity()
    assert (changed["listing"] != first["listing"], changed["metadata"] == first["metadata"]) == (True, True)
    assert json.loads(json.dumps(changed)) == changed


def channels(folder):
    save_ome(folder, flat_index((2, 3, 8, 8)), "0.5", names="czyx", scale=(50.0, 4.0, 4.0))


def swapped(folder):
    save_ome(folder, flat_index((2, 8, 8)), "0.5", names="xyz")


def no_datasets(folder):
    zarr.open_group(str(folder), mode="w").attrs["multiscales"] = [{"axes": axes_04("zyx"), "datasets": []}]


def lost_level(folder):
    save_ome(folder, flat_index((2, 8, 8)), "0.4")
    shutil.rmtree(folder / "full")


def axes_too_few(folder):
    save_ome(folder, flat_index((2, 8, 8)), "0.5")
    document = json.loads((folder / "zarr.json").read_text())
    multiscale = document["attributes"]["ome"]["multiscales"][0]
    multiscale["axes"] = axes_04("yx")
    for dataset in multiscale["datasets"]:
        dataset["coordinateTransformations"] = []
    (folder / "zarr.json").write_text(json.dumps(document))


@pytest.mark.filterwarnings("ignore:The data type")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda f: zarr.open_group(str(f), mode="w"), "name one: it holds no arrays at all"),
        (lambda f: save(f, flat_index((2, 2, 8, 8))), r"has shape \(2, 2, 8, 8\); give a 2-D or 3-D array"),
        (lambda f: save(f, flat_index((8,))), r"has shape \(8,\); give a 2-D or 3-D array"),
        (lambda f: save(f, np.zeros((2, 8, 8), np.complex64)), "complex64 voxels; convert"),
        (lambda f: save(f, np.zeros((2, 8, 8), "S4")), "voxels; convert"),
        (channels, r"has shape \(2, 3, 8, 8\) \(axes c z y x\); give .* one channel and time"),
        (swapped, "has axes x y z; only z y x in this order"),
        (no_datasets, "the multiscales metadata of .* cannot be followed"),
        (lost_level, r"has no array full; did you mean half\?|has no array full; there are: half"),
        (axes_too_few, r"has 3 axes but its multiscales names 2 \(y x\)"),
        (lambda f: (f / "zarr.json").write_text("{no json"), "cannot open the zarr .*; check its metadata"),
        (
            lambda f: save(f, np.zeros((0, 8, 8), np.uint8), chunks=(1, 8, 8)),
            r"is empty: its shape is \(0, 8, 8\)",
        ),
    ],
)
def test_what_cannot_be_read_is_refused_at_open(tmp_path, make, message):
    make(tmp_path)
    with pytest.raises(VolumeError, match=message) as caught:
        open_volume(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_damaged_chunk_is_told_at_read(tmp_path):
    save(tmp_path / "a.zarr", flat_index((4, 32, 32)), chunks=(1, 32, 32))
    volume = open_volume(str(tmp_path / "a.zarr"))
    (tmp_path / "a.zarr" / "c" / "2" / "0" / "0").write_bytes(b"\x28\xb5\x2f\xfdgarbage")
    volume.read(Box((0, 0, 0), (2, 32, 32)))
    with pytest.raises(VolumeError, match=r"sections 2 to 3 of .*a\.zarr cannot be read"):
        volume.read(Box((2, 0, 0), (4, 32, 32)))


def test_non_finite_section_is_named(tmp_path):
    stack = flat_index((3, 8, 8), np.float16)
    stack[2, 7, 7] = np.inf
    save(tmp_path / "a.zarr", stack)
    with pytest.raises(VolumeError, match=r"section 2 of .*a\.zarr has NaN or infinite"):
        open_volume(str(tmp_path / "a.zarr")).read(Box((0, 0, 0), (3, 8, 8)))


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("metadata", [False, True])
def test_a_pipe_in_a_zarr_is_refused_and_not_waited_for(tmp_path, make_pipe, version, metadata):
    path = tmp_path / "a.zarr"
    values = np.ones((2, 4, 5), np.uint8)
    array = zarr.create_array(str(path), shape=values.shape, dtype="u1", chunks=(1, 4, 5), zarr_format=version)
    array[...] = values
    key = {(2, False): "1.0.0", (3, False): "c/1/0/0", (2, True): ".zarray", (3, True): "zarr.json"}[version, metadata]
    (path / key).unlink()
    make_pipe(path / key)
    said = "cannot open the zarr" if metadata else "section"
    with pytest.raises(VolumeError, match=f"{said}.*{path}/{key} is a pipe or a device and no file"):
        open_volume(str(path)).read(Box.of_shape(values.shape))
