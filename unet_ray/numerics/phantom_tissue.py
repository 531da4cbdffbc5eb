"""What is to be seen in the phantom's cells: membranes, mitochondria, reticulum, vesicles, the stain."""

import math

import numpy as np
from numpy.typing import NDArray

from unet_ray.numerics import phantom_cells as cells
from unet_ray.numerics.compiled import compiled
from unet_ray.numerics.lattice_noise import mix, point_bits, unit
from unet_ray.numerics.phantom_cells import nearest_cell

MISALIGNED_PX = 2.5
"""How far a section may be out of line with the others, per axis."""

_SECTION, _VESICLE = 1, 3  # purposes


@compiled
def paint_tissue(
    tissue: NDArray[np.float64],
    thick: NDArray[np.bool_],
    ids: NDArray[np.uint32],
    table: NDArray[np.float64],
    j0: int,
    i0: int,
    place: NDArray[np.float64],
    moves: NDArray[np.float64],
    texture: NDArray[np.float64],
    reticulum: NDArray[np.float64],
    stain: NDArray[np.float64],
    clusters: NDArray[np.float64],
    seed: int,
    z: int,
    top: int,
    left: int,
) -> None:
    """Fill in the window whose first pixel is (top, left): tissue, thick and ids.

    Args:
        tissue: to fill: brightness before the microscope, grey levels.
        thick: to fill: within half a membrane's thickness of another cell.
        ids: to fill: the cell each pixel belongs to, > 0.
        table: `cell_table` of the lattice from (j0, i0) on, wide enough for the warp.
        j0: lattice row of the table's first.
        i0: lattice column of the table's first.
        place: (2, y + 2, x + 2) displacement of each pixel in the tissue, with a rim of 1.
        moves: its change per section.
        texture: smooth noise of a few pixels.
        reticulum: smooth noise, one of whose levels the endoplasmic reticulum follows.
        stain: smooth noise, where the stain gathers.
        clusters: smooth noise, where organelles gather.
        seed: seed of the volume.
        z: section.
        top: absolute row of the window's first row.
        left: absolute column of its first column.
    """
    bits = point_bits(seed, _SECTION, z, 0, 0)
    shift_y = MISALIGNED_PX * (2 * unit(bits) - 1)
    shift_x = MISALIGNED_PX * (2 * unit(mix(bits)) - 1)
    rows, columns = tissue.shape
    for r in range(rows):
        for c in range(columns):
            p, q = r + 1, c + 1
            y, x = top + r + shift_y + place[0, p, q], left + c + shift_x + place[1, p, q]
            jacobian = (
                1 + 0.5 * (place[0, p + 1, q] - place[0, p - 1, q]),
                0.5 * (place[0, p, q + 1] - place[0, p, q - 1]),
                0.5 * (place[1, p + 1, q] - place[1, p - 1, q]),
                1 + 0.5 * (place[1, p, q + 1] - place[1, p, q - 1]),
            )
            a, b, d, thick[r, c], tilt, a2, b2 = nearest_cell(
                table, j0, i0, y, x, moves[0, p, q], moves[1, p, q], jacobian
            )
            cell = table[a, b]
            row, column = a + j0, b + i0
            # Injective for 2**16 x 2**15 columns of the lattice: no two cells of a real volume share an id.
            ids[r, c] = np.uint32(1 + ((row & 0xFFFF) | ((column & 0x7FFF) << 16)))
            value = 162.0 + cell[cells.SHADE] + 45 * texture[r, c] + 40 * clusters[r, c]
            darker = 0.0
            if cell[cells.MITO_R] > 4:
                darker = _mitochondrion(cell, y, x, d, clusters[r, c], texture[r, c])
            if darker == 0 and cell[cells.RETICULUM] > 0:
                darker = _reticulum(d, clusters[r, c], reticulum[r, c])
            value -= darker
            if cell[cells.VESICLES] > 0 and d > 3:
                value -= _vesicles(seed, z, top + r, left + c, cell[cells.VESICLES] + 0.9 * clusters[r, c])
            # A slanted membrane is spread over the way it makes within the section, and fainter for it.
            width = 2.7 + 0.42 * tilt
            pair = unit(mix(np.uint64(row * 31 + column) + np.uint64((a2 + j0) * 31 + b2 + i0)))
            faint = 0.72 + 0.28 * pair + 0.6 * stain[r, c]
            depth = 100 * min(1.0, max(0.5, faint)) * max(0.68, 3.6 / width)
            u = d / width
            if u < 1.3:
                edge = min(1.0, (1.3 - u) / 0.8)
                value -= depth * edge * edge * (3 - 2 * edge)
            # Densities: the stain gathers at some membranes.
            if d < 16 and stain[r, c] > 0.18:
                near = 1 - d / 16
                value -= min(1.0, (stain[r, c] - 0.18) * 6) * 55 * near * near
            tissue[r, c] = value


@compiled
def _mitochondrion(cell: NDArray[np.float64], y: float, x: float, d: float, clusters: float, texture: float) -> float:
    """How much darker a mitochondrion makes a point ``d`` px from the membrane; 0 outside one."""
    py, px = y - cell[cells.MITO_CY], x - cell[cells.MITO_CX]
    gy = cell[cells.MITO_GYY] * py + cell[cells.MITO_GYX] * px
    gx = cell[cells.MITO_GYX] * py + cell[cells.MITO_GXX] * px
    # Its outline follows the cell's where it would come out of it.
    inside = min(cell[cells.MITO_R] - math.sqrt(gy * py + gx * px), d - 5.5)
    if inside <= -3:
        return 0.0
    if inside <= -1:  # a bright rim around
        return -10.0
    if inside < 2.2:  # the double membrane
        return 72.0
    if inside < 3.6:
        return 30.0
    phase = float(cell[cells.MITO_Y] * py + cell[cells.MITO_X] * px + 22 * clusters) / 6.5
    wave = 2 * abs(phase - math.floor(phase) - 0.5)
    shade = float(cell[cells.MITO_SHADE])
    return 70 + 9 * shade - 42 * max(0.0, wave - 0.5) * (1 + shade) - 25 * texture


@compiled
def _reticulum(d: float, clusters: float, level: float) -> float:
    """How much darker the endoplasmic reticulum, a level line of smooth noise, makes a point."""
    flat = abs(level - 0.03) / 0.028
    if d <= 4 or clusters <= -0.04 or flat >= 1:
        return 0.0
    return 62 * (1 - flat * flat) * min(1.0, (clusters + 0.04) * 8) * min(1.0, (d - 4) / 4)


@compiled
def _vesicles(seed: int, z: int, y: int, x: int, density: float) -> float:
    """How much darker the vesicles, rings of 40 nm or so, make a pixel; the densest of those that overlap."""
    spacing = 11
    j, i = y // spacing, x // spacing
    most = 0.0
    for a in range(j - 1, j + 2):
        for b in range(i - 1, i + 2):
            bits = point_bits(seed, _VESICLE, z, a, b)
            if unit(bits) >= density:
                continue
            bits = mix(bits)
            py = y - (a + unit(bits)) * spacing
            bits = mix(bits)
            px = x - (b + unit(bits)) * spacing
            far = math.sqrt(py * py + px * px)
            bits = mix(bits)
            kind = unit(bits)
            if kind < 0.08:  # dense core
                most = max(most, 75 * min(1.0, max(0.0, 5.5 - far) / 2))
            elif kind < 0.25:  # a microtubule cut across
                most = max(most, 60 * min(1.0, max(0.0, 2.6 - far)))
            else:
                radius = 3.2 + 1.8 * unit(mix(bits))
                most = max(most, (35 + 80 * (kind - 0.25)) * max(0.0, 1 - abs(far - radius) / 1.6))
    return most
