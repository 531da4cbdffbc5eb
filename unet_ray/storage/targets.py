"""Where outputs may be written: a TIFF as a local file that is no input and lies in none, nor in another output.

A folder that is written may lie in an input's, unless what is written there is then read as a part of the input.
"""

import fnmatch
import glob
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from unet_ray.errors import TargetError
from unet_ray.storage.objects import absolute
from unet_ray.storage.plain_file import plain
from unet_ray.storage.volume import ZARR_METADATA
from unet_ray.storage.volume_images import literal_folders


def require_file_target(path: str, name: str = "", such_as: str = "mask.tif") -> Path:
    """The path as a local file that can be written, as far as that can be told without writing it.

    Args:
        path: as it was given.
        name: how an error calls it, such as the flag; nothing: by its path alone.
        such_as: a file's name that an error proposes.

    Raises:
        TargetError: it is a URL, a folder, or in a place where no file can be made.
    """
    said = f"{name} {path}".strip()
    if "://" in path:
        raise TargetError(f"{said} cannot take a TIFF, which is written as a local file; choose a local path")
    target = Path(path)
    if target.is_dir() or path.endswith("/"):
        raise TargetError(f"{said} is a folder; choose a file name in it, such as {target / such_as}")
    if target.exists() and not target.is_file():
        raise TargetError(f"{said} is a pipe or a device, in whose place a file would be put; choose another path")
    there = next(folder for folder in target.absolute().parents if os.path.exists(folder))
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        found = "may not be written to" if there.is_dir() else "is a file"
        raise TargetError(f"{said} cannot be written, for {there} {found}; choose another path")
    return target


def check_tiff_targets(
    targets: Mapping[str, str | None], inputs: Sequence[tuple[str, str | None]], outputs: Sequence[str]
) -> None:
    """Refuse, before the work, what would be written last and could then not be, or would harm something.

    Args:
        targets: TIFF files to write, by flag; None: not asked for.
        inputs: flag and path, glob or URL of all that is read; None: not given.
        outputs: folders that are written.

    Raises:
        TargetError: a target is no file that can be written, would replace an input, become a part of one or of an
            output, or is another target's, too.
    """
    places: dict[str, str] = {}
    for flag, path in targets.items():
        if path is None:
            continue
        require_file_target(path, flag)
        place = os.path.realpath(path)
        for other, given in inputs:
            if given is not None and (why := _harm(place, given)):
                raise TargetError(f"{flag} {path} would {why} {other} {given}; choose another path")
        for output in filter(_is_local, outputs):
            if _is_in(place, folder := os.path.realpath(absolute(output))) or _is_in(folder, place):
                raise TargetError(f"{flag} {path} would be in the way of output {output}; choose a path outside of it")
        if place in places:
            raise TargetError(f"{places[place]} and {flag} both name {path}; give each a file of its own")
        places[place] = flag


def check_folder_target(flag: str, folder: str, makes: Sequence[str], inputs: Sequence[tuple[str, str | None]]) -> None:
    """Refuse a folder to write whose files would be read, or listed, as a part of an input, or cannot be put.

    Args:
        flag: of the folder.
        folder: path or URL.
        makes: what will be in it, such as pictures, which a folder or glob of images would take for sections.
        inputs: flag and path, glob or URL of all that is read; None: not given.

    Raises:
        TargetError: it is so.
    """
    if not _is_local(folder):
        return
    for name in makes:
        place = os.path.realpath(os.path.join(absolute(folder), name))
        if os.path.isdir(place):
            raise TargetError(
                f"{flag} {folder} has a folder {name}, where a file of this name would be put; remove or rename it, or "
                "choose another path"
            )
        for other, given in inputs:
            if given is not None and (_in_array(place, given) or _harm(place, given, in_groups=True)):
                raise TargetError(f"{flag} {folder} would become a part of {other} {given}; choose another path")


def _in_array(place: str, given: str) -> bool:
    """Whether a zarr array, whose listing tells one content from another, is at an input's path and has the place."""
    if not _is_local(given):
        return False
    source = os.path.realpath(absolute(given))
    return any(_is_in(str(folder), source) and _is_array(folder) for folder in Path(place).parents)


def _is_array(folder: Path) -> bool:
    try:
        with open(folder / "zarr.json", "rb", opener=plain) as file:
            return bool(json.load(file)["node_type"] == "array")
    except OSError:
        return (folder / ".zarray").exists()
    except (ValueError, TypeError, KeyError):  # whoever opens the input tells what is wrong with it
        return False


def _harm(place: str, given: str, in_groups: bool = False) -> str:
    """What a file at the real path ``place`` would do to an input, nothing where it is apart.

    With ``in_groups`` zarr holds other things beside what is read of it.
    """
    if not _is_local(given):
        return ""
    source = os.path.realpath(absolute(given))
    if place == source:
        return "replace"
    if os.path.isdir(source):
        is_zarr = any(os.path.exists(os.path.join(source, name)) for name in ZARR_METADATA)
        # A folder's images are its sections, those in folders below it are not.
        whole = is_zarr and not in_groups
        return "become a part of" if _is_in(place, source) and (whole or os.path.dirname(place) == source) else ""
    found = glob.has_magic(source) and not os.path.exists(source) and _matches(place, literal_folders(source))
    return "become a part of" if found else ""


def _matches(place: str, pattern: str) -> bool:
    """Whether `glob` would find the path.

    >>> [_matches("/a/b/s1.tif", pattern) for pattern in ("/a/b/*.tif", "/a/*/s?.tif", "/a/**/*.tif", "/a/*.tif")]
    [True, True, True, False]
    """
    if "**" in pattern:
        return fnmatch.fnmatchcase(place, pattern.replace("**/", "*"))
    parts, wanted = place.split(os.sep), pattern.split(os.sep)
    return len(parts) == len(wanted) and all(map(fnmatch.fnmatchcase, parts, wanted))


def _is_in(place: str, folder: str) -> bool:
    return f"{place}{os.sep}".startswith(f"{folder}{os.sep}")


def _is_local(path: str) -> bool:
    return "://" not in path or path.startswith("file://")
