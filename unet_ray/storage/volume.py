"""Volumes: stacks of images opened lazily, read box by box, mirrored at their border."""

import difflib
import errno
import glob
import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_ray.errors import VolumeError
from unet_ray.geometry.box import Box
from unet_ray.storage.plain_file import plain

DIGEST_BYTES = 32 << 20
ZARR_METADATA = ("zarr.json", ".zarray", ".zgroup")
HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
KNOWN_FORMATS = "a TIFF or PNG image, a folder or glob of them, or a zarr array or OME-Zarr group"


class Volume(ABC):
    """A stack of sections on disk or in an object store; get one from `open_volume`.

    Pickles as a description of where the voxels are: a worker that unpickles it opens
    its own files at the first read. Reads may run in several threads at once. Decoded
    pieces of compressed images are kept up to `segment_cache.CACHE_BYTES` per volume
    and process (and always the latest one), nothing else stays in memory.

    Attributes:
        path: as the user gave it.
        shape: (z, y, x) in voxels.
        dtype: of what `read` returns, in the machine's byte order.
        voxel_size_nm: (z, y, x) in nm; None unless the file tells all three.
        pixel_size_nm: (y, x) in nm; None unless the file tells both. TIFF resolution
            tags tell these two and nothing about z.
    """

    path: str
    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    voxel_size_nm: tuple[float, float, float] | None
    pixel_size_nm: tuple[float, float] | None

    def read(self, box: Box) -> NDArray[Any]:
        """Voxels of ``box``, values as stored.

        Outside the volume the voxels are mirrored without repeating the edge (NumPy
        ``reflect``), folded as often as needed; a side of 1 repeats.

        Args:
            box: (z, y, x) voxels; any part of it may be outside the volume.

        Returns:
            C-contiguous array of ``box.shape`` and the volume's dtype.

        Raises:
            VolumeError: a section cannot be decoded, or holds NaN or infinity.

        >>> import tempfile, tifffile
        >>> path = tempfile.mkdtemp() + "/stack.tif"
        >>> tifffile.imwrite(path, np.arange(12, dtype=np.uint8).reshape(3, 4), photometric="minisblack")
        >>> open_volume(path).read(Box((0, -1, 0), (1, 2, 5)))
        array([[[4, 5, 6, 7, 6],
                [0, 1, 2, 3, 2],
                [4, 5, 6, 7, 6]]], dtype=uint8)
        """
        if box.voxels == 0:
            return np.empty(box.shape, self.dtype)
        axes = [mirrored(*span) for span in zip(box.start, box.stop, self.shape, strict=True)]
        low = [int(axis.min()) for axis in axes]
        z, y, x = ((a, int(axis.max()) + 1) for a, axis in zip(low, axes, strict=True))
        inner = Box((z[0], y[0], x[0]), (z[1], y[1], x[1]))
        block = self._read_inside(inner)
        if block.dtype.kind == "f":
            self._refuse_non_finite(block, inner)
        for number, (axis, first) in enumerate(zip(axes, low, strict=True)):
            if len(axis) != block.shape[number] or axis[-1] != first + len(axis) - 1:
                block = block.take(axis - first, axis=number)
        return np.ascontiguousarray(block)

    def section_digest(self, z: int) -> str:
        """SHA-256 (hex) of section ``z``: its sides, dtype and every voxel, wherever they are stored.

        Raises:
            IndexError: there is no such section.
            VolumeError: as `read`.
        """
        if not 0 <= z < self.shape[0]:
            raise IndexError(f"section {z} of {self.shape[0]}")
        _, height, width = self.shape
        digest = hashlib.sha256(f"{height} {width} {self.dtype.str}".encode())
        rows = max(1, DIGEST_BYTES // (width * self.dtype.itemsize))
        for row in range(0, height, rows):
            band = Box((z, row, 0), (z + 1, min(row + rows, height), width))
            digest.update(self.read(band).data)
        return digest.hexdigest()

    def order_digest(self, z: int) -> str | None:
        """SHA-256 (hex) of section ``z``'s sides and of the order of its grey levels; None where it has one alone.

        It is the same after any change of the levels that keeps those apart that are there: another dtype, brightness,
        contrast, gamma, or dark for bright. It is another where two levels became one: by clipping, by 8 bits for 16,
        or by a compression with loss. Reads the whole section.

        Raises:
            IndexError: there is no such section.
            VolumeError: as `read`.

        >>> import tempfile, tifffile
        >>> path, levels = tempfile.mkdtemp(), np.arange(12, dtype=np.uint8).reshape(3, 4)
        >>> for name, stored in (("a", levels), ("b", np.float32(9) - levels / 7), ("c", levels // 2)):
        ...     tifffile.imwrite(f"{path}/{name}.tif", stored, photometric="minisblack")
        >>> a, b, c = (open_volume(f"{path}/{name}.tif").order_digest(0) for name in "abc")
        >>> a == b, a == c
        (True, False)
        """
        if not 0 <= z < self.shape[0]:
            raise IndexError(f"section {z} of {self.shape[0]}")
        _, height, width = self.shape
        section = self.read(Box((z, 0, 0), (z + 1, height, width)))[0]
        levels, rank_of = _levels(section)
        if len(levels) == 1:
            return None  # all such sections would be one
        rank_type = np.min_scalar_type(len(levels) - 1)
        both = [hashlib.sha256(f"order {height} {width}".encode()) for _ in range(2)]
        rows = max(1, DIGEST_BYTES // (8 * width))
        for row in range(0, height, rows):
            ranks = rank_of(section[row : row + rows]).astype(rank_type)
            for digest, counted in zip(both, (ranks, rank_type.type(len(levels) - 1) - ranks), strict=True):
                digest.update(counted.data)
        return min(digest.hexdigest() for digest in both)

    @abstractmethod
    def identity(self) -> dict[str, object]:
        """What tells this content from another without reading all of it; can be written as JSON.

        zarr: its metadata and a hash of the sorted listing (key, size, mtime or ETag).
        TIFF: size, mtime, a hash of all page and strip offsets, and one of 64 evenly
        spaced strips. A folder: names, sizes and mtimes, and a hash of 64 evenly spaced
        files. Of each strip or file the first MiB is hashed. The path is not part of it.
        """

    @abstractmethod
    def _read_inside(self, box: Box) -> NDArray[Any]:
        """Voxels of a box that is not empty and wholly inside."""

    def _section_name(self, z: int) -> str:
        """How an error names section ``z``."""
        return f"section {z} of {self.path}"

    def _refuse_non_finite(self, block: NDArray[Any], box: Box) -> None:
        if np.isfinite(block).all():
            return
        bad = int((~np.isfinite(block)).any(axis=(1, 2)).argmax())
        raise VolumeError(
            f"{self._section_name(box.start[0] + bad)} has NaN or infinite voxels, "
            "which no network can use; replace them with finite numbers"
        )


def open_volume(path: str, *, array: str | None = None) -> Volume:
    """Opens an image stack without reading its voxels.

    Args:
        path: multi-page TIFF, PNG, a folder of 2-D TIFF or PNG images or a glob of
            them (in natural order of their names: s2 before s10), a zarr v2 or v3 array
            (2-D or 3-D), or an OME-Zarr group (0.4, 0.5); for TIFF and zarr also a URL
            (``s3://bucket/key``).
        array: which array inside a zarr group; the highest resolution of an OME-Zarr
            group when not given.

    Returns:
        A `Volume`; a 2-D image is one section. TIFF values come as stored: neither
        palettes nor "0 is white" are applied.

    Raises:
        VolumeError: nothing is there, or it is not a grey-scale stack that can be read whole.

    >>> open_volume("/nowhere/a.tif")
    Traceback (most recent call last):
    unet_ray.errors.VolumeError: cannot find /nowhere/a.tif: the folder /nowhere is not there; check the path
    """
    volume = _open(path, array)
    # 'b', 'i', 'u', 'f': what arithmetic on grey values or labels is defined for.
    if volume.dtype.kind not in "biuf":
        raise VolumeError(f"{path} has {volume.dtype} voxels; convert it to whole or real numbers")
    if 0 in volume.shape:
        raise VolumeError(f"{path} is empty: its shape is {volume.shape}; choose a volume with voxels")
    return volume


def _levels(section: NDArray[Any]) -> tuple[NDArray[Any], Callable[[NDArray[Any]], NDArray[Any]]]:
    """Values of a section, ascending, and what tells the place of each among them."""
    if section.dtype.kind != "u" or section.dtype.itemsize > 2:
        levels = np.unique(section)
        return levels, lambda values: np.searchsorted(levels, values)
    # By a table: a tenth of the time.
    there = np.zeros(np.iinfo(section.dtype).max + 1, np.intp)
    there[section] = 1
    return np.flatnonzero(there), (np.cumsum(there) - 1).__getitem__


def mirrored(start: int, stop: int, side: int) -> NDArray[np.intp]:
    """`geometry.box.mirror_index` of start, ..., stop - 1, as an array."""
    index = np.arange(start, stop, dtype=np.intp)
    if side == 1:
        return np.zeros_like(index)
    period = 2 * (side - 1)
    index %= period
    return np.where(index < side, index, period - index)


def _open(path: str, array: str | None) -> Volume:
    # Only the format at hand is imported: opening a TIFF does not load zarr.
    if "://" in path and not path.startswith("file://"):
        if path.lower().endswith((".tif", ".tiff")) and array is None:
            return _open_tiff(path, path)
        from unet_ray.storage.volume_zarr import open_zarr

        return open_zarr(path, path, array)
    where = path.removeprefix("file://")
    if not where:
        raise VolumeError(f"the path of the volume is empty; give {KNOWN_FORMATS}")
    if os.path.isdir(where) and any(os.path.exists(os.path.join(where, name)) for name in ZARR_METADATA):
        from unet_ray.storage.volume_zarr import open_zarr

        return open_zarr(path, where, array)
    if array is not None:
        raise VolumeError(f"array {array} is asked for, but {path} is not a zarr group; leave the array out")
    try:
        if os.path.isdir(where):
            from unet_ray.storage.volume_images import open_folder

            return open_folder(path, where)
        if _is_there(where):
            return _open_file(path, where)
        if glob.has_magic(where):
            from unet_ray.storage.volume_images import open_glob

            return open_glob(path, where)
        missing = _missing(path, where)
    except OSError as error:
        raise VolumeError(_refused(path, error)) from error
    raise VolumeError(missing)


def _is_there(where: str) -> bool:
    """Unlike `os.path.exists`, says so where a folder on the way may not be entered."""
    try:
        os.stat(where)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    return True


def _open_file(path: str, where: str) -> Volume:
    with open(where, "rb", opener=plain) as file:
        magic = file.read(8)
    if magic[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return _open_tiff(path, where)
    if magic == b"\x89PNG\r\n\x1a\n":
        from unet_ray.storage.volume_images import open_files

        return open_files(path, [where])
    found = "an empty file" if not magic else "an HDF5 file" if magic == HDF5_MAGIC else "something else"
    raise VolumeError(f"{path} is not an image that can be read but {found}; give {KNOWN_FORMATS}")


def _open_tiff(path: str, where: str) -> Volume:
    from unet_ray.storage.volume_tiff import TiffVolume

    return TiffVolume(path, where)


def _refused(path: str, error: OSError) -> str:
    """The sentence for a volume of which the system does not give a file."""
    match error.errno:
        case errno.EACCES | errno.EPERM:
            why = "permission denied; ask for read access to it"
        case errno.ENOENT:
            why = "the link leads nowhere; mend it, for sections are not skipped"
        case errno.EISDIR:
            why = "it is a folder and no image; rename it or move it elsewhere"
        case _:
            why = f"{error.strerror or error}; check the file and its disk"
    return f"cannot read {error.filename or path}: {why}"


def _missing(path: str, where: str) -> str:
    if os.path.islink(where):
        return f"cannot find {path}: it is a link to {os.readlink(where)}, which is not there; mend the link"
    folder = Path(where).parent
    if not folder.is_dir():
        return f"cannot find {path}: the folder {folder} is not there; check the path"
    near = difflib.get_close_matches(Path(where).name, sorted(os.listdir(folder)), n=1, cutoff=0.5)
    hint = f"did you mean {folder / near[0]}?" if near else "check the path"
    return f"cannot find {path}; {hint}"
