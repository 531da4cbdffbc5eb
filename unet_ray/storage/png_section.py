"""Grey-scale PNG files as sections."""

import os
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_ray.errors import VolumeError
from unet_ray.storage.failure import reason
from unet_ray.storage.plain_file import plain

_COLOUR = {2: "RGB", 4: "grey with transparency", 6: "RGB with transparency"}


@dataclass(frozen=True)
class PngHeader:
    """(height, width) in pixels and dtype of what `read_png` returns."""

    shape: tuple[int, int]
    dtype: np.dtype[Any]


def read_png_header(path: str) -> PngHeader:
    """Shape and dtype of a PNG, from its first and last bytes.

    Raises:
        VolumeError: not a PNG, truncated, or in colour.
    """
    with open(path, "rb", opener=plain) as file:
        head = file.read(33)
        file.seek(max(0, os.fstat(file.fileno()).st_size - 4096))
        tail = file.read()
    if head[:8] != b"\x89PNG\r\n\x1a\n" or head[12:16] != b"IHDR":
        raise VolumeError(f"{path} is not a PNG image; save it again or leave it out")
    width, height, bits, colour = struct.unpack(">IIBB", head[16:26])
    if b"IEND" not in tail:
        raise VolumeError(f"{path} is truncated: its end mark is missing; copy or download it again")
    if colour in _COLOUR:
        raise VolumeError(f"{path} is {_COLOUR[colour]}; convert it to grey scale")
    kind = np.dtype(np.uint16 if bits == 16 else np.bool_ if bits == 1 and colour == 0 else np.uint8)
    return PngHeader((height, width), kind)


def read_png(path: str) -> NDArray[Any]:
    """Grey values of a PNG as (y, x): bool, uint8 or uint16.

    Of a palette of greys the greys are returned, of a palette of colours the indices,
    which is how label images are stored.

    Raises:
        VolumeError: it cannot be decoded.
    """
    # Not Image.open: it refuses images beyond 179 million pixels, and sections are larger.
    from PIL.PngImagePlugin import PngImageFile

    try:
        with open(path, "rb") as file, PngImageFile(file) as image:
            values = np.asarray(image)
            palette = image.getpalette() if image.mode == "P" else None
    # Pillow raises OSError, SyntaxError, ValueError and zlib.error for damaged files.
    except Exception as error:
        raise VolumeError(
            f"{path} cannot be decoded ({reason(error)}); the file is damaged, get an undamaged copy"
        ) from error
    if palette is not None:
        colours = np.zeros((256, 3), np.uint8)
        colours[: len(palette) // 3] = np.reshape(palette, (-1, 3))
        if (colours == colours[:, :1]).all():
            values = colours[:, 0][values]
    return values
