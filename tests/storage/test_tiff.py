import tracemalloc

import numpy as np
import pytest
import tifffile

from unet_ray.errors import TargetError
from unet_ray.geometry.box import Box
from unet_ray.storage.tiff import write_tiff
from unet_ray.storage.volume import open_volume

SHAPE = (3, 300, 530)


def probability(shape=SHAPE):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def rows_of(stack):
    return lambda z, start, stop: stack[z, start:stop]


def expected(kind, stack):
    if kind == "challenge":
        return np.float32(1) - stack.astype(np.float32) / np.float32(255)
    return np.where(stack != 0, np.uint8(255), np.uint8(0)) if kind == "mask" else stack


@pytest.mark.parametrize("bigtiff", [None, False, True])
@pytest.mark.parametrize("kind", ["mask", "probability", "challenge"])
@pytest.mark.parametrize("shape", [SHAPE, (1, 256, 512), (4, 1, 2), (2, 257, 20)])
def test_round_trip(tmp_path, kind, bigtiff, shape):
    path = str(tmp_path / "out" / "a.tif")
    stack = probability(shape)
    write_tiff(path, rows_of(stack), shape=shape, kind=kind, voxel_size_nm=(50, 4, 4.5), bigtiff=bigtiff)
    with tifffile.TiffFile(path) as tif:
        assert tif.is_bigtiff == bool(bigtiff)
        assert (len(tif.series), len(tif.pages)) == (1, shape[0])
        page = tif.pages[0]
        plain = kind == "challenge" and not bigtiff
        assert (page.is_tiled, page.compression) == ((False, 1) if plain else (True, 8))
        assert (tif.is_imagej, tif.is_ome) == (plain, not plain)
        np.testing.assert_array_equal(tif.asarray().reshape(shape), expected(kind, stack))
    volume = open_volume(path)
    assert volume.shape == shape
    assert volume.voxel_size_nm == pytest.approx((50, 4, 4.5))
    np.testing.assert_array_equal(volume.read(Box.of_shape(shape)), expected(kind, stack))


@pytest.mark.parametrize("bigtiff", [False, True])
@pytest.mark.parametrize("shape", [(3, 3, 300, 530), (1, 4, 20, 10), (5, 2, 257, 1)])
def test_channels_of_a_section_follow_each_other(tmp_path, shape, bigtiff):
    """Each voxel holds its own place, so that sections taken for channels show."""
    sections, channels, height, width = shape
    stack = (np.arange(np.prod(shape)) % 251).astype(np.uint8).reshape(shape)
    path = str(tmp_path / "a.tif")
    write_tiff(
        path,
        lambda page, start, stop: stack[page // channels, page % channels, start:stop],
        shape=(sections, height, width),
        kind="probability",
        channels=channels,
        voxel_size_nm=(50, 4, 4.5),
        bigtiff=bigtiff,
    )
    with tifffile.TiffFile(path) as tif:
        assert (tif.is_ome, tif.is_bigtiff, len(tif.series)) == (True, bigtiff, 1)
        image = tifffile.xml2dict(tif.ome_metadata)["OME"]["Image"]["Pixels"]
        found = tif.asarray().reshape(shape)
    assert (image["SizeZ"], image["SizeC"], image["DimensionOrder"]) == (sections, channels, "XYCZT")
    assert [channel["Name"] for channel in image["Channel"]] == [f"class {c}" for c in range(channels)]
    assert (image["PhysicalSizeZ"], image["PhysicalSizeX"]) == (50, 4.5)
    np.testing.assert_array_equal(found, stack)


def test_class_indices_are_written_as_they_are(tmp_path):
    stack = probability() % 7
    write_tiff(str(tmp_path / "a.tif"), rows_of(stack), shape=SHAPE, kind="classes")
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "a.tif"), stack)


@pytest.mark.parametrize("kind", ["mask", "challenge"])
def test_a_width_of_one(tmp_path, kind):
    """What is written: tifffile takes (z, y, 1) for (z, y) sections with one sample unless told otherwise."""
    stack = probability((2, 5, 1))
    write_tiff(str(tmp_path / "a.tif"), rows_of(stack), shape=(2, 5, 1), kind=kind)
    np.testing.assert_array_equal(
        open_volume(str(tmp_path / "a.tif")).read(Box.of_shape((2, 5, 1))), expected(kind, stack)
    )


@pytest.mark.parametrize("kind", ["mask", "challenge"])
def test_pillow_reads_it_too(tmp_path, kind):
    """An independent reader (libtiff): pages, tiles, deflate, floats."""
    from PIL import Image

    stack = probability()
    write_tiff(str(tmp_path / "a.tif"), rows_of(stack), shape=SHAPE, kind=kind)
    with Image.open(tmp_path / "a.tif") as image:
        assert image.n_frames == 3
        image.seek(2)
        np.testing.assert_array_equal(np.asarray(image), expected(kind, stack)[2])


def test_kinds_from_bool_and_float(tmp_path):
    path = str(tmp_path / "a.tif")
    floats = np.array([[[0.0, 0.25, 1.0]]], np.float32)
    for kind, rows, values in [
        ("mask", floats > 0.5, [0, 0, 255]),
        ("probability", floats, [0, 64, 255]),
        ("probability", floats > 0.5, [0, 0, 255]),
        ("challenge", floats, [1.0, 0.75, 0.0]),
        ("challenge", floats > 0.5, [1.0, 1.0, 0.0]),
    ]:
        write_tiff(path, rows_of(rows), shape=(1, 1, 3), kind=kind)
        assert tifffile.imread(path).ravel().tolist() == values, kind


def test_same_input_same_bytes(tmp_path):
    stack = probability()
    for name, threads in (("a", 1), ("b", 4)):
        write_tiff(str(tmp_path / name), rows_of(stack), shape=SHAPE, kind="probability", threads=threads)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_rows_are_asked_for_once_and_in_order(tmp_path):
    asked = []

    def read_rows(z, start, stop):
        asked.append((z, start, stop))
        return np.zeros((stop - start, 530), np.uint8)

    write_tiff(str(tmp_path / "a.tif"), read_rows, shape=SHAPE, kind="mask")
    assert asked == [(z, *band) for z in range(3) for band in ((0, 256), (256, 300))]


@pytest.mark.parametrize("kind", ["mask", "challenge"])
def test_memory_does_not_grow_with_the_volume(tmp_path, kind):
    peaks = []
    for sections in (2, 20):
        tracemalloc.start()
        write_tiff(
            str(tmp_path / "a.tif"),
            lambda z, start, stop: np.zeros((stop - start, 1024), np.uint8),
            shape=(sections, 1024, 1024),
            kind=kind,
        )
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0] + 100_000
    assert peaks[1] < 6_000_000


def test_bigtiff_when_it_must_be():
    from unet_ray.storage.tiff import _CLASSIC_BYTES, _most_bytes

    byte = np.dtype(np.uint8)
    assert _most_bytes((30, 512, 512), byte) < _CLASSIC_BYTES < 2**32
    assert _most_bytes((100, 6400, 6400), byte) < _CLASSIC_BYTES < _most_bytes((110, 6400, 6400), byte)


def test_nothing_is_left_of_a_failed_write(tmp_path):
    path = tmp_path / "a.tif"
    path.write_bytes(b"old")

    def read_rows(z, start, stop):
        if z == 2:
            raise RuntimeError("reading failed")
        return np.zeros((stop - start, 530), np.uint8)

    for kind in ("mask", "challenge"):
        with pytest.raises(RuntimeError, match="reading failed"):
            write_tiff(str(path), read_rows, shape=SHAPE, kind=kind)
    assert [p.name for p in tmp_path.iterdir()] == ["a.tif"]
    assert path.read_bytes() == b"old"


def test_targets_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("x")
    for path, message in [
        (str(tmp_path), "is a folder; choose a file name in it"),
        (str(tmp_path / "file" / "a.tif"), "cannot be written"),
        ("s3://bucket/a.tif", "choose a local path"),
    ]:
        with pytest.raises(TargetError, match=message):
            write_tiff(path, rows_of(probability()), shape=SHAPE, kind="mask")
