"""Where the sections of a TIFF lie; a damaged or unsuitable file is found out before any voxel is read."""

import hashlib
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from unet_ray.errors import VolumeError
from unet_ray.storage import voxel_size
from unet_ray.storage.byte_source import ByteSource, as_file
from unet_ray.storage.failure import reason
from unet_ray.storage.tiff_directories import page_directories, truncated


@dataclass(frozen=True)
class TiffLayout:
    """What reading needs to know beforehand: one page directory per section, or one for all.

    Attributes:
        directories: offset of each section's page directory, in the order of the sections.
        virtual: offset of section 0 where all sections lie uncompressed behind a single
            directory (how ImageJ writes more than 4 GB), else None.
        digest: hash of every page and strip offset and length.
    """

    directories: NDArray[np.uint64]
    virtual: int | None
    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    voxel_size_nm: tuple[float, float, float] | None
    pixel_size_nm: tuple[float, float] | None
    digest: str


def read_layout(path: str, source: ByteSource) -> TiffLayout:
    """Walks all page directories of a TIFF.

    Args:
        path: how errors name the file.
        source: its bytes.

    Raises:
        VolumeError: truncated, damaged, several shapes, colour, more than one channel or
            time, or compressed in a way that needs a package that is not installed.
    """
    size = source.size
    offsets = page_directories(path, source, size)
    try:
        # A part of a multi-file OME-TIFF must not go looking for the other files.
        with tifffile.TiffFile(as_file(source), name=path.rsplit("/", 1)[-1], _multifile=False) as tif:
            return _layout(path, tif, offsets, size)
    except (ValueError, IndexError, KeyError, TypeError, RuntimeError, struct.error) as error:
        raise VolumeError(f"{path} is a damaged TIFF ({reason(error)}); get an undamaged copy") from error


def read_page(tif: tifffile.TiffFile, offset: int, number: int) -> tifffile.TiffPage:
    """The page whose directory begins at ``offset``. Moves the file position: one thread at a time."""
    tif.filehandle.seek(offset)
    return tifffile.TiffPage(tif, index=number)


def _layout(path: str, tif: tifffile.TiffFile, offsets: list[int], size: int) -> TiffLayout:
    digest = hashlib.sha256(np.asarray(offsets, np.uint64).tobytes())
    first: tifffile.TiffPage | None = None
    for number, offset in enumerate(offsets):
        page = read_page(tif, offset, number)
        _require_grey(path, number, page)
        if first is None:
            first = page
            _require_decoder(path, page)
        elif (page.shape, page.dtype) != (first.shape, first.dtype):
            raise VolumeError(
                f"page {number} of {path} is {_kind(page)} but page 0 is {_kind(first)}; "
                "give a TIFF whose pages are the sections of one stack"
            )
        elif page.compression != first.compression or page.predictor != first.predictor:
            _require_decoder(path, page)
        _hash_extents(path, number, page, size, digest)
    assert first is not None
    sections, virtual = _sections(path, tif, first, offsets, size)
    voxel, pixel = _voxel_size(tif, first)
    height, width = first.shape
    dtype = np.dtype(first.dtype).newbyteorder("=")
    count = len(sections) if virtual is None else virtual[1]
    return TiffLayout(
        np.asarray(sections, np.uint64),
        None if virtual is None else virtual[0],
        (count, height, width),
        dtype,
        voxel,
        pixel,
        digest.hexdigest(),
    )


def _require_grey(path: str, number: int, page: tifffile.TiffPage) -> None:
    if page.dtype is None:
        raise VolumeError(
            f"page {number} of {path} has voxels of a kind that cannot be read ({page.bitspersample} bits); "
            "convert it to 8 or 16 bits"
        )
    if page.samplesperpixel > 1 and page.planarconfig == 2:
        # tifffile.imwrite makes this of a (3, y, x) or (4, y, x) stack unless told what it is.
        raise VolumeError(
            f"page {number} of {path} has {page.samplesperpixel} colour planes; convert it to grey scale, "
            "or if they are sections write it again with photometric='minisblack'"
        )
    if page.samplesperpixel > 1:
        raise VolumeError(
            f"page {number} of {path} has {page.samplesperpixel} samples per pixel (RGB or channels); "
            "convert it to grey scale"
        )
    if page.ndim != 2 or 0 in page.shape:
        raise VolumeError(f"page {number} of {path} has shape {page.shape}; give a TIFF whose pages are 2-D sections")


def _require_decoder(path: str, page: tifffile.TiffPage) -> None:
    """Refuses what only imagecodecs can decode, where that is not installed."""
    try:
        if page.compression != 1:
            tifffile.TIFF.DECOMPRESSORS[page.compression](b"")
    except (KeyError, ImportError) as error:
        raise VolumeError(needs_imagecodecs(path, f"{_name(page.compression)} compression")) from error
    except Exception:
        # The decoder is there and refuses an empty strip, as it may.
        pass
    try:
        if page.predictor != 1:
            tifffile.TIFF.UNPREDICTORS[page.predictor]
    except KeyError as error:
        raise VolumeError(needs_imagecodecs(path, f"the {_name(page.predictor)} predictor")) from error


def needs_imagecodecs(path: str, what: str) -> str:
    """The sentence for a file that tifffile decodes only with the imagecodecs package."""
    return (
        f"{path} uses {what}, which needs a package that is not installed; "
        "install imagecodecs, or save the file again uncompressed or with deflate (ZIP)"
    )


def _hash_extents(path: str, number: int, page: tifffile.TiffPage, size: int, digest: Any) -> None:
    starts = np.asarray(page.dataoffsets, np.uint64)
    lengths = np.asarray(page.databytecounts, np.uint64)
    expected = int(np.prod(page.chunked))
    if len(starts) < expected or len(lengths) < expected:
        raise VolumeError(
            f"page {number} of {path} tells the place of {len(starts)} strips or tiles and has {expected}; "
            "get an undamaged copy"
        )
    end = int((starts + lengths).max())
    if page.is_contiguous and lengths.any():
        # Some writers leave a wrong length with an uncompressed strip; the pixels count.
        end = max(end, int(starts[0]) + page.nbytes)
    if end > size:
        raise VolumeError(truncated(path, number, size, end))
    digest.update(starts.tobytes())
    digest.update(lengths.tobytes())


def _sections(
    path: str, tif: tifffile.TiffFile, first: tifffile.TiffPage, offsets: list[int], size: int
) -> tuple[list[int], tuple[int, int] | None]:
    """Page directories in section order, and (offset, sections) where one directory stands for all."""
    if tif.is_imagej and len(offsets) == 1 and first.is_contiguous:
        # More images than pages: ImageJ's way beyond 4 GB, or a description copied from another file.
        images = int((tif.imagej_metadata or {}).get("images", 1))
        end = first.dataoffsets[0] + images * first.nbytes
        if images > 1 and end > size:
            page = (size - first.dataoffsets[0]) // first.nbytes
            if first.dataoffsets[0] + first.nbytes + _COPIED_SLACK < size:
                raise VolumeError(truncated(path, page, size, end))
            return offsets, None
    if len(tif.series) != 1:
        # One series per page is how a loop over TiffWriter.write describes a stack.
        return offsets, None
    series = tif.series[0]
    leading = [(n, axis) for n, axis in zip(series.shape, series.axes, strict=True) if axis not in "YX"]
    leading = [(n, axis) for n, axis in leading if n > 1]
    if len(leading) > 1 or (leading and leading[0][1] == "C"):
        axes = ", ".join(f"{n} {_AXES.get(axis, axis)}" for n, axis in leading)
        raise VolumeError(
            f"{path} is a hyperstack of {axes}; choose one channel and one time and save it as a stack of slices"
        )
    count = leading[0][0] if leading else 1
    if len(offsets) == 1 and count > 1:
        offset = series.dataoffset
        if offset is None:
            raise VolumeError(f"{path} has 1 page but says {count} sections; write it again")
        if offset + count * first.nbytes > size:
            page = (size - offset) // first.nbytes
            raise VolumeError(truncated(path, page, size, offset + count * first.nbytes))
        return offsets, (int(offset), count)
    pages = [None if page is None else int(page.offset) for page in series.pages]
    if None in pages:
        raise VolumeError(
            f"{path} is one part of an OME-TIFF of several files (section {pages.index(None)} is elsewhere); "
            "give the folder or a glob of all parts"
        )
    if len(pages) != count:
        raise VolumeError(f"{path} has {len(pages)} pages but says {count} sections; write it again")
    return [page for page in pages if page is not None], None


def _voxel_size(
    tif: tifffile.TiffFile, page: tifffile.TiffPage
) -> tuple[tuple[float, float, float] | None, tuple[float, float] | None]:
    if tif.is_ome and tif.ome_metadata:
        return voxel_size.from_ome_xml(tif.ome_metadata)
    x, y = page.resolution
    if tif.is_imagej and tif.imagej_metadata and "unit" in tif.imagej_metadata:
        return voxel_size.from_imagej(tif.imagej_metadata, x, y)
    unit = page.tags.valueof(296, 2)
    return None, voxel_size.from_resolution(x, y, int(unit)) if 282 in page.tags else None


# What may follow the voxels of a lone section: a directory and its values, no second section.
_COPIED_SLACK = 4096

_AXES = {"C": "channels", "T": "times", "Z": "slices"}


def _kind(page: tifffile.TiffPage) -> str:
    return f"{' x '.join(str(n) for n in page.shape)} {page.dtype}"


def _name(code: int) -> str:
    return getattr(code, "name", str(code))
