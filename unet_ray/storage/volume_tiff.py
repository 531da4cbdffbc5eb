"""TIFF stacks, of which only the strips and tiles under a box are read and decoded."""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from unet_ray.errors import VolumeError
from unet_ray.geometry.box import Box
from unet_ray.storage.byte_source import as_file, open_bytes
from unet_ray.storage.failure import reason
from unet_ray.storage.segment_cache import SegmentCache
from unet_ray.storage.tiff_layout import (
    TiffLayout,
    needs_imagecodecs,
    read_layout,
    read_page,
)
from unet_ray.storage.volume import Volume

SAMPLED_STRIPS = 64
SAMPLED_BYTES = 1 << 20
_PAGES_HELD = 32


@dataclass(frozen=True)
class _Page:
    """One section's strips or tiles: where they are and how to decode one."""

    starts: NDArray[np.uint64]
    lengths: NDArray[np.uint64]
    segment: tuple[int, int]
    plain: np.dtype[Any] | None
    compressed: bool
    decode: Callable[[bytes | None, int], NDArray[Any]]


class TiffPages:
    """Rectangles of the sections of one TIFF, at a local path or a URL. Pickles; threads may share it."""

    def __init__(self, path: str, where: str) -> None:
        self._start(path, where, None)
        try:
            self.layout: TiffLayout = read_layout(path, self.source)
        except OSError as error:
            raise VolumeError(f"cannot read {path}: {reason(error)}; check the file and its disk") from error

    def _start(self, path: str, where: str, layout: TiffLayout | None) -> None:
        self.path = path
        self.where = where
        self.source = open_bytes(where)
        self._lock = threading.Lock()
        self._tif: tifffile.TiffFile | None = None
        self._pages: OrderedDict[int, _Page] = OrderedDict()
        if layout is not None:
            self.layout = layout

    def __getstate__(self) -> tuple[str, str, TiffLayout]:
        return self.path, self.where, self.layout

    def __setstate__(self, state: tuple[str, str, TiffLayout]) -> None:
        self._start(*state)

    def read(self, z: int, box: Box, cache: SegmentCache) -> NDArray[Any]:
        """Rows and columns of ``box`` of section ``z``, as (y, x); decoded pieces go through ``cache``.

        Raises:
            VolumeError: a strip or tile cannot be read or decoded.
        """
        try:
            page = self._page(z)
            _, y, x = box.slices
            out = np.empty(box.shape[1:], self.layout.dtype)
            height, width = page.segment
            across = ceil(self.layout.shape[2] / width)
            for row in range(y.start // height, ceil(y.stop / height)):
                for column in range(x.start // width, ceil(x.stop / width)):
                    top, left = row * height, column * width
                    y0, y1 = max(y.start, top), min(y.stop, top + height)
                    x0, x1 = max(x.start, left), min(x.stop, left + width)
                    piece = self._segment(page, z, row * across + column, y0 - top, y1 - top, cache)
                    out[y0 - y.start : y1 - y.start, x0 - x.start : x1 - x.start] = piece[:, x0 - left : x1 - left]
            return out
        except VolumeError:
            raise
        except ImportError as error:
            raise VolumeError(needs_imagecodecs(self.path, "a coding of its voxels")) from error
        # Each decoder has exceptions of its own; whichever it is, this section cannot be decoded.
        except Exception as error:
            raise VolumeError(
                f"section {z} of {self.path} cannot be decoded ({reason(error)}); "
                "the file is damaged, get an undamaged copy"
            ) from error

    def sample(self) -> str:
        """Hash of 64 evenly spaced strips or tiles (the first MiB of each)."""
        digest = hashlib.sha256()
        sections = self.layout.shape[0]
        for number in range(SAMPLED_STRIPS):
            z, part = divmod(number * sections, SAMPLED_STRIPS)
            page = self._page(z)
            segment = part * len(page.starts) // SAMPLED_STRIPS
            digest.update(
                self.source.read_at(int(page.starts[segment]), min(int(page.lengths[segment]), SAMPLED_BYTES))
            )
        return digest.hexdigest()

    def _segment(self, page: _Page, z: int, number: int, first: int, stop: int, cache: SegmentCache) -> NDArray[Any]:
        """Rows first to stop of a strip or tile."""
        length = int(page.lengths[number])
        if page.plain is not None and length:
            # Uncompressed: only these rows, however long the strip.
            row_bytes = page.segment[1] * page.plain.itemsize
            start = int(page.starts[number]) + first * row_bytes
            data = self.source.read_at(start, (stop - first) * row_bytes)
            return np.frombuffer(data, page.plain).reshape(stop - first, page.segment[1])

        def decode() -> NDArray[Any]:
            data = self.source.read_at(int(page.starts[number]), length) if length else None
            return page.decode(data, number)

        if not page.compressed:
            return decode()[first:stop]
        return cache.get((self.where, z, number), decode)[first:stop]

    def _page(self, z: int) -> _Page:
        with self._lock:
            if z in self._pages:
                self._pages.move_to_end(z)
                return self._pages[z]
            if self._tif is None:
                self._tif = tifffile.TiffFile(as_file(self.source), name="volume.tif", _multifile=False)
            virtual = self.layout.virtual
            directory = int(self.layout.directories[0 if virtual is not None else z])
            page = _page(read_page(self._tif, directory, z), self.layout, None if virtual is None else z)
            self._pages[z] = page
            if len(self._pages) > _PAGES_HELD:
                self._pages.popitem(last=False)
            return page


def _page(page: tifffile.TiffPage, layout: TiffLayout, virtual_section: int | None) -> _Page:
    _, height, width = layout.shape
    whole = page.compression == 1 and page.predictor == 1 and page.fillorder == 1
    plain = whole and page.bitspersample == 8 * layout.dtype.itemsize and layout.dtype.kind != "b"
    plain_dtype = layout.dtype.newbyteorder(page.parent.byteorder) if plain else None
    decode_page = page.decode
    tables: dict[str, Any] = {}
    if page.compression in (6, 7, 34892, 33007):
        tables = {"jpegtables": page.jpegtables, "jpegheader": page.jpegheader}
    fill = page.nodata

    def decode(data: bytes | None, number: int) -> NDArray[Any]:
        segment, _, shape = decode_page(data, number, _fullsize=False, **tables)
        # A strip or tile of no bytes is a sparse file's way to say: nothing but the fill value.
        if segment is None:
            return np.full(shape[1:3], fill, layout.dtype)
        return np.asarray(segment, layout.dtype).reshape(segment.shape[1:3])

    size = (page.tilelength, page.tilewidth) if page.is_tiled else (min(page.rowsperstrip, height), width)
    starts = np.asarray(page.dataoffsets, np.uint64)
    lengths = np.asarray(page.databytecounts, np.uint64)
    if virtual_section is not None:
        assert layout.virtual is not None
        starts = np.asarray([layout.virtual + virtual_section * page.nbytes], np.uint64)
        lengths = np.asarray([page.nbytes], np.uint64)
        size = height, width
    return _Page(starts, lengths, size, plain_dtype, page.compression != 1, decode)


class TiffVolume(Volume):
    """One TIFF as a volume, a page per section. See `open_volume`."""

    def __init__(self, path: str, where: str) -> None:
        self.path = path
        self._pages = TiffPages(path, where)
        layout = self._pages.layout
        self.shape = layout.shape
        self.dtype = layout.dtype
        self.voxel_size_nm = layout.voxel_size_nm
        self.pixel_size_nm = layout.pixel_size_nm
        self._cache = SegmentCache()

    def identity(self) -> dict[str, object]:
        """Size, mtime or ETag, hash of all offsets, hash of 64 evenly spaced strips."""
        return {
            "format": "tiff",
            "shape": list(self.shape),
            "dtype": self.dtype.str,
            "size": self._pages.source.size,
            "version": self._pages.source.version,
            "offsets": self._pages.layout.digest,
            "strips": self._pages.sample(),
        }

    def _read_inside(self, box: Box) -> NDArray[Any]:
        out = np.empty(box.shape, self.dtype)
        for number, z in enumerate(range(box.start[0], box.stop[0])):
            out[number] = self._pages.read(z, box, self._cache)
        return out
