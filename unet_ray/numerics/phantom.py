"""A synthetic ssTEM volume with exact labels, of any size, made block by block."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unet_ray.geometry.box import Box
from unet_ray.numerics.compiled import compiled
from unet_ray.numerics.lattice_noise import add_noise, mix, point_bits, unit
from unet_ray.numerics.phantom_cells import SPACING_PX, cell_table
from unet_ray.numerics.phantom_tissue import MISALIGNED_PX, paint_tissue

VOXEL_SIZE_NM = (50.0, 4.0, 4.0)
"""Voxel size of the phantom, (z, y, x): that of the ISBI 2012 stack."""

_PIECE = (128, 512)  # rows and columns computed at once: what is in between stays in the cache
_RIM = 2  # pixels that a piece needs around it, to compare ids and fill what is left between membranes

_WARP_PX, _WARP_SPACING, _WARP_SECTIONS = 100.0, 108, 6
_WIGGLE_PX, _WIGGLE_SPACING = 14.0, 20
_MOST_PX = int(_WARP_PX + _WIGGLE_PX + MISALIGNED_PX) + 1

_EXPOSURE, _GRAIN = 4, 2  # purposes; the smooth noises have 10 and more, the cells 100 and more
_NO_SLOPE: NDArray[np.float64] = np.empty((0, 0))


@dataclass(frozen=True, slots=True, eq=False)
class PhantomBlock:
    """One block of the phantom: three arrays of the same shape (z, y, x)."""

    image: NDArray[np.uint8]
    """Grey level, 0 is darkest; membranes are dark."""
    cell_ids: NDArray[np.uint32]
    """The cell each voxel belongs to, membrane voxels too; never 0."""
    membrane: NDArray[np.uint8]
    """1 = membrane, 0 = inside a cell."""


def phantom_block(box: Box, seed: int = 0) -> PhantomBlock:
    """The voxels of ``box`` in the endless phantom of ``seed``.

    A pure function of the absolute position: any block equals the same crop of
    any other block that holds it, so a volume can be made in any pieces, on
    any machines. 512 x 512 pixels hold some 100 neurites, which continue through z,
    with mitochondria, vesicles and endoplasmic reticulum; sections differ in
    brightness, contrast and noise, and are slightly out of line.

    Args:
        box: any box, in (z, y, x) voxels of 50 x 4 x 4 nm; it may start below 0.
        seed: 0 <= seed < 2**63; another seed is another volume.

    Returns:
        Image, cell ids and membrane. Voxels of different cells that touch by a
        face or edge within a section are always membrane, so the 4-connected components of
        non-membrane never hold two cells. One cell may have several profiles.

    >>> from unet_ray.geometry.box import Box
    >>> block = phantom_block(Box((0, 0, 0), (2, 64, 96)), seed=1)
    >>> block.image.shape, block.image.dtype, block.cell_ids.dtype
    ((2, 64, 96), dtype('uint8'), dtype('uint32'))
    >>> part = phantom_block(Box((1, 10, 20), (2, 64, 96)), seed=1)
    >>> bool((part.image == block.image[1:, 10:, 20:]).all())
    True

    Source: cells from an additively weighted Voronoi diagram (Ash and Bolker
    1986), domain-warped; lattice noise after Perlin 1985.
    """
    image = np.empty(box.shape, np.uint8)
    ids = np.empty(box.shape, np.uint32)
    membrane = np.empty(box.shape, np.uint8)
    (z0, y0, x0), (_, y1, x1) = box.start, box.stop
    for k in range(box.shape[0]):
        for y in range(y0, y1, _PIECE[0]):
            for x in range(x0, x1, _PIECE[1]):
                rows, columns = (
                    slice(y - y0, min(y + _PIECE[0], y1) - y0),
                    slice(x - x0, min(x + _PIECE[1], x1) - x0),
                )
                _piece(
                    image[k, rows, columns],
                    ids[k, rows, columns],
                    membrane[k, rows, columns],
                    seed,
                    z0 + k,
                    y,
                    x,
                )
    return PhantomBlock(image, ids, membrane)


def _piece(
    image: NDArray[np.uint8],
    ids: NDArray[np.uint32],
    membrane: NDArray[np.uint8],
    seed: int,
    z: int,
    y0: int,
    x0: int,
) -> None:
    """Fill a window of section ``z`` whose first pixel is (y0, x0)."""
    shape = (image.shape[0] + 2 * _RIM, image.shape[1] + 2 * _RIM)
    top, left = y0 - _RIM, x0 - _RIM

    def noise(purpose: int, amplitude: float, spacing: int, period: int) -> NDArray[np.float64]:
        value = np.zeros(shape)
        add_noise(value, _NO_SLOPE, amplitude, seed, purpose, z, period, top, left, spacing)
        return value

    # Where each pixel lies in the unwarped tissue, and how that moves with z.
    # One pixel more on each side, for the warp's own gradient.
    place, moves = np.zeros((2, 2, shape[0] + 2, shape[1] + 2))
    for axis in range(2):
        at = (seed, 10 + axis, z, _WARP_SECTIONS, top - 1, left - 1, _WARP_SPACING)
        add_noise(place[axis], moves[axis], _WARP_PX, *at)
        at = (seed, 12 + axis, z, 2, top - 1, left - 1, _WIGGLE_SPACING)
        add_noise(place[axis], _NO_SLOPE, _WIGGLE_PX, *at)
    j0, i0 = ((start - _MOST_PX) // SPACING_PX - 2 for start in (top, left))
    nj, ni = (
        (start + side + _MOST_PX) // SPACING_PX + 3 - first
        for start, side, first in ((top, shape[0], j0), (left, shape[1], i0))
    )
    tissue = np.empty(shape)
    thick = np.empty(shape, np.bool_)
    every = np.empty(shape, np.uint32)
    paint_tissue(
        tissue,
        thick,
        every,
        cell_table(seed, z, j0, i0, nj, ni),
        j0,
        i0,
        place,
        moves,
        noise(20, 1.0, 5, 0),
        noise(21, 1.0, 26, 2),
        noise(22, 1.0, 44, 3),
        noise(23, 1.0, 13, 2),
        seed,
        z,
        top,
        left,
    )
    _expose(image, tissue, noise(24, 1.0, 170, 0), seed, z, top, left)
    _label(ids, membrane, every, thick)


@compiled
def _expose(
    image: NDArray[np.uint8],
    tissue: NDArray[np.float64],
    light: NDArray[np.float64],
    seed: int,
    z: int,
    top: int,
    left: int,
) -> None:
    """Grey levels: the section's contrast and brightness, shot noise, then the blur."""
    bits = mix(point_bits(seed, _EXPOSURE, z, 0, 0))
    contrast = 0.85 + 0.3 * unit(bits)
    bits = mix(bits)
    brightness = -6 + 28 * (unit(bits) - 0.5)
    bits = mix(bits)
    grain = 30 + 24 * unit(bits)
    rows, columns = tissue.shape
    for r in range(rows):
        for c in range(columns):
            value = 128 + contrast * (tissue[r, c] - 128) + brightness + 45 * light[r, c]
            bits = point_bits(seed, _GRAIN, z, top + r, left + c)
            # Four uniform 16-bit numbers: normal enough, no logarithm.
            total = 0.0
            for part in range(4):
                total += np.float64((bits >> np.uint64(16 * part)) & np.uint64(0xFFFF))
            normal = (total / 65536 - 2) * 1.7320508
            tissue[r, c] = value + grain * normal * np.sqrt(max(value, 20.0) / 140)
    for r in range(image.shape[0]):
        for c in range(image.shape[1]):
            s = 0.0
            for a in range(3):
                line = tissue[r + _RIM - 1 + a]
                k = c + _RIM
                s += (1.0 + (a == 1)) * (line[k - 1] + 2 * line[k] + line[k + 1])
            image[r, c] = np.uint8(min(255.0, max(0.0, s / 16 + 0.5)))


@compiled
def _label(
    ids: NDArray[np.uint32], membrane: NDArray[np.uint8], every: NDArray[np.uint32], thick: NDArray[np.bool_]
) -> None:
    """Membrane where it is thick, wherever two cells touch, and in the pinholes between; no lone specks."""
    rows, columns = ids.shape
    edge = np.empty((rows + 2, columns + 2), np.uint8)
    for r in range(rows + 2):
        for c in range(columns + 2):
            i, k = r + _RIM - 1, c + _RIM - 1
            touch = thick[i, k]
            for a in range(-1, 2):
                for b in range(-1, 2):
                    touch |= every[i + a, k + b] != every[i, k]
            edge[r, c] = touch
    for r in range(rows):
        for c in range(columns):
            ids[r, c] = every[r + _RIM, c + _RIM]
            around = 0
            for a in range(3):
                for b in range(3):
                    around += edge[r + a, c + b]
            # Of a border between two ids at least 4 pixels are in the window: it is never taken for a speck.
            membrane[r, c] = around >= (4 if edge[r + 1, c + 1] else 6)
