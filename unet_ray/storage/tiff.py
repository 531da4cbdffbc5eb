"""TIFF export of a segmentation as a stream: memory does not grow with the volume."""

import os
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import product
from math import ceil
from pathlib import Path
from typing import Any, Literal
from zlib import compress

import numpy as np
import tifffile
from numpy.typing import NDArray

from unet_ray.errors import TargetError
from unet_ray.storage.targets import require_file_target

TILE_PX = 256
Kind = Literal["mask", "classes", "probability", "challenge"]

# Offsets of a classic TIFF end at 4 GiB; the margin is for directories and metadata.
_CLASSIC_BYTES = 2**32 - 2**25


def write_tiff(
    path: str,
    read_rows: Callable[[int, int, int], NDArray[Any]],
    *,
    shape: tuple[int, int, int],
    kind: Kind,
    channels: int = 1,
    voxel_size_nm: tuple[float, float, float] | None = None,
    bigtiff: bool | None = None,
    threads: int = 1,
) -> None:
    """Writes a mask, class indices or probabilities as one TIFF, a page per section, or per section and channel.

    All but ``challenge`` become OME-TIFFs of deflated 256-pixel tiles; Fiji opens
    them through Bio-Formats, which it brings along, without a question where the name ends
    in ``.ome.tif`` (ImageJ 1 by itself reads neither tiles nor BigTIFF). ``challenge``
    becomes what the ISBI challenge took and ImageJ 1 opens: an uncompressed float stack
    with ImageJ's description; beyond 4 GiB, which that cannot hold, a BigTIFF like the others.

    The file appears under its name when it is whole. The same input gives the same bytes.

    Args:
        path: local file; one that exists is replaced, missing folders are made.
        read_rows: ``read_rows(page, start, stop)`` gives rows start to stop - 1 of a page,
            as (rows, x): bool (True = membrane), uint8 (255 = membrane for certain; for a
            mask anything but 0) or floats from 0 to 1. Called once for each band of at most
            256 rows, in order. Pages are sections; of several channels, all of section 0, then
            all of section 1, and so on.
        shape: (z, y, x) of the volume.
        kind: ``mask``: uint8, 255 = membrane, else 0. ``classes``: uint8, indices as they are.
            ``probability``: uint8, 0..255 = 0..1. ``challenge``: float32, 1 = cell, 0 = membrane.
        channels: of a section, such as one per class (axes ZCYX); ``challenge`` has one.
        voxel_size_nm: (z, y, x), stored as the file's calibration.
        bigtiff: None: where classic TIFF could become too small.
        threads: how many compress at once. About (threads + 2) bands are in memory.

    Raises:
        TargetError: the file cannot be written there.

    >>> import tempfile
    >>> path = tempfile.mkdtemp() + "/mask.tif"
    >>> rows = lambda z, start, stop: np.eye(5, dtype=bool)[start:stop]
    >>> write_tiff(path, rows, shape=(1, 5, 5), kind="mask")
    >>> tifffile.imread(path)[0]
    array([255,   0,   0,   0,   0], dtype=uint8)
    """
    target = require_file_target(path)
    assert channels == 1 or kind != "challenge", channels
    dtype = np.dtype(np.float32 if kind == "challenge" else np.uint8)
    if bigtiff is None:
        bigtiff = _most_bytes((shape[0] * channels, *shape[1:]), dtype) > _CLASSIC_BYTES
    temporary = target.with_name(f".{target.name}.{os.getpid()}.partial")
    bands = _bands(read_rows, (shape[0] * channels, *shape[1:]), kind)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            if kind == "challenge" and not bigtiff:
                _write_imagej(file, bands, shape, voxel_size_nm)
            else:
                _write_tiles(file, bands, shape, channels, dtype, voxel_size_nm, bigtiff, threads)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
        _sync_folder(target.parent)
    except OSError as error:
        raise TargetError(
            f"{path} cannot be written ({error.strerror or error}); choose another path or make room there"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def page_bytes(rows: NDArray[Any], kind: Kind) -> int:
    """What the pixels of a page, (y, x) as `write_tiff` reads them, take in its file; ``challenge`` does not compress.

    >>> page_bytes(np.zeros((300, 300), np.uint8), "challenge")
    360000
    """
    page = _convert(rows, kind)
    if kind == "challenge":
        return page.nbytes
    corners = product(*(range(0, side, TILE_PX) for side in page.shape))
    return sum(len(compress(page[y : y + TILE_PX, x : x + TILE_PX].tobytes())) for y, x in corners)


def _bands(
    read_rows: Callable[[int, int, int], NDArray[Any]], shape: tuple[int, int, int], kind: Kind
) -> Iterator[NDArray[Any]]:
    """All rows of the file in order, in bands of a tile's height."""
    pages, height, width = shape
    for page in range(pages):
        for start in range(0, height, TILE_PX):
            stop = min(start + TILE_PX, height)
            rows = read_rows(page, start, stop)
            assert rows.shape == (stop - start, width), (rows.shape, page, start, stop)
            yield _convert(rows, kind)


def _convert(rows: NDArray[Any], kind: Kind) -> NDArray[Any]:
    if kind == "mask":
        return np.where(rows != 0, np.uint8(255), np.uint8(0))
    if rows.dtype == np.uint8 and kind in ("classes", "probability"):
        return rows
    membrane = rows.astype(np.float32)
    if rows.dtype == np.uint8:
        membrane /= np.float32(255)
    cells: NDArray[np.float32] = np.float32(1) - membrane
    return cells if kind == "challenge" else np.rint(membrane * np.float32(255)).astype(np.uint8)


def _write_imagej(
    file: Any,
    bands: Iterator[NDArray[Any]],
    shape: tuple[int, int, int],
    voxel_size_nm: tuple[float, float, float] | None,
) -> None:
    metadata: dict[str, Any] = {}
    resolution: dict[str, Any] = {}
    if voxel_size_nm is not None:
        z, y, x = voxel_size_nm
        metadata |= {"unit": "nm", "spacing": z}
        resolution = {"resolution": (1 / x, 1 / y)}
    sections, height, width = shape
    with tifffile.TiffWriter(file, imagej=True, byteorder=">") as tif:
        tif.write(
            (band.astype(">f4").tobytes() for band in bands),
            # ImageJ's axes TZCYXS in full: a side of 1 could be taken for another axis.
            shape=(1, sections, 1, height, width, 1),
            dtype=">f4",
            photometric="minisblack",
            metadata=metadata,
            **resolution,
        )


def _write_tiles(
    file: Any,
    bands: Iterator[NDArray[Any]],
    shape: tuple[int, int, int],
    channels: int,
    dtype: np.dtype[Any],
    voxel_size_nm: tuple[float, float, float] | None,
    bigtiff: bool,
    threads: int,
) -> None:
    # A fixed id and creator: nothing of the time or the machine goes into the file.
    metadata: dict[str, Any] = {
        "axes": "ZYX" if channels == 1 else "ZCYX",
        "UUID": str(uuid.uuid5(uuid.NAMESPACE_OID, f"unet_ray {shape} {dtype} {voxel_size_nm}")),
        "Creator": "unet_ray",
    }
    if channels > 1:
        metadata["Channel"] = {"Name": [f"class {channel}" for channel in range(channels)]}
    resolution: dict[str, Any] = {}
    if voxel_size_nm is not None:
        for axis, size in zip("ZYX", voxel_size_nm, strict=True):
            metadata |= {f"PhysicalSize{axis}": size, f"PhysicalSize{axis}Unit": "nm"}
        # For readers that know the tags and not OME; 1e7 nm are a centimetre.
        _, y, x = voxel_size_nm
        resolution = {"resolution": (1e7 / x, 1e7 / y), "resolutionunit": "CENTIMETER"}
    little = dtype.newbyteorder("<")
    with tifffile.TiffWriter(file, ome=True, bigtiff=bigtiff, byteorder="<") as tif:
        tif.write(
            _deflated_tiles(bands, little, threads),
            shape=shape if channels == 1 else (shape[0], channels, *shape[1:]),
            dtype=little,
            tile=(TILE_PX, TILE_PX),
            compression="zlib",
            photometric="minisblack",
            software="unet_ray",
            metadata=metadata,
            **resolution,
        )


def _deflated_tiles(bands: Iterator[NDArray[Any]], dtype: np.dtype[Any], threads: int) -> Iterator[bytes]:
    """Tiles of a band from left to right, band after band; what is beyond the image is 0."""
    with ThreadPoolExecutor(threads) as pool:
        for band in bands:
            height, width = band.shape
            tiles = np.zeros((TILE_PX, ceil(width / TILE_PX) * TILE_PX), dtype)
            tiles[:height, :width] = band
            pieces = (tiles[:, x : x + TILE_PX].tobytes() for x in range(0, tiles.shape[1], TILE_PX))
            yield from pool.map(compress, pieces)


def _most_bytes(shape: tuple[int, int, int], dtype: np.dtype[Any]) -> int:
    """Upper bound of the file: tiles that do not compress, and their tables."""
    pages, height, width = shape
    tiles = pages * ceil(height / TILE_PX) * ceil(width / TILE_PX)
    return tiles * (TILE_PX**2 * dtype.itemsize + 64) + pages * 1024


def _sync_folder(folder: Path) -> None:
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
