"""Hashed lattices: random numbers and smooth noise as pure functions of seed and absolute position.

Only integer arithmetic, +, -, *, / and square roots are used, all of them exactly rounded, in a fixed order
per value: a voxel's value does not depend on the block it is computed in, nor on the vector width of the
machine (sines and exponentials from vector libraries would).
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray

from unet_ray.numerics.compiled import compiled

_STEP = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_TO_UNIT = 2.0**-53


# Inlined by Numba, not left to LLVM: a caller compiled while this one came from the cache on disk would
# call it, at half the speed.
@njit(inline="always")
def mix(state: np.uint64) -> np.uint64:
    """Next 64 random bits after ``state`` (SplitMix64: Steele, Lea, Flood 2014, figure 15)."""
    z = state + _STEP
    z = (z ^ (z >> np.uint64(30))) * _MIX_1
    z = (z ^ (z >> np.uint64(27))) * _MIX_2
    return z ^ (z >> np.uint64(31))


@compiled
def point_bits(seed: int, purpose: int, z: int, y: int, x: int) -> np.uint64:
    """64 random bits of a lattice point; any whole coordinates, negative ones too."""
    bits = mix(np.uint64(seed))
    bits = mix(bits ^ np.uint64(purpose))
    bits = mix(bits ^ np.uint64(z))
    bits = mix(bits ^ np.uint64(y))
    return mix(bits ^ np.uint64(x))


@njit(inline="always")
def unit(bits: np.uint64) -> float:
    """Uniform number in [0, 1) from 64 random bits.

    >>> 0.0 <= unit(mix(np.uint64(1))) < 1.0
    True
    """
    return np.float64(bits >> np.uint64(11)) * _TO_UNIT


@njit(inline="always")
def spline_weights(t: float) -> tuple[float, float, float, float]:
    """Weights of the four nodes around a point, uniform cubic B-spline, 0 <= t < 1; they sum to 1."""
    s = 1.0 - t
    return s * s * s / 6, (4 - 3 * t * t * (2 - t)) / 6, (4 - 3 * s * s * (2 - s)) / 6, t * t * t / 6


@compiled
def noise_in_z(seed: int, purpose: int, z: int, period: int, j: int, i: int) -> tuple[float, float]:
    """Smooth noise along z of the column (j, i): its value in (-1, 1) and its slope per section.

    Args:
        seed: seed of the volume.
        purpose: which noise; different ones are independent.
        z: section.
        period: sections from node to node; 0 draws each section alone (slope 0).
        j: column's lattice row.
        i: column's lattice column.
    """
    if period == 0:
        return 2 * unit(point_bits(seed, purpose, z, j, i)) - 1, 0.0
    node = z // period
    t = (z - node * period) / period
    s = 1.0 - t
    a = 2 * unit(point_bits(seed, purpose, node - 1, j, i)) - 1
    b = 2 * unit(point_bits(seed, purpose, node, j, i)) - 1
    c = 2 * unit(point_bits(seed, purpose, node + 1, j, i)) - 1
    d = 2 * unit(point_bits(seed, purpose, node + 2, j, i)) - 1
    wa, wb, wc, wd = spline_weights(t)
    slope = (-s * s * a + t * (3 * t - 4) * b + s * (4 - 3 * s) * c + t * t * d) / (2 * period)
    return wa * a + wb * b + wc * c + wd * d, slope


@compiled
def add_noise(
    value: NDArray[np.float64],
    slope: NDArray[np.float64],
    amplitude: float,
    seed: int,
    purpose: int,
    z: int,
    period: int,
    y0: int,
    x0: int,
    spacing: int,
) -> None:
    """Add smooth noise of section ``z`` to a window of it, in place.

    Cubic B-spline over random nodes, so twice differentiable and never beyond
    ``amplitude``.

    Args:
        value: window (y, x); the noise is added to it.
        slope: the same window for the noise's slope per section; one of another shape is left alone.
        amplitude: bound of the noise.
        seed: seed of the volume.
        purpose: which noise.
        z: section.
        period: sections from node to node, see `noise_in_z`.
        y0: absolute row of the window's first row.
        x0: absolute column of the window's first column.
        spacing: pixels from node to node.
    """
    rows, columns = value.shape
    sloped = slope.shape == value.shape
    j0, i0 = y0 // spacing - 1, x0 // spacing - 1
    nj = (y0 + rows - 1) // spacing + 3 - j0
    ni = (x0 + columns - 1) // spacing + 3 - i0
    nodes, node_slopes = np.empty((nj, ni)), np.empty((nj, ni))
    for j in range(nj):
        for i in range(ni):
            v, dv = noise_in_z(seed, purpose, z, period, j0 + j, i0 + i)
            nodes[j, i], node_slopes[j, i] = amplitude * v, amplitude * dv
    weights = np.empty((columns, 4))
    first = np.empty(columns, np.int64)
    for x in range(columns):
        i = (x0 + x) // spacing
        first[x] = i - 1 - i0
        weights[x] = spline_weights((x0 + x - i * spacing) / spacing)
    line, line_slope = np.empty(ni), np.empty(ni)
    for y in range(rows):
        j = (y0 + y) // spacing
        a, b, c, d = spline_weights((y0 + y - j * spacing) / spacing)
        j -= 1 + j0
        for i in range(ni):
            line[i] = a * nodes[j, i] + b * nodes[j + 1, i] + c * nodes[j + 2, i] + d * nodes[j + 3, i]
        for x in range(columns):
            i, w = first[x], weights[x]
            value[y, x] += w[0] * line[i] + w[1] * line[i + 1] + w[2] * line[i + 2] + w[3] * line[i + 3]
        if not sloped:
            continue
        for i in range(ni):
            line_slope[i] = (
                a * node_slopes[j, i]
                + b * node_slopes[j + 1, i]
                + c * node_slopes[j + 2, i]
                + d * node_slopes[j + 3, i]
            )
        for x in range(columns):
            i, w = first[x], weights[x]
            slope[y, x] += (
                w[0] * line_slope[i] + w[1] * line_slope[i + 1] + w[2] * line_slope[i + 2] + w[3] * line_slope[i + 3]
            )
