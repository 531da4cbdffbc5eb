"""Folders and globs of 2-D images as volumes, a file per section."""

import glob
import hashlib
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_ray.errors import VolumeError
from unet_ray.geometry.box import Box
from unet_ray.storage.plain_file import plain
from unet_ray.storage.png_section import read_png, read_png_header
from unet_ray.storage.segment_cache import SegmentCache
from unet_ray.storage.volume import Volume
from unet_ray.storage.volume_tiff import SAMPLED_BYTES, SAMPLED_STRIPS, TiffPages

_TIFF = (".tif", ".tiff")
_PNG = (".png",)
_OPEN_TIFFS = 16


def natural_key(name: str) -> tuple[tuple[str, int], ...]:
    """Sorts names by the numbers in them: s2 before s10.

    >>> sorted(["s10.png", "s2.png", "S1.png"], key=natural_key)
    ['S1.png', 's2.png', 's10.png']
    """
    words = re.split(r"(\d+)", name.lower())
    return tuple(("", int(word)) if word.isdigit() and word.isascii() else (word, 0) for word in words)


def open_folder(path: str, folder: str) -> Volume:
    """The images in ``folder`` (not in folders below it), in natural order; other files are left alone.

    Raises:
        VolumeError: no images, TIFF and PNG mixed, or as `open_files`.
    """
    # Names with a dot in front are what systems put there (._s1.tif), never sections.
    names = [name for name in os.listdir(folder) if not name.startswith(".")]
    tiffs = [name for name in names if name.lower().endswith(_TIFF)]
    pngs = [name for name in names if name.lower().endswith(_PNG)]
    if tiffs and pngs:
        raise VolumeError(
            f"{path} holds {len(tiffs)} TIFF and {len(pngs)} PNG images; name one kind with a glob: {path}/*.png"
        )
    if not tiffs and not pngs:
        found = f"{len(names)} other files" if names else "nothing"
        raise VolumeError(f"the folder {path} holds no TIFF or PNG images but {found}; check the path")
    return open_files(path, [os.path.join(folder, name) for name in sorted(tiffs + pngs, key=natural_key)])


def open_glob(path: str, pattern: str) -> Volume:
    """The images that match ``pattern`` (``**`` goes through folders), in natural order.

    Raises:
        VolumeError: no match, or as `open_files`.
    """
    found = glob.glob(literal_folders(pattern), recursive=True)
    # Folders are what `**` goes through; a link that leads nowhere is a lost section.
    files = sorted((name for name in found if not os.path.isdir(name)), key=natural_key)
    if not files:
        raise VolumeError(f"no file matches {path}; check the pattern, and quote it for the shell")
    return open_files(path, files)


def literal_folders(pattern: str) -> str:
    """The pattern for `glob`, in which a folder's own name, such as "[2024] liver", stands for that folder alone.

    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> os.mkdir(f"{folder}/[a]")
    >>> [literal_folders(f"{folder}/{below}").removeprefix(folder) for below in ("[a]/*.png", "[b]/*.png")]
    ['/[[]a]/*.png', '/[b]/*.png']
    """
    folder, name = os.path.split(pattern)
    if not glob.has_magic(folder):
        return pattern
    return os.path.join(glob.escape(folder) if os.path.isdir(folder) else literal_folders(folder), name)


def open_files(path: str, files: Sequence[str]) -> Volume:
    """2-D images as the sections of one volume, in the order given.

    Raises:
        VolumeError: a file is not a 2-D grey-scale TIFF or PNG, is damaged, or has other
            sides or another dtype than the first.
    """
    return ImagesVolume(path, files)


class ImagesVolume(Volume):
    """2-D images as a volume. See `open_files`."""

    def __init__(self, path: str, files: Sequence[str]) -> None:
        self.path = path
        self.files = tuple(files)
        self.voxel_size_nm = None
        self.pixel_size_nm = None
        for number, file in enumerate(self.files):
            shape, dtype, pixel = _describe(file)
            if number == 0:
                first, self.dtype, self.pixel_size_nm = shape, dtype, pixel
            elif (shape, dtype) != (first, self.dtype):
                raise VolumeError(
                    f"{file} is {shape[0]} x {shape[1]} {dtype} but {self.files[0]} is "
                    f"{first[0]} x {first[1]} {self.dtype}; all sections must have the same sides and dtype"
                )
        self.shape = (len(self.files), *first)
        self._start()

    def _start(self) -> None:
        self._cache = SegmentCache()
        self._lock = threading.Lock()
        self._tiffs: OrderedDict[int, TiffPages] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_cache", "_lock", "_tiffs")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()

    def identity(self) -> dict[str, object]:
        """Names, sizes and mtimes of all files, and a hash of 64 evenly spaced ones."""
        listing = hashlib.sha256()
        for file in self.files:
            status = os.stat(file)
            listing.update(f"{os.path.basename(file)}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
        sample = hashlib.sha256()
        for number in sorted({n * len(self.files) // SAMPLED_STRIPS for n in range(SAMPLED_STRIPS)}):
            with open(self.files[number], "rb") as image:
                sample.update(image.read(SAMPLED_BYTES))
        return {
            "format": "images",
            "shape": list(self.shape),
            "dtype": self.dtype.str,
            "listing": listing.hexdigest(),
            "sample": sample.hexdigest(),
        }

    def _read_inside(self, box: Box) -> NDArray[Any]:
        out = np.empty(box.shape, self.dtype)
        _, y, x = box.slices
        for number, z in enumerate(range(box.start[0], box.stop[0])):
            file = self.files[z]
            if _is_png(file):
                out[number] = self._cache.get(z, lambda file=file: self._decode_png(file))[y, x]  # type: ignore[misc]
            else:
                out[number] = self._tiff(z).read(0, box, self._cache)
        return out

    def _decode_png(self, file: str) -> NDArray[Any]:
        values = read_png(file)
        if (values.shape, values.dtype) != (self.shape[1:], self.dtype):
            raise VolumeError(f"{file} is not the image it was when the volume was opened; run again")
        return values

    def _tiff(self, z: int) -> TiffPages:
        with self._lock:
            if z not in self._tiffs:
                self._tiffs[z] = TiffPages(self.files[z], self.files[z])
                if len(self._tiffs) > _OPEN_TIFFS:
                    self._tiffs.popitem(last=False)
            self._tiffs.move_to_end(z)
            return self._tiffs[z]

    def _section_name(self, z: int) -> str:
        return f"section {z} of {self.path} ({os.path.basename(self.files[z])})"


def _is_png(file: str) -> bool:
    return file.lower().endswith(_PNG)


def _describe(file: str) -> tuple[tuple[int, int], np.dtype[Any], tuple[float, float] | None]:
    """(height, width), dtype and pixel size of one image file."""
    if _is_png(file):
        header = read_png_header(file)
        return header.shape, header.dtype, None
    if not file.lower().endswith(_TIFF):
        raise VolumeError(f"{file} is neither .tif, .tiff nor .png; give a pattern that matches only images")
    with open(file, "rb", opener=plain) as image:
        if image.read(2) not in (b"II", b"MM"):
            raise VolumeError(f"{file} is not a TIFF image; save it again or leave it out")
    layout = TiffPages(file, file).layout
    if layout.shape[0] != 1:
        raise VolumeError(
            f"{file} has {layout.shape[0]} pages, but each file of a folder is one section; give the file itself"
        )
    return layout.shape[1:], layout.dtype, layout.pixel_size_nm
