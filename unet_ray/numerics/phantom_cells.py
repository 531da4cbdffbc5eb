"""The phantom's cells in one section: where they are, their mitochondria, whose voxel it is.

Cells are neurites: columns of a jittered lattice in (y, x) whose centres and radii change smoothly
with z. A voxel belongs to the cell with the least ``F = |p - c| - r``, ``|.|`` being the cell's own
ellipse: an additively weighted Voronoi diagram, so large round profiles lie beside small wedged ones.
"""

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

from unet_ray.numerics.compiled import compiled
from unet_ray.numerics.lattice_noise import mix, noise_in_z, point_bits, unit

SPACING_PX = 44  # from column to column; about half of them are swallowed by larger neighbours
_REACH = 2  # columns looked at on each side of a voxel's own
_DRIFT_PX = 26.0
_DRIFT_SECTIONS = 7
# A column not looked at is at least 2 spacings away, less what it drifts (as a rule under half of the
# bound). F grows without bound towards that distance, so that no column left out could be the nearest
# and the diagram has no straight cuts.
_SOFT_PX, _HARD_PX = 50.0, _REACH * SPACING_PX - 0.5 * _DRIFT_PX
_PENALTY_PX = 24.0
_MITO_SECTIONS = 24

# A cell that stands out less than this from its neighbours is set back, out of sight but for a void.
_SLIVER_PX, _RECESS_PX = 5.0, 40.0

# Half a membrane's thickness as it is labelled, and how much a membrane that moves within the section adds.
_HALF_PX, _SPREAD, _MOST_TILT_PX = 2.7, 0.16, 12.0

# Columns of a cell table.
CY, CX, RADIUS, DY, DX, DRADIUS, GYY, GYX, GXX, SHADE, VESICLES, RETICULUM = range(12)
MITO_R, MITO_Y, MITO_X, MITO_GYY, MITO_GYX, MITO_GXX, MITO_SHADE, MITO_CY, MITO_CX = range(12, 21)
_FIELDS = 21

_CELL, _Y, _X, _R, _MITO = 100, 101, 102, 103, 104  # purposes


@njit(inline="always")
def distance(
    table: NDArray[np.float64], a: int, b: int, y: float, x: float, vy: float, vx: float
) -> tuple[float, float, float, float]:
    """F of a cell at (y, x), its gradient (y, x), and its change per section there.

    ``vy, vx`` is how fast the point itself moves per section (the warp's slope).
    """
    py, px = y - table[a, b, CY], x - table[a, b, CX]
    square = py * py + px * px
    if square >= _HARD_PX * _HARD_PX:
        return 1e9, 0.0, 0.0, 0.0
    gy = table[a, b, GYY] * py + table[a, b, GYX] * px
    gx = table[a, b, GYX] * py + table[a, b, GXX] * px
    norm = math.sqrt(gy * py + gx * px) + 1e-6
    f = norm - table[a, b, RADIUS]
    gy /= norm
    gx /= norm
    if square > _SOFT_PX * _SOFT_PX:
        room = _HARD_PX * _HARD_PX - square
        f += _PENALTY_PX * (square - _SOFT_PX * _SOFT_PX) / room
        steep = 2 * _PENALTY_PX * (_HARD_PX * _HARD_PX - _SOFT_PX * _SOFT_PX) / (room * room)
        gy += steep * py
        gx += steep * px
    return f, gy, gx, gy * (vy - table[a, b, DY]) + gx * (vx - table[a, b, DX]) - table[a, b, DRADIUS]


@compiled
def ellipse(bits: np.uint64, stretch: float) -> tuple[float, float, float]:
    """Metric (yy, yx, xx) of an ellipse with half axes ``stretch`` and its inverse, in a random direction."""
    y = unit(bits) - 0.5
    x = unit(mix(bits)) - 0.5
    square = y * y + x * x + 1e-9
    long, short = 1 / (stretch * stretch), stretch * stretch
    return (
        (long * y * y + short * x * x) / square,
        (long - short) * y * x / square,
        (long * x * x + short * y * y) / square,
    )


@compiled
def _mitochondrion(cell: NDArray[np.float64], seed: int, z: int, a: int, b: int, size: float) -> None:
    """Fill in the mitochondrion of a cell in this section; radius 0 where there is none."""
    phase = int(point_bits(seed, _MITO, 0, a, b) % np.uint64(_MITO_SECTIONS))
    slot = (z + phase) // _MITO_SECTIONS
    bits = point_bits(seed, _MITO + 1, slot, a, b)
    if unit(bits) > 0.25 + 0.7 * size:
        return
    bits = mix(bits)
    half = (0.25 + 0.25 * unit(bits)) * _MITO_SECTIONS
    along = (z + phase - slot * _MITO_SECTIONS + 0.5 - 0.5 * _MITO_SECTIONS) / half
    if along * along >= 1:
        return
    bits = mix(bits)
    width = 13 + 9 * unit(bits) + 28 * size * unit(mix(bits))
    cell[MITO_R] = width * math.sqrt(1 - along * along)
    bits = mix(bits)
    cell[MITO_CY] = cell[CY] + 0.6 * cell[RADIUS] * (2 * unit(bits) - 1)
    bits = mix(bits)
    cell[MITO_CX] = cell[CX] + 0.6 * cell[RADIUS] * (2 * unit(bits) - 1)
    bits = mix(bits)
    cell[MITO_GYY], cell[MITO_GYX], cell[MITO_GXX] = ellipse(bits, 1.05 + 0.35 * unit(mix(bits)))
    bits = mix(bits ^ np.uint64(9))
    cell[MITO_SHADE] = 2 * unit(bits) - 1
    bits = mix(bits)
    # Across the cristae.
    y, x = unit(bits) - 0.5, unit(mix(bits)) - 0.5
    norm = math.sqrt(y * y + x * x + 1e-9)
    cell[MITO_Y], cell[MITO_X] = y / norm, x / norm


@compiled
def _all_cells(seed: int, z: int, j0: int, i0: int, nj: int, ni: int) -> NDArray[np.float64]:
    """The cell table with those that larger neighbours swallow."""
    table = np.zeros((nj, ni, _FIELDS))
    for j in range(nj):
        for i in range(ni):
            cell = table[j, i]
            a, b = j0 + j, i0 + i
            bits = point_bits(seed, _CELL, 0, a, b)
            y, dy = noise_in_z(seed, _Y, z, _DRIFT_SECTIONS, a, b)
            x, dx = noise_in_z(seed, _X, z, _DRIFT_SECTIONS, a, b)
            swell, dswell = noise_in_z(seed, _R, z, 9, a, b)
            cell[CY] = (a + 0.1 + 0.8 * unit(bits)) * SPACING_PX + _DRIFT_PX * y
            bits = mix(bits)
            cell[CX] = (b + 0.1 + 0.8 * unit(bits)) * SPACING_PX + _DRIFT_PX * x
            cell[DY], cell[DX] = _DRIFT_PX * dy, _DRIFT_PX * dx
            bits = mix(bits)
            size = unit(bits)
            size = size * size * size
            radius = 3 + 45 * size
            cell[RADIUS] = radius + (6 + 0.25 * radius) * swell
            cell[DRADIUS] = (6 + 0.25 * radius) * dswell
            bits = mix(bits)
            stretch = 1 + 0.6 * unit(bits) * (1 - 0.5 * size)
            cell[GYY], cell[GYX], cell[GXX] = ellipse(mix(bits ^ np.uint64(5)), stretch)
            bits = mix(bits)
            shade = 2 * unit(bits) - 1
            cell[SHADE] = 13 * shade
            bits = mix(bits)
            if unit(bits) < 0.12 and size < 0.3:
                cell[SHADE] -= 32  # glia are darker
            bits = mix(bits)
            cell[VESICLES] = max(0.0, unit(bits) - 0.3)
            bits = mix(bits)
            cell[RETICULUM] = 1.0 if unit(bits) < 0.6 else 0.0
            _mitochondrion(cell, seed, z, a, b, size)
    return table


@compiled
def cell_table(seed: int, z: int, j0: int, i0: int, nj: int, ni: int) -> NDArray[np.float64]:
    """What the cells of lattice rows j0.. and columns i0.. are like in section ``z``: (nj, ni, fields)."""
    wide = _all_cells(seed, z, j0 - _REACH, i0 - _REACH, nj + 2 * _REACH, ni + 2 * _REACH)
    table = wide[_REACH : nj + _REACH, _REACH : ni + _REACH].copy()
    for j in range(nj):
        for i in range(ni):
            y, x = table[j, i, CY], table[j, i, CX]
            room = 1e9
            for a in range(j, j + 2 * _REACH + 1):
                for b in range(i, i + 2 * _REACH + 1):
                    if a != j + _REACH or b != i + _REACH:
                        room = min(room, distance(wide, a, b, y, x, 0.0, 0.0)[0])
            # Cells about to vanish between larger ones are long needles, thinner than their membranes.
            if room + table[j, i, RADIUS] < _SLIVER_PX:
                table[j, i, RADIUS] -= _RECESS_PX
    return table


@njit(inline="always")
def _steepness(gy: float, gx: float, jacobian: tuple[float, float, float, float]) -> float:
    """Length in the section of a gradient given in the unwarped tissue."""
    yy, yx, xy, xx = jacobian
    return math.sqrt((gy * yy + gx * xy) ** 2 + (gy * yx + gx * xx) ** 2)


@compiled
def nearest_cell(
    table: NDArray[np.float64],
    j0: int,
    i0: int,
    y: float,
    x: float,
    vy: float,
    vx: float,
    jacobian: tuple[float, float, float, float],
) -> tuple[int, int, float, bool, float, int, int]:
    """The cell at a point and the membrane nearest to it.

    Returns:
        The cell's row and column in the table; the distance to the nearest border with another cell in
        pixels, to first order; whether that is within the membrane; how far the border moves in a section,
        pixels; the other cell's row and column.
    """
    j, i = int(y // SPACING_PX) - j0, int(x // SPACING_PX) - i0
    f1 = f2 = f3 = 1e9
    a1 = b1 = a2 = b2 = a3 = b3 = 0
    y1 = x1 = s1 = y2 = x2 = s2 = y3 = x3 = s3 = 0.0
    for a in range(j - _REACH, j + _REACH + 1):
        for b in range(i - _REACH, i + _REACH + 1):
            f, gy, gx, slope = distance(table, a, b, y, x, vy, vx)
            if f < f1:
                f3, a3, b3, y3, x3, s3 = f2, a2, b2, y2, x2, s2
                f2, a2, b2, y2, x2, s2 = f1, a1, b1, y1, x1, s1
                f1, a1, b1, y1, x1, s1 = f, a, b, gy, gx, slope
            elif f < f2:
                f3, a3, b3, y3, x3, s3 = f2, a2, b2, y2, x2, s2
                f2, a2, b2, y2, x2, s2 = f, a, b, gy, gx, slope
            elif f < f3:
                f3, a3, b3, y3, x3, s3 = f, a, b, gy, gx, slope
    # Two cells whose distances grow alike have a border that is far off and hardly defined: the floor keeps
    # it from becoming a blot.
    n2 = max(_steepness(y2 - y1, x2 - x1, jacobian), 0.35)
    n3 = max(_steepness(y3 - y1, x3 - x1, jacobian), 0.35)
    d2, d3 = (f2 - f1) / n2, (f3 - f1) / n3
    t2, t3 = min(abs(s2 - s1) / n2, _MOST_TILT_PX), min(abs(s3 - s1) / n3, _MOST_TILT_PX)
    if d2 - _SPREAD * t2 <= d3 - _SPREAD * t3:
        return a1, b1, d2, d2 < _HALF_PX + _SPREAD * t2, t2, a2, b2
    return a1, b1, d3, d3 < _HALF_PX + _SPREAD * t3, t3, a3, b3
