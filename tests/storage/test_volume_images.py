import os
import tempfile

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.shipped import shipped
from unet_ray.errors import VolumeError
from unet_ray.geometry.box import Box
from unet_ray.storage.volume import open_volume

# 1 to 12 sections: the names' numbers have one and two digits.
SHAPES = st.tuples(st.integers(1, 12), st.integers(1, 20), st.integers(1, 20))
STARTS = st.tuples(*[st.integers(-50, 50)] * 3)
SIDES = st.tuples(*[st.integers(1, 15)] * 3)


def save_sections(folder, stack, suffix):
    for number, section in enumerate(stack):
        path = f"{folder}/section{number}{suffix}"
        if suffix == ".png":
            Image.fromarray(section).save(path)
        else:
            tifffile.imwrite(path, section, compression="zlib", photometric="minisblack", metadata=None)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".TIFF"])
@pytest.mark.parametrize("pattern", ["", "/*", "/section[0-9]*.*"])
@settings(max_examples=8, deadline=None)
@given(shape=SHAPES, start=STARTS, sides=SIDES)
def test_voxels_are_where_they_belong(suffix, pattern, shape, start, sides):
    stack = np.arange(np.prod(shape), dtype=np.uint16).reshape(shape)
    box = Box.of_shape(sides, start)
    with tempfile.TemporaryDirectory() as folder:
        save_sections(folder, stack, suffix)
        volume = open_volume(folder + pattern)
        assert (volume.shape, volume.dtype) == (shape, np.dtype(np.uint16))
        before = [max(0, -a) for a in box.start]
        after = [max(0, b - n) for b, n in zip(box.stop, shape, strict=True)]
        expected = np.pad(stack, list(zip(before, after, strict=True)), mode="reflect")[box.shift(before).slices]
        np.testing.assert_array_equal(shipped(volume).read(box), expected)
        np.testing.assert_array_equal(volume.read(box), expected)


@pytest.mark.parametrize("dtype", [np.bool_, np.uint8, np.uint16])
def test_one_png_is_one_section(tmp_path, dtype):
    section = (np.arange(300).reshape(15, 20) * 217 % 65536).astype(dtype)
    Image.fromarray(section).save(tmp_path / "a.png")
    volume = open_volume(str(tmp_path / "a.png"))
    assert (volume.shape, volume.dtype) == ((1, 15, 20), np.dtype(dtype))
    np.testing.assert_array_equal(volume.read(Box((0, 2, 3), (1, 15, 20)))[0], section[2:, 3:])


def test_palettes_grey_values_or_indices(tmp_path):
    """A palette of greys is a way to store greys, one of colours to store labels."""
    indices = np.arange(12, dtype=np.uint8).reshape(3, 4)
    for name, colours in (
        ("grey", [[250 - 20 * i] * 3 for i in range(12)]),
        ("label", [[99, 0, i] for i in range(12)]),
    ):
        image = Image.fromarray(indices, mode="P")
        image.putpalette(np.ravel(colours).tolist())
        image.save(tmp_path / f"{name}.png")
    whole = Box((0, 0, 0), (1, 3, 4))
    np.testing.assert_array_equal(open_volume(str(tmp_path / "grey.png")).read(whole)[0], 250 - 20 * indices)
    np.testing.assert_array_equal(open_volume(str(tmp_path / "label.png")).read(whole)[0], indices)


def test_sections_beyond_pillows_limit(tmp_path, monkeypatch):
    """Image.open refuses large images as bombs; EM sections are large."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    Image.fromarray(np.zeros((30, 30), np.uint8)).save(tmp_path / "a.png")
    assert open_volume(str(tmp_path / "a.png")).read(Box((0, 0, 0), (1, 30, 30))).shape == (1, 30, 30)


def test_other_files_and_hidden_ones_are_left_alone(tmp_path):
    save_sections(tmp_path, np.zeros((2, 5, 5), np.uint8), ".png")
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "._section0.png").write_bytes(b"resource fork")
    assert open_volume(str(tmp_path)).shape == (2, 5, 5)


def test_a_name_with_brackets_is_a_name(tmp_path):
    save_sections(tmp_path, np.zeros((1, 5, 5), np.uint8), ".png")
    os.rename(tmp_path / "section0.png", tmp_path / "section[1].png")
    assert open_volume(str(tmp_path / "section[1].png")).shape == (1, 5, 5)


def test_identity_follows_names_and_content(tmp_path):
    stack = np.arange(100, dtype=np.uint8).reshape(4, 5, 5)
    save_sections(tmp_path, stack, ".png")
    first = open_volume(str(tmp_path)).identity()
    assert open_volume(str(tmp_path)).identity() == first
    os.rename(tmp_path / "section3.png", tmp_path / "section4.png")
    renamed = open_volume(str(tmp_path)).identity()
    assert renamed != first
    times = os.stat(tmp_path / "section4.png")
    stack[3] ^= 1
    Image.fromarray(stack[3]).save(tmp_path / "section4.png")
    os.utime(tmp_path / "section4.png", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert open_volume(str(tmp_path)).identity()["sample"] != renamed["sample"]


def colour(mode):
    return lambda folder: Image.new(mode, (5, 5)).save(folder / "a.png")


def two_shapes(folder):
    Image.new("L", (5, 5)).save(folder / "s1.png")
    Image.new("L", (5, 6)).save(folder / "s2.png")


def two_dtypes(folder):
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(folder / "s1.png")
    Image.fromarray(np.zeros((5, 5), np.uint16)).save(folder / "s2.png")


def two_kinds(folder):
    save_sections(folder, np.zeros((2, 5, 5), np.uint8), ".png")
    save_sections(folder, np.zeros((2, 5, 5), np.uint8), ".tif")


def truncated(folder):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (200, 200), np.uint8)).save(folder / "a.png")
    data = (folder / "a.png").read_bytes()
    (folder / "a.png").write_bytes(data[: len(data) // 2])


def stack_in_folder(folder):
    tifffile.imwrite(folder / "a.tif", np.zeros((2, 5, 5), np.uint8), photometric="minisblack")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "the folder .* holds no TIFF or PNG images but nothing"),
        (lambda folder: (folder / "a.txt").write_text("x"), "holds no TIFF or PNG images but 1 other files"),
        (two_kinds, "holds 2 TIFF and 2 PNG images; name one kind with a glob"),
        (two_shapes, r"s2\.png is 6 x 5 uint8 but .*s1\.png is 5 x 5 uint8; all sections"),
        (two_dtypes, r"s2\.png is 5 x 5 uint16 but .*s1\.png is 5 x 5 uint8"),
        (colour("RGB"), r"a\.png is RGB; convert it to grey"),
        (colour("RGBA"), r"a\.png is RGB with transparency"),
        (colour("LA"), r"a\.png is grey with transparency"),
        (truncated, r"a\.png is truncated: its end mark is missing"),
        (stack_in_folder, r"a\.tif has 2 pages, but each file of a folder is one section"),
        (lambda folder: (folder / "a.png").write_text("no image"), r"a\.png is not a PNG image"),
        (lambda folder: (folder / "a.tif").write_text("no image"), r"a\.tif is not a TIFF image"),
    ],
)
def test_folders_that_are_no_volume(tmp_path, make, message):
    make(tmp_path)
    with pytest.raises(VolumeError, match=message) as caught:
        open_volume(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_folders_own_name_may_hold_brackets(tmp_path):
    folder = tmp_path / "[2024] liver"
    for number, name in enumerate(("[2024] liver", "2 liver", "[2024] liver/below*")):
        (tmp_path / name).mkdir()
        save_sections(tmp_path / name, np.full((number + 1, 5, 5), number, np.uint8), ".png")
    for pattern, sections in (("*.png", 1), ("section[0-9].png", 1), ("below*/*.png", 3), ("**/section2.png", 1)):
        assert open_volume(f"{folder}/{pattern}").shape == (sections, 5, 5), pattern
    assert open_volume(f"{tmp_path}/[0-9] liver/*.png").shape == (2, 5, 5)


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
@pytest.mark.parametrize("asked", ["", "/{}", "/?.*"])
def test_a_pipe_is_no_image(tmp_path, name, asked, make_pipe):
    make_pipe(tmp_path / name)
    with pytest.raises(VolumeError, match=f"^{tmp_path}/{name} is a pipe or a device and no file; save what"):
        open_volume(str(tmp_path) + asked.format(name))


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sections_that_are_not_there_are_never_left_out(tmp_path, suffix, nobody):
    save_sections(tmp_path, np.zeros((3, 5, 5), np.uint8), suffix)
    section = tmp_path / f"section1{suffix}"
    both = (str(tmp_path), f"{tmp_path}/*{suffix}")
    assert [open_volume(path).shape for path in both] == [(3, 5, 5)] * 2

    def refused(said, *paths):
        for path in paths:
            with pytest.raises(VolumeError, match=f"^cannot (read|find) {said}$"):
                open_volume(path)

    section.chmod(0)
    tmp_path.chmod(0o755)
    with nobody():
        # To root's tests the folder above is closed as well, in which a glob finds nothing.
        refused(r"\S+: permission denied; ask for read access to it", str(tmp_path), str(section))
    section.unlink()
    section.symlink_to(tmp_path / "gone")
    refused(f"{section}: the link leads nowhere; mend it, for sections are not skipped", *both)
    refused(f"{section}: it is a link to {tmp_path}/gone, which is not there; mend the link", str(section))
    section.unlink()
    section.mkdir()
    refused(f"{section}: it is a folder and no image; rename it or move it elsewhere", str(tmp_path))
    assert open_volume(both[1]).shape == (2, 5, 5)


def test_a_volume_in_a_folder_that_may_not_be_entered(tmp_path, nobody):
    (tmp_path / "locked" / "below").mkdir(parents=True)
    save_sections(tmp_path / "locked" / "below", np.zeros((2, 5, 5), np.uint8), ".tif")
    assert open_volume(f"{tmp_path}/locked/below").shape == (2, 5, 5)
    (tmp_path / "locked").chmod(0)
    with nobody():
        for path in (tmp_path / "locked", tmp_path / "locked" / "a.tif", tmp_path / "locked" / "below" / "a.tif"):
            with pytest.raises(
                VolumeError, match=f"^cannot read {path}: permission denied; ask for read access to it$"
            ):
                open_volume(str(path))
    (tmp_path / "locked").chmod(0o700)


def test_glob_of_something_else(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(VolumeError, match=r"a\.txt is neither \.tif, \.tiff nor \.png; give a pattern"):
        open_volume(str(tmp_path / "*"))


def test_damaged_png_is_named_at_read(tmp_path):
    save_sections(tmp_path, np.full((2, 50, 50), 7, np.uint8), ".png")
    data = bytearray((tmp_path / "section1.png").read_bytes())
    at = data.index(b"IDAT")
    data[at + 6 : at + 12] = b"\xff" * 6
    (tmp_path / "section1.png").write_bytes(data)
    volume = open_volume(str(tmp_path))
    with pytest.raises(VolumeError, match=r"section1\.png cannot be decoded .*; the file is damaged"):
        volume.read(Box((0, 0, 0), (2, 9, 9)))


def test_non_finite_section_is_named_by_file(tmp_path):
    stack = np.zeros((3, 5, 5), np.float32)
    stack[1, 2, 2] = np.nan
    save_sections(tmp_path, stack, ".tif")
    with pytest.raises(VolumeError, match=r"section 1 of .* \(section1\.tif\) has NaN"):
        open_volume(str(tmp_path)).read(Box((0, 0, 0), (3, 5, 5)))
