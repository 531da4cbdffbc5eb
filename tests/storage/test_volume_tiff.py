import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.shipped import shipped
from unet_ray.errors import VolumeError
from unet_ray.geometry.box import Box, mirror_index
from unet_ray.storage.segment_cache import SegmentCache
from unet_ray.storage.volume import mirrored, open_volume

TIFF_WRITERS = {
    "plain": {},
    "strips": {"rowsperstrip": 7},
    "deflate": {"compression": "zlib", "rowsperstrip": 5},
    "deflate, one strip": {"compression": "zlib"},
    "predictor": {"compression": "zlib", "predictor": 2},
    "LZW": {"compression": "lzw"},
    "LZW tiles with predictor": {"compression": "lzw", "predictor": 2, "tile": (16, 32)},
    "zstd": {"compression": "zstd"},
    "lzma tiles": {"compression": "lzma", "tile": (16, 32)},
    "tiles": {"tile": (16, 16)},
    "deflate tiles": {"tile": (32, 16), "compression": "zlib"},
    "big": {"bigtiff": True},
    "big endian": {"byteorder": ">"},
    "big endian deflate": {"byteorder": ">", "compression": "zlib", "tile": (16, 16)},
    "imagej": {"imagej": True, "metadata": {"axes": "ZYX"}},
    "imagej one directory": {"imagej": True, "metadata": {"axes": "ZYX"}, "truncate": True},
    "one directory": {"truncate": True},
    "ome": {"ome": True, "metadata": {"axes": "ZYX"}},
    "times": {"ome": True, "metadata": {"axes": "TYX"}},
    "bare": {"metadata": None},
}


def flat_index(shape, dtype=np.uint16):
    """Voxels that know their place."""
    return np.arange(np.prod(shape), dtype=dtype).reshape(shape)


def write(path, stack, **options):
    """What is written: tifffile takes a stack of 3 or 4 sections for colour planes unless told otherwise."""
    tifffile.imwrite(path, stack, **({"photometric": "minisblack"} | options))


def reflect_oracle(stack, box):
    """np.pad of the whole volume, then an ordinary slice."""
    before = [max(0, -a) for a in box.start]
    after = [max(0, b - n) for b, n in zip(box.stop, stack.shape, strict=True)]
    padded = np.pad(stack, list(zip(before, after, strict=True)), mode="reflect")
    return padded[box.shift(before).slices]


@st.composite
def shapes_and_boxes(draw, reach=90):
    # Not 1 in x: tifffile's writer would take (z, y, 1) for sections of (z, y) with one sample.
    shape = tuple(draw(st.integers(a, n)) for a, n in ((1, 4), (1, 40), (2, 50)))
    start = tuple(draw(st.integers(-reach, reach)) for _ in range(3))
    sides = tuple(draw(st.integers(1, 20)) for _ in range(3))
    return shape, Box.of_shape(sides, start)


@pytest.mark.parametrize("kind", TIFF_WRITERS)
@settings(max_examples=15, deadline=None)
@given(case=shapes_and_boxes())
@example(case=((3, 33, 17), Box((-40, -200, -90), (-35, -100, 90))))
@example(case=((4, 40, 50), Box((1, 8, 3), (3, 31, 49))))
@example(case=((1, 1, 2), Box((-2, -2, -2), (2, 2, 2))))
def test_tiff_voxels_are_where_they_belong(kind, case):
    shape, box = case
    stack = flat_index(shape)
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/stack.tif"
        write(path, stack, **TIFF_WRITERS[kind])
        volume = open_volume(path)
        assert (volume.shape, volume.dtype) == (shape, np.dtype(np.uint16))
        got = shipped(volume).read(box)
        assert got.dtype == volume.dtype
        assert got.flags.c_contiguous
        np.testing.assert_array_equal(got, reflect_oracle(stack, box))
        np.testing.assert_array_equal(volume.read(box), got)


@given(st.integers(1, 9), st.integers(-50, 50), st.integers(0, 30))
def test_mirrored_is_mirror_index(side, start, length):
    expected = [mirror_index(i, side) for i in range(start, start + length)]
    assert mirrored(start, start + length, side).tolist() == expected


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8", "?"])
@pytest.mark.parametrize("options", [{}, {"compression": "zlib", "tile": (16, 16)}])
def test_dtypes(tmp_path, dtype, options):
    stack = (flat_index((3, 21, 19), np.float64) % 120).astype(dtype)
    write(tmp_path / "a.tif", stack, **options)
    volume = open_volume(str(tmp_path / "a.tif"))
    assert volume.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(volume.read(Box((1, 2, 3), (3, 21, 10))), stack[1:, 2:, 3:10])


def test_zero_is_white_is_not_applied(tmp_path):
    """As tifffile reads them; it writes bool arrays with 0 = white by itself."""
    mask = flat_index((2, 9, 11)) % 3 == 0
    tifffile.imwrite(tmp_path / "a.tif", mask)
    assert tifffile.TiffFile(tmp_path / "a.tif").pages[0].photometric == tifffile.PHOTOMETRIC.MINISWHITE
    volume = open_volume(str(tmp_path / "a.tif"))
    np.testing.assert_array_equal(volume.read(Box((0, 0, 0), (2, 9, 11))), mask)


def test_pages_written_one_by_one_are_one_stack(tmp_path):
    stack = flat_index((4, 9, 11))
    with tifffile.TiffWriter(tmp_path / "a.tif") as tif:
        for section in stack:
            tif.write(section, photometric="minisblack")
    assert len(tifffile.TiffFile(tmp_path / "a.tif").series) == 4
    volume = open_volume(str(tmp_path / "a.tif"))
    np.testing.assert_array_equal(volume.read(Box((0, 0, 0), (4, 9, 11))), stack)


@pytest.mark.parametrize("compression", [None, "packbits", "tiff_adobe_deflate"])
def test_pages_of_another_writer(tmp_path, compression):
    """Pillow's libtiff as an independent writer; its pages may differ in compression too."""
    stack = flat_index((3, 30, 20), np.int64).astype(np.uint8)
    images = [Image.fromarray(section) for section in stack]
    images[0].save(tmp_path / "a.tif", save_all=True, append_images=images[1:], compression=compression)
    volume = open_volume(str(tmp_path / "a.tif"))
    np.testing.assert_array_equal(volume.read(Box((0, 0, 0), (3, 30, 20))), stack)


def test_pages_of_different_compression(tmp_path):
    stack = flat_index((2, 30, 20))
    with tifffile.TiffWriter(tmp_path / "a.tif") as tif:
        tif.write(stack[0], compression="zlib", rowsperstrip=4)
        tif.write(stack[1], tile=(16, 16))
    volume = open_volume(str(tmp_path / "a.tif"))
    np.testing.assert_array_equal(volume.read(Box((0, 0, 0), (2, 30, 20))), stack)


def test_only_strips_under_the_box_are_decoded(tmp_path, monkeypatch):
    path = str(tmp_path / "a.tif")
    stack = flat_index((2, 64, 20))
    write(path, stack, compression="zlib", rowsperstrip=4)
    write(str(tmp_path / "b.tif"), stack)
    with tifffile.TiffFile(path) as tif:
        starts = tif.pages[1].dataoffsets
    for name, expected in (("a.tif", {starts[2], starts[3]}), ("b.tif", None)):
        volume = open_volume(str(tmp_path / name))
        volume.read(Box((1, 0, 0), (2, 1, 1)))
        source = volume._pages.source
        seen = []
        original = source.read_at
        monkeypatch.setattr(
            source,
            "read_at",
            lambda o, n, original=original, seen=seen: seen.append((o, n)) or original(o, n),
        )
        volume.read(Box((1, 9, 2), (2, 15, 8)))
        if expected is not None:
            assert {offset for offset, _ in seen} == expected
        else:
            # Uncompressed and one strip: still only the six rows.
            assert [n for _, n in seen] == [6 * 20 * 2]


def test_threads_read_the_same(tmp_path):
    stack = flat_index((6, 100, 90), np.uint32)
    write(tmp_path / "a.tif", stack, compression="zlib", tile=(16, 16))
    volume = open_volume(str(tmp_path / "a.tif"))
    boxes = [Box((z, y, x), (z + 2, y + 40, x + 30)) for z in range(5) for y in (0, 33, 60) for x in (0, 17, 60)]
    wrong = []

    def work(mine):
        for box in mine:
            if not np.array_equal(volume.read(box), stack[box.slices]):
                wrong.append(box)

    threads = [threading.Thread(target=work, args=(boxes[n::6],)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_cache_is_bounded_and_keeps_the_latest():
    cache = SegmentCache(max_bytes=100)
    for number in range(10):
        cache.get(number, lambda: np.zeros(40, np.uint8))
    assert sorted(cache) == [8, 9]
    cache.get("large", lambda: np.zeros(1000, np.uint8))
    assert list(cache) == ["large"]
    again = cache.get("large", lambda: pytest.fail("decoded twice"))
    assert again.nbytes == 1000


@pytest.mark.parametrize(
    ("options", "voxel", "pixel"),
    [
        (
            {
                "imagej": True,
                "resolution": (1 / 0.004, 1 / 0.005),
                "metadata": {"axes": "ZYX", "spacing": 0.05, "unit": "um"},
            },
            (50.0, 5.0, 4.0),
            (5.0, 4.0),
        ),
        ({"imagej": True, "metadata": {"axes": "ZYX", "spacing": 2.0, "unit": "pixel"}}, None, None),
        (
            {
                "ome": True,
                "metadata": {
                    "axes": "ZYX",
                    "PhysicalSizeX": 40,
                    "PhysicalSizeXUnit": "Å",
                    "PhysicalSizeY": 5,
                    "PhysicalSizeYUnit": "nm",
                    "PhysicalSizeZ": 0.05,
                },
            },
            (50.0, 5.0, 4.0),
            (5.0, 4.0),
        ),
        ({"resolution": (2_500_000, 2_000_000), "resolutionunit": "CENTIMETER"}, None, (5.0, 4.0)),
        ({"resolution": (300, 300), "resolutionunit": "INCH"}, None, None),
        ({}, None, None),
    ],
)
def test_voxel_size(tmp_path, options, voxel, pixel):
    write(tmp_path / "a.tif", flat_index((3, 4, 5)), **options)
    volume = open_volume(str(tmp_path / "a.tif"))
    assert volume.voxel_size_nm == (pytest.approx(voxel) if voxel else None)
    assert volume.pixel_size_nm == (pytest.approx(pixel) if pixel else None)


def test_identity_tells_content_apart_and_not_paths(tmp_path):
    stack = flat_index((70, 30, 20))
    other = stack.copy()
    other[50, 1, 1] += 1
    for name, voxels in (("a", stack), ("b", stack), ("c", other)):
        write(tmp_path / f"{name}.tif", voxels, compression="zlib", predictor=2)
    identities = [open_volume(str(tmp_path / f"{n}.tif")).identity() for n in "abc"]
    for identity in identities:
        assert int(identity.pop("version")) > 0
    assert identities[0] == identities[1]
    assert identities[0] != identities[2]
    digests = [[open_volume(str(tmp_path / f"{n}.tif")).section_digest(z) for z in (49, 50)] for n in "abc"]
    assert digests[0] == digests[1]
    assert (digests[0][0] == digests[2][0], digests[0][1] == digests[2][1]) == (True, False)


def test_section_digest_does_not_depend_on_storage(tmp_path, monkeypatch):
    stack = flat_index((2, 30, 20))
    write(tmp_path / "a.tif", stack, byteorder=">")
    write(tmp_path / "b.tif", stack, compression="zlib", tile=(16, 16))
    first = open_volume(str(tmp_path / "a.tif")).section_digest(1)
    # Band by band, too.
    monkeypatch.setattr("unet_ray.storage.volume.DIGEST_BYTES", 100)
    assert open_volume(str(tmp_path / "b.tif")).section_digest(1) == first
    with pytest.raises(IndexError, match="section 2 of 2"):
        open_volume(str(tmp_path / "a.tif")).section_digest(2)


def test_order_digest_does_not_depend_on_grey_levels(tmp_path, monkeypatch):
    """Not even on how many bits a rank needs, since that follows from how many levels there are."""
    levels = np.random.default_rng(0).permutation(300).reshape(1, 15, 20)
    stored = {
        "u2": levels.astype(np.uint16),
        "far": (levels * 200 + 9).astype(np.uint16),
        "i4": (levels * 1000 - 7).astype(np.int32),
        "f4": np.sqrt(levels + 1).astype(np.float32),
        "dark for bright": (60000 - levels).astype(np.uint16),
        "swapped": np.swapaxes(levels, 1, 2).reshape(levels.shape).astype(np.uint16),
        "merged": (levels // 2).astype(np.uint16),
        "one level": np.full_like(levels, 7).astype(np.uint16),
    }
    for name, values in stored.items():
        write(tmp_path / f"{name}.tif", values)
    found = {name: open_volume(str(tmp_path / f"{name}.tif")).order_digest(0) for name in stored}
    assert len({found[name] for name in ("u2", "far", "i4", "f4", "dark for bright")}) == 1
    assert len({found[name] for name in ("u2", "swapped", "merged", "one level")}) == 4
    assert found["one level"] is None
    monkeypatch.setattr("unet_ray.storage.volume.DIGEST_BYTES", 100)
    assert open_volume(str(tmp_path / "f4.tif")).order_digest(0) == found["u2"]  # band by band, too
    with pytest.raises(IndexError, match="section 1 of 1"):
        open_volume(str(tmp_path / "u2.tif")).order_digest(1)


def test_a_copied_imagej_description_is_not_a_stack(tmp_path):
    """One section cut out of an ImageJ stack by a program that kept the description."""
    description = "ImageJ=1.54f\nimages=30\nslices=30\nloop=false\n"
    section = flat_index((1, 20, 20))
    write(tmp_path / "a.tif", section[0], description=description, metadata=None)
    volume = open_volume(str(tmp_path / "a.tif"))
    np.testing.assert_array_equal(volume.read(Box((0, 0, 0), (1, 20, 20))), section)


def test_opening_and_reading_keep_little_in_memory(tmp_path):
    import tracemalloc

    path = tmp_path / "a.tif"
    write(path, np.zeros((40, 512, 512), np.uint8), metadata=None)
    tracemalloc.start()
    volume = open_volume(str(path))
    for z in range(40):
        volume.read(Box((z, 0, 0), (z + 1, 512, 512)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000  # the stack has 10.5 million bytes


def test_object_source_reads_like_a_file(tmp_path):
    """The same TIFF through an object store (here obstore's of the local disk)."""
    from unet_ray.storage.byte_source import ObjectFile
    from unet_ray.storage.volume_tiff import TiffPages

    stack = flat_index((3, 30, 20))
    write(tmp_path / "a.tif", stack, compression="zlib", tile=(16, 16))
    url = (tmp_path / "a.tif").as_uri()
    pages = shipped(TiffPages("a.tif", url))
    assert isinstance(pages.source, ObjectFile)
    np.testing.assert_array_equal(pages.read(2, Box((2, 3, 4), (3, 30, 20)), SegmentCache()), stack[2, 3:, 4:])
    assert ObjectFile(url).size == (tmp_path / "a.tif").stat().st_size
    with pytest.raises(VolumeError, match=r"cannot find .*nothing.tif; check bucket and key"):
        TiffPages("b.tif", (tmp_path / "nothing.tif").as_uri())


@pytest.mark.real_data
def test_isbi_stack(shared_data: Path):
    path = shared_data / "isbi2012" / "train-volume.tif"
    volume = open_volume(str(path))
    assert (volume.shape, volume.dtype, volume.pixel_size_nm) == (
        (30, 512, 512),
        np.dtype(np.uint8),
        (4.0, 4.0),
    )
    box = Box((28, -94, 300), (32, 478, 700))
    np.testing.assert_array_equal(volume.read(box), reflect_oracle(tifffile.imread(path), box))
