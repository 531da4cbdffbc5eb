"""One coordinate field for all of a patch's arrays, and the sampling of a section along it."""

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from unet_ray.numerics.compiled import compiled

Value = TypeVar("Value", bound=np.generic)


@dataclass(frozen=True)
class Field:
    """Where each pixel of a square grid lies in its section."""

    offsets: NDArray[np.float32]
    """(2 for y and x, side + 2 rim, side + 2 rim), pixels from ``centre``."""
    centre: tuple[float, float]
    """(y, x) in the section; apart from the offsets, so that these are exact enough in float32."""
    rim: int = 0
    """Pixels of the offsets on each side that are not part of the grid."""

    @property
    def side(self) -> int:
        """Pixels of the grid in y and in x."""
        return int(self.offsets.shape[1]) - 2 * self.rim

    def inner(self, side: int) -> "Field":
        """The central part of ``side`` pixels; the grid's side and ``side`` are both even or both odd."""
        rim = (self.offsets.shape[1] - side) // 2
        assert rim >= self.rim, "a field has no more than its own pixels"
        assert self.offsets.shape[1] == side + 2 * rim, "one centre for both"
        return Field(self.offsets, self.centre, rim)

    def coordinates(self) -> NDArray[np.float64]:
        """(2 for y and x, side, side), pixels of the section; outside of it the section is mirrored."""
        inside = slice(self.rim, self.rim + self.side)
        places: NDArray[np.float64] = self.offsets[:, inside, inside] + np.array(self.centre)[:, None, None]
        return places


def affine_field(
    displacement: NDArray[np.float32] | None,
    matrix: NDArray[np.float64],
    centre: tuple[float, float],
    side: int,
) -> Field:
    """Field of a grid of ``side`` pixels: ``centre + matrix (p - c + displacement(p))``, c the grid's centre.

    Args:
        displacement: (2 for y and x, side, side), pixels, or None for none.
        matrix: 2 x 2, acting on (y, x) columns; 1 pixel of the grid is that many of the section.
        centre: where the grid's centre lies in the section, (y, x).
        side: pixels in y and in x.
    """
    if displacement is None:
        displacement = np.zeros((2, side, side), np.float32)
    assert displacement.shape == (2, side, side)
    return Field(_affine(displacement, matrix), centre)


def sample_linear(image: NDArray[np.uint8], field: Field, levels: NDArray[np.float32]) -> NDArray[np.float32]:
    """``levels[image]``, bilinear at the field's places; float32 (c, side, side).

    Args:
        image: (c, y, x); mirrored at its border without repeating the edge, as often as needed.
        field: where to sample.
        levels: 256 values, of each grey level.
    """
    return _linear(image, field.offsets, field.rim, *field.centre, levels)


def sample_nearest(labels: NDArray[Value], field: Field) -> NDArray[Value]:
    """``labels`` (y, x) at the pixels nearest to the field's places; half-way goes up. Border as above."""
    return _nearest(labels, field.offsets, field.rim, *field.centre)


@compiled
def _affine(displacement: NDArray[np.float32], matrix: NDArray[np.float64]) -> NDArray[np.float32]:
    side = displacement.shape[1]
    middle = (side - 1) / 2
    yy, yx, xy, xx = matrix[0, 0], matrix[0, 1], matrix[1, 0], matrix[1, 1]
    out = np.empty(displacement.shape, np.float32)
    for i in range(side):
        for j in range(side):
            y = i - middle + displacement[0, i, j]
            x = j - middle + displacement[1, i, j]
            out[0, i, j] = yy * y + yx * x
            out[1, i, j] = xy * y + xx * x
    return out


@compiled
def _mirror(index: int, side: int) -> int:
    if side == 1:
        return 0
    period = 2 * (side - 1)
    index %= period
    return index if index < side else period - index


@compiled
def _linear(
    image: NDArray[np.uint8], offsets: NDArray[np.float32], rim: int, cy: float, cx: float,
    levels: NDArray[np.float32],
) -> NDArray[np.float32]:  # fmt: skip
    channels, height, width = image.shape
    side = offsets.shape[1] - 2 * rim
    out = np.empty((channels, side, side), np.float32)
    for i in range(side):
        for j in range(side):
            y, x = cy + offsets[0, i + rim, j + rim], cx + offsets[1, i + rim, j + rim]
            fy, fx = np.floor(y), np.floor(x)
            ty, tx = np.float32(y - fy), np.float32(x - fx)
            y0, x0 = int(fy), int(fx)
            y1, x1 = y0 + 1, x0 + 1
            if y0 < 0 or x0 < 0 or y1 >= height or x1 >= width:
                y0, y1 = _mirror(y0, height), _mirror(y1, height)
                x0, x1 = _mirror(x0, width), _mirror(x1, width)
            sy, sx = np.float32(1) - ty, np.float32(1) - tx
            for c in range(channels):
                upper = levels[image[c, y0, x0]] * sx + levels[image[c, y0, x1]] * tx
                lower = levels[image[c, y1, x0]] * sx + levels[image[c, y1, x1]] * tx
                out[c, i, j] = upper * sy + lower * ty
    return out


@compiled
def _nearest(labels: NDArray[Value], offsets: NDArray[np.float32], rim: int, cy: float, cx: float) -> NDArray[Value]:
    height, width = labels.shape
    side = offsets.shape[1] - 2 * rim
    out = np.empty((side, side), labels.dtype)
    for i in range(side):
        for j in range(side):
            y = int(np.floor(cy + offsets[0, i + rim, j + rim] + 0.5))
            x = int(np.floor(cx + offsets[1, i + rim, j + rim] + 0.5))
            if y < 0 or x < 0 or y >= height or x >= width:
                y, x = _mirror(y, height), _mirror(x, width)
            out[i, j] = labels[y, x]
    return out
