"""Tiles of a section as PNG."""

import io
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

# Tiles are looked at once, on the same machine: time counts more than bytes.
_COMPRESS_LEVEL = 1


def tile_png(values: npt.NDArray[np.uint8], colours: npt.NDArray[np.uint8]) -> bytes:
    """PNG of values as numbers of colours.

    Args:
        values: (y, x).
        colours: (256, 4), red, green, blue and opacity of each value.

    >>> tile_png(np.zeros((2, 3), np.uint8), overlay((230, 159, 0)))[1:4]
    b'PNG'
    """
    image = Image.fromarray(values)
    if (colours[:, 3] == 255).all() and (colours[:, :3] == np.arange(256)[:, None]).all():
        return _encoded(image)  # grey levels need no table
    image.putpalette(np.ascontiguousarray(colours[:, :3]).tobytes())
    return _encoded(image, transparency=np.ascontiguousarray(colours[:, 3]).tobytes())


def grey() -> npt.NDArray[np.uint8]:
    """Colours of grey levels, (256, 4)."""
    levels = np.arange(256, dtype=np.uint8)
    return np.stack([levels, levels, levels, np.full(256, 255, np.uint8)], axis=1)


def overlay(colour: tuple[int, int, int]) -> npt.NDArray[np.uint8]:
    """Colours of one hue, see-through at 0 and opaque at 255, (256, 4)."""
    table = np.empty((256, 4), np.uint8)
    table[:, :3] = colour
    table[:, 3] = np.arange(256)
    return table


def numbered(colours: dict[int, tuple[int, int, int]]) -> npt.NDArray[np.uint8]:
    """Opaque colours of these numbers, all others see-through, (256, 4)."""
    table = np.zeros((256, 4), np.uint8)
    for number, colour in colours.items():
        table[number] = (*colour, 255)
    return table


def _encoded(image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "png", compress_level=_COMPRESS_LEVEL, **options)
    return buffer.getvalue()
