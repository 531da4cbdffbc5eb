"""Outputs that would harm what is read or written, or could not be written, are refused before the work."""

import contextlib
import os
import re
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import zarr

from unet_ray.errors import TargetError
from unet_ray.storage.targets import check_folder_target, check_tiff_targets


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two folders of sections, one of them within the other, a link to it, a stack, a zarr group, a file and a pipe."""
    (tmp_path / "sections" / "below").mkdir(parents=True)
    for name in ("sections/s1.tif", "sections/s2.tif", "sections/below/s1.tif", "s[1].tif", "stack.tif", "file"):
        (tmp_path / name).write_text("x")
    (tmp_path / "[a]").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "sections")
    zarr.create_group(str(tmp_path / "raw.zarr"))
    os.mkfifo(tmp_path / "pipe")
    return tmp_path


@pytest.mark.parametrize(
    ("target", "source", "why"),
    [
        ("stack.tif", "stack.tif", "--tiff .* would replace --volume .*stack.tif; choose another path"),
        ("sections/../stack.tif", "file://FOLDER/stack.tif", "would replace"),
        ("link/s1.tif", "sections/s1.tif", "would replace"),
        ("link/mask.tif", "sections", "would become a part of --volume"),
        ("sections/mask.tif", "link/", "would become a part of"),
        ("sections/s3.tif", "link/s*.tif", "would become a part of"),
        ("sections/below/further/s3.tif", "sections/**/*.tif", "would become a part of"),
        ("raw.zarr/deep/mask.tif", "raw.zarr", "would become a part of"),
        ("[a]/mask.tif", "[a]/*.tif", "would become a part of"),
        ("new/out.zarr/mask.tif", "stack.tif", "in the way of output .*out.zarr; choose a path outside"),
        ("new", "stack.tif", "in the way of output"),
        ("sections", "stack.tif", "is a folder; choose a file name in it"),
        ("later/", "stack.tif", "is a folder; choose a file name in it"),
        ("file/mask.tif", "stack.tif", "cannot be written, for .*file is a file"),
        ("pipe", "stack.tif", "--tiff .*/pipe is a pipe or a device, in whose place a file would be put; choose"),
        ("s3://bucket/mask.tif", "stack.tif", "choose a local path"),
        ("file:///mask.tif", "stack.tif", "choose a local path"),
    ],
)
def test_refused(folder: Path, target: str, source: str, why: str) -> None:
    tiff = target if "://" in target else f"{folder}/{target}"
    given = source.replace("FOLDER", str(folder)) if "://" in source else f"{folder}/{source}"
    before = sorted(folder.rglob("*"))
    with pytest.raises(TargetError, match=why):
        check_tiff_targets({"--tiff": tiff}, [("--volume", given), ("--mask", None)], [f"{folder}/new/out.zarr"])
    assert sorted(folder.rglob("*")) == before


def test_a_folder_without_permission_is_refused(nobody: Callable[[], AbstractContextManager[None]]) -> None:
    with tempfile.TemporaryDirectory() as closed:  # root's tests have a folder that nobody else may enter
        os.chmod(closed, 0o555)
        why = f"--tiff {closed}/new/mask.tif cannot be written, for {closed} may not be written to; choose another path"
        with nobody(), pytest.raises(TargetError, match=f"^{why}$"):
            check_tiff_targets({"--tiff": f"{closed}/new/mask.tif"}, [], [])


def test_two_files_of_one_name_are_refused(folder: Path) -> None:
    targets: dict[str, str | None] = {
        "--tiff": f"{folder}/link/m.tif",
        "--probability-tiff": f"{folder}/sections/m.tif",
    }
    with pytest.raises(TargetError, match="--tiff and --probability-tiff both name"):
        check_tiff_targets(targets, [], [])


@pytest.mark.parametrize(
    ("target", "source"),
    [
        ("mask.tif", "stack.tif"),
        ("new/mask.tif", "stack.tif"),
        ("new/out.zarr.tif", "raw.zarr"),
        ("sections/below/mask.tif", "sections"),
        ("sections/below/mask.tif", "sections/*.tif"),
        ("sections/below/mask.tif", "sections/*"),
        ("sections/mask.tif", "sections/s*.tif"),
        ("s1.tif", "s[1].tif"),  # which is a file's own name
        ("[a]/mask.tif", "[a]/s*.tif"),
        ("sections/mask.tif", "s3://bucket/sections"),
        ("raw.zarr.tif", "raw.zarr"),
    ],
)
def test_beside_it_all_is_well(folder: Path, target: str, source: str) -> None:
    given = source if "://" in source else f"{folder}/{source}"
    targets: dict[str, str | None] = {"--tiff": f"{folder}/{target}", "--probability-tiff": None}
    check_tiff_targets(targets, [("--volume", given)], [f"{folder}/new/out.zarr", "s3://bucket/out.zarr"])


@pytest.mark.parametrize(
    ("target", "source", "harmful"),
    [
        ("sections", "sections", True),
        ("link", "sections", True),
        ("sections", "sections/*.png", True),
        ("sections/new", "sections/**/*.png", True),
        ("sections/new", "sections", False),
        ("sections", "sections/s*.tif", False),
        ("new", "sections", False),
        # A group may hold more than what is read of it, an array may not.
        ("raw.zarr/new", "raw.zarr", False),
        ("raw.zarr/0/new", "raw.zarr", True),
        ("raw.zarr/0/new", "raw.zarr/0", True),
        ("old.zarr/new", "old.zarr", True),
        ("s3://bucket/sections", "sections", False),
    ],
)
def test_a_folder_whose_pictures_would_be_sections(folder: Path, target: str, source: str, harmful: bool) -> None:
    zarr.create_array(str(folder / "raw.zarr"), name="0", shape=(1, 2, 3), dtype="u1")
    zarr.create_array(str(folder / "old.zarr"), shape=(1, 2, 3), dtype="u1", zarr_format=2)
    report = target if "://" in target else f"{folder}/{target}"
    why = f"^--report {report} would become a part of --labels {re.escape(f'{folder}/{source}')}; choose another path$"
    with pytest.raises(TargetError, match=why) if harmful else contextlib.nullcontext():
        check_folder_target(
            "--report", report, ("a.txt", "a.png"), [("--images", None), ("--labels", f"{folder}/{source}")]
        )


def test_a_folder_in_the_place_of_a_file_is_told_before_the_work(folder: Path) -> None:
    (folder / "report" / "metrics.json").mkdir(parents=True)
    why = (
        rf"^--report {folder}/report has a folder metrics.json, where a file .* be put; remove or rename it, or choose"
    )
    with pytest.raises(TargetError, match=why):
        check_folder_target("--report", f"{folder}/report", ("page.html", "metrics.json"), [("--images", None)])
    check_folder_target("--report", f"{folder}/report", ("page.html",), [("--images", None)])
