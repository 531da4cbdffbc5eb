"""One coordinate field for all of a patch's arrays, and the sampling of a section along it."""

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numba import njit
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
    middle = np.float32((side - 1) / 2)
    yy, yx = np.float32(matrix[0, 0]), np.float32(matrix[0, 1])
    xy, xx = np.float32(matrix[1, 0]), np.float32(matrix[1, 1])
    out = np.empty(displacement.shape, np.float32)
    for i in range(side):
        down, right = displacement[0, i], displacement[1, i]
        below, beside = out[0, i], out[1, i]
        row = np.float32(i) - middle
        for j in range(side):
            y = row + down[j]
            x = np.float32(j) - middle + right[j]
            below[j] = yy * y + yx * x
            beside[j] = xy * y + xx * x
    return out


# Inlined, so that the loops over a row below are turned into vector instructions.
@njit(inline="always")
def _fold(index: np.int32, side: np.int32) -> np.uint32:
    """The mirrored index, where one reflection is enough; unsigned, as Numba counts negative ones from the end."""
    last = side - np.int32(1)
    return np.uint32(last - abs(last - abs(index)))


@compiled
def _mirror_row(places: NDArray[np.int32], side: int, ahead: int, out: NDArray[np.uint32]) -> None:
    """Mirrored indices of ``places + ahead``, whole numbers on any side of the section."""
    least, most = places[0], places[0]
    for j in range(places.size):
        least, most = min(least, places[j]), max(most, places[j])
    if least + ahead > -side and most + ahead < 2 * side - 1:
        for j in range(places.size):
            out[j] = _fold(places[j] + np.int32(ahead), np.int32(side))
        return
    period = max(2 * (side - 1), 1)
    for j in range(places.size):
        index = (places[j] + ahead) % period
        out[j] = min(index, period - index)


@compiled
def _floor_row(
    offsets: NDArray[np.float32], start: float, places: NDArray[np.int32], rest: NDArray[np.float32]
) -> None:
    """Whole pixels of ``start + offsets``, and how far beyond them, 0 to 1."""
    whole = np.floor(start)
    base, fraction = np.int32(whole), np.float32(start - whole)  # apart: float32 would blur large sections
    for j in range(places.size):
        place = fraction + offsets[j]
        below = np.floor(place)
        rest[j] = place - below
        places[j] = np.int32(below) + base


@compiled
def _linear(
    image: NDArray[np.uint8], offsets: NDArray[np.float32], rim: int, cy: float, cx: float,
    levels: NDArray[np.float32],
) -> NDArray[np.float32]:  # fmt: skip
    channels, height, width = image.shape
    side = offsets.shape[1] - 2 * rim
    out = np.empty((channels, side, side), np.float32)
    y, x = np.empty(side, np.int32), np.empty(side, np.int32)
    ty, tx = np.empty(side, np.float32), np.empty(side, np.float32)
    y0, y1 = np.empty(side, np.uint32), np.empty(side, np.uint32)
    x0, x1 = np.empty(side, np.uint32), np.empty(side, np.uint32)
    # The four neighbours, gathered first: gathering goes one by one, blending many at a time.
    a, b = np.empty(side, np.float32), np.empty(side, np.float32)
    c, d = np.empty(side, np.float32), np.empty(side, np.float32)
    for i in range(side):
        _floor_row(offsets[0, i + rim, rim : rim + side], cy, y, ty)
        _floor_row(offsets[1, i + rim, rim : rim + side], cx, x, tx)
        _mirror_row(y, height, 0, y0)
        _mirror_row(y, height, 1, y1)
        _mirror_row(x, width, 0, x0)
        _mirror_row(x, width, 1, x1)
        for channel in range(channels):
            for j in range(side):
                a[j], b[j] = levels[image[channel, y0[j], x0[j]]], levels[image[channel, y0[j], x1[j]]]
                c[j], d[j] = levels[image[channel, y1[j], x0[j]]], levels[image[channel, y1[j], x1[j]]]
            row = out[channel, i]
            for j in range(side):
                upper = a[j] + (b[j] - a[j]) * tx[j]
                lower = c[j] + (d[j] - c[j]) * tx[j]
                row[j] = upper + (lower - upper) * ty[j]
    return out


@compiled
def _nearest(labels: NDArray[Value], offsets: NDArray[np.float32], rim: int, cy: float, cx: float) -> NDArray[Value]:
    height, width = labels.shape
    side = offsets.shape[1] - 2 * rim
    out = np.empty((side, side), labels.dtype)
    place, rest = np.empty(side, np.int32), np.empty(side, np.float32)
    y, x = np.empty(side, np.uint32), np.empty(side, np.uint32)
    for i in range(side):
        _floor_row(offsets[0, i + rim, rim : rim + side], cy + 0.5, place, rest)
        _mirror_row(place, height, 0, y)
        _floor_row(offsets[1, i + rim, rim : rim + side], cx + 0.5, place, rest)
        _mirror_row(place, width, 0, x)
        for j in range(side):
            out[i, j] = labels[y[j], x[j]]
    return out
