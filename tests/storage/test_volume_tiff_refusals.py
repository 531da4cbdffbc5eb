"""TIFFs that are truncated, damaged, of another kind or not there: told in a sentence, at opening where it can be."""

import numpy as np
import pytest
import tifffile

from tests.storage.test_volume_tiff import TIFF_WRITERS, flat_index, write
from unet_ray.errors import VolumeError
from unet_ray.geometry.box import Box
from unet_ray.storage.volume import open_volume


@pytest.mark.parametrize("kind", ["plain", "deflate tiles", "big", "imagej", "imagej one directory", "ome"])
def test_every_truncation_is_found_at_open(tmp_path, kind):
    path = tmp_path / "stack.tif"
    write(path, flat_index((3, 100, 100)), **TIFF_WRITERS[kind])
    whole = path.read_bytes()
    with tifffile.TiffFile(path) as tif:
        needed = tif.series[0].dataoffset or max(int(page.dataoffsets[-1]) for page in tif.pages)
        needed += tif.series[0].nbytes if tif.series[0].dataoffset else int(tif.pages[-1].databytecounts[-1])
    for share in (0.99, 0.8, 0.6, 0.45, 0.2, 0.02):
        path.write_bytes(whole[: int(needed * share)])
        with pytest.raises(VolumeError, match=r"stack\.tif is (truncated: page [0-2] needs|a damaged TIFF)"):
            open_volume(str(path))


def test_truncation_names_the_first_bad_page(tmp_path):
    path = tmp_path / "stack.tif"
    write(path, flat_index((3, 40, 50)))
    with tifffile.TiffFile(path) as tif:
        cut = tif.pages[1].dataoffsets[0] + 10
    # tifffile writes the directories of pages 1 and 2 behind the voxels, where the cut takes them.
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(VolumeError, match=r"page 1 needs bytes up to .* and the file ends at"):
        open_volume(str(path))


def corrupt(path):
    write(path, flat_index((3, 64, 64)), compression="zlib")
    with tifffile.TiffFile(path) as tif:
        start, length = tif.pages[1].dataoffsets[0], tif.pages[1].databytecounts[0]
    data = bytearray(path.read_bytes())
    data[start : start + length] = bytes(length)
    path.write_bytes(data)


def circle(path):
    write(path, flat_index((1, 8, 8)), metadata=None)
    with tifffile.TiffFile(path) as tif:
        offset = tif.pages[0].offset
    data = bytearray(path.read_bytes())
    count = int.from_bytes(data[offset : offset + 2], "little")
    data[offset + 2 + 12 * count :][:4] = b""
    data[offset + 2 + 12 * count : offset + 6 + 12 * count] = offset.to_bytes(4, "little")
    path.write_bytes(data)


def mixed(path):
    with tifffile.TiffWriter(path) as tif:
        tif.write(flat_index((20, 20)))
        tif.write(flat_index((20, 21)))


def image(*shape, **options):
    return lambda path: write(path, np.zeros(shape, options.pop("dtype", np.uint8)), **options)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (image(20, 20, 3, photometric="rgb"), "page 0 of .* has 3 samples per pixel .*; convert it to grey"),
        (
            image(3, 20, 20, photometric="rgb", planarconfig="separate"),
            "3 colour planes; .* photometric='minisblack'",
        ),
        (image(3, 20, 20, dtype=np.complex64), "complex64 voxels; convert it"),
        (mixed, "page 1 of .* is 20 x 21 uint16 but page 0 is 20 x 20 uint16"),
        (
            image(4, 2, 20, 20, imagej=True, metadata={"axes": "ZCYX"}),
            "is a hyperstack of 4 slices, 2 channels; choose one channel",
        ),
        (
            image(2, 20, 20, ome=True, photometric="minisblack", metadata={"axes": "CYX"}),
            "hyperstack of 2 channels",
        ),
        (circle, "its pages form a circle after page 0"),
        (lambda path: path.write_bytes(b"II*\0\0\0\0\0"), "is a TIFF without pages"),
        (lambda path: path.write_bytes(b"II*\0\xff\xff"), "is truncated: page 0 needs"),
        (lambda path: path.write_bytes(b"MM\0*\0\0\0\x08\0\x05"), "is truncated: page 0 needs"),
        (
            lambda path: path.write_bytes(b"hello world"),
            "is not an image that can be read but something else",
        ),
        (lambda path: path.write_bytes(b""), "not an image that can be read but an empty file"),
        (lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n1234"), "but an HDF5 file; give a TIFF or PNG"),
    ],
)
def test_what_cannot_be_read_is_refused_at_open(tmp_path, make, message):
    path = tmp_path / "bad.tif"
    make(path)
    with pytest.raises(VolumeError, match=message) as caught:
        open_volume(str(path))
    assert "\n" not in str(caught.value)


def test_damaged_section_is_named_at_read(tmp_path):
    corrupt(tmp_path / "bad.tif")
    volume = open_volume(str(tmp_path / "bad.tif"))
    volume.read(Box((0, 0, 0), (1, 9, 9)))
    with pytest.raises(VolumeError, match=r"section 1 of .*bad\.tif cannot be decoded .*; the file is damaged"):
        volume.read(Box((0, 0, 0), (3, 9, 9)))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_section_is_named(tmp_path, bad):
    stack = flat_index((4, 8, 8), np.float32)
    stack[2, 3, 4] = bad
    write(tmp_path / "a.tif", stack)
    volume = open_volume(str(tmp_path / "a.tif"))
    volume.read(Box((0, 0, 0), (2, 8, 8)))
    volume.read(Box((2, 4, 0), (3, 8, 8)))
    with pytest.raises(VolumeError, match=r"section 2 of .*a\.tif has NaN or infinite voxels"):
        volume.read(Box((1, 0, 0), (4, 8, 8)))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("stak.tif", r"cannot find .*stak\.tif; did you mean .*stack\.tif\?"),
        ("zzz", "cannot find .*zzz; check the path"),
        ("no/stack.tif", "the folder .*/no is not there"),
        ("*.png", r"no file matches .*\*\.png"),
    ],
)
def test_missing_paths(tmp_path, name, message):
    (tmp_path / "stack.tif").write_bytes(b"")
    with pytest.raises(VolumeError, match=message):
        open_volume(str(tmp_path / name))


def test_an_array_name_needs_a_group(tmp_path):
    write(tmp_path / "a.tif", flat_index((2, 8, 8)))
    with pytest.raises(VolumeError, match=r"array raw is asked for, but .* is not a zarr group"):
        open_volume(str(tmp_path / "a.tif"), array="raw")
