"""Elastic deformations: displacements of every pixel, interpolated from a coarse lattice."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from unet_ray.numerics import grey_noise
from unet_ray.numerics.compiled import compiled

_SPACING_PER_SIGMA = 2 / 3  # covariance within 0.1 % of its peak of the exact one; 0.03 % at 1/2, 0.5 % at 1
_TRUNCATE = 5.0


def smooth_noise(*, alpha: float, sigma_px: float, key: int, start: int, side: int) -> NDArray[np.float32]:
    """Displacements (2 for y and x, side, side) in pixels of noise smoothed by a Gaussian.

    White noise even in [-1, 1] at each pixel, convolved with a Gaussian of ``sigma_px`` and multiplied
    by ``alpha``, is a Gaussian process in all but name (some 450 pixels share in each value at sigma 6).
    So it is made where it has its detail: normal numbers on a lattice of 2/3 sigma, smoothed there,
    and carried to the pixels by cubic B-splines, whose own width the lattice's Gaussian leaves out.
    Mean, variance alpha**2 / (12 pi sigma**2) and covariance are those of the per-pixel definition.

    Args:
        alpha: factor on the smoothed noise, pixels.
        sigma_px: standard deviation of the Gaussian.
        key: the stream of `unet_ray.numerics.grey_noise`.
        start: first pixel, in y and in x; the field is endless, this chooses a part of it.
        side: pixels in y and in x.

    Source: Simard, Steinkraus, Platt 2003, section 2.
    """
    spacing = sigma_px * _SPACING_PER_SIGMA
    # A cubic B-spline has variance 1/3 in lattice steps; variances add up under convolution.
    sigma = math.sqrt(1 / _SPACING_PER_SIGMA**2 - 1 / 3)
    radius = math.ceil(_TRUNCATE * sigma)
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    first, last = math.floor(start / spacing) - 1, math.floor((start + side - 1) / spacing) + 2
    count = last - first + 1
    place = first - radius, first - radius
    noise = np.stack([
        grey_noise.normal((count + 2 * radius, count + 2 * radius), key=key, plane=axis, start=place)
        for axis in (0, 1)
    ])  # fmt: skip
    # Noise of variance 1/3 per pixel has standard deviation 1 / (sqrt(3) spacing) as a lattice cell's mean.
    lattice = _smooth(noise, kernel.astype(np.float32), alpha / (math.sqrt(3) * spacing))
    u = (start + np.arange(side)) / spacing
    index = np.floor(u).astype(np.int64)
    taps = _b_spline(u - index)
    return _interpolate(lattice, index - 1 - first, taps, index - 1 - first, taps)


def coarse_grid(
    displacement: ArrayLike, *, span_start: float, span_px: int, start: int, side: int
) -> NDArray[np.float32]:
    """Displacements (2 for y and x, side, side) in pixels, bicubic between those of a coarse grid.

    Args:
        displacement: (2 for y and x, nodes, nodes), pixels.
        span_start: pixel, in y and in x, of the first node.
        span_px: pixels from the first node to the last one, both counted.
        start: first pixel wanted, in y and in x; beyond the nodes the field stays as it is there.
        side: pixels wanted in y and in x.

    >>> field = coarse_grid([[[1.0, 1.0], [1.0, 1.0]], [[0.0, 4.0], [0.0, 4.0]]], span_start=0, span_px=5,
    ...                     start=0, side=5)
    >>> field[0, 3].tolist(), field[1, 0].tolist()
    ([1.0, 1.0, 1.0, 1.0, 1.0], [0.0, 0.8125, 2.0, 3.1875, 4.0])

    Source: Ronneberger, Fischer, Brox 2015, section 3.1; cubic convolution of Keys 1981, edges repeated.
    """
    lattice = np.pad(np.asarray(displacement, np.float32), ((0, 0), (1, 2), (1, 2)), mode="edge")
    nodes = lattice.shape[1] - 3
    u = (start + np.arange(side) - span_start) * ((nodes - 1) / max(span_px - 1, 1))
    u = np.clip(u, 0, nodes - 1)
    index = np.floor(u).astype(np.int64)
    taps = _keys(u - index)
    return _interpolate(lattice, index, taps, index, taps)


def _b_spline(t: NDArray[np.float64]) -> NDArray[np.float32]:
    """Weights (4, n) of the lattice points at -1, 0, 1, 2 for the places t in [0, 1)."""
    weights = [(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, 3 * (1 - t) ** 3 - 6 * (1 - t) ** 2 + 4, t**3]
    return (np.stack(weights) / 6).astype(np.float32)


def _keys(t: NDArray[np.float64]) -> NDArray[np.float32]:
    """As `_b_spline`, for cubic convolution with a = -1/2, which goes through the lattice's values."""
    weights: Sequence[NDArray[np.float64]] = [
        -0.5 * t**3 + t**2 - 0.5 * t, 1.5 * t**3 - 2.5 * t**2 + 1,
        -1.5 * t**3 + 2 * t**2 + 0.5 * t, 0.5 * t**3 - 0.5 * t**2,
    ]  # fmt: skip
    return np.stack(weights).astype(np.float32)


@compiled
def _smooth(noise: NDArray[np.float32], kernel: NDArray[np.float32], factor: float) -> NDArray[np.float32]:
    """Separable convolution, without what would need values beyond the noise."""
    planes, rows, columns = noise.shape
    height, width = rows - kernel.size + 1, columns - kernel.size + 1
    out = np.zeros((planes, height, width), np.float32)
    row = np.empty(columns, np.float32)
    for p in range(planes):
        for y in range(height):
            row[:] = 0
            for k in range(kernel.size):
                weight = np.float32(kernel[k] * factor)
                for x in range(columns):
                    row[x] += weight * noise[p, y + k, x]
            for k in range(kernel.size):
                for x in range(width):
                    out[p, y, x] += kernel[k] * row[x + k]
    return out


@compiled
def _interpolate(
    lattice: NDArray[np.float32],
    y_first: NDArray[np.int64], y_taps: NDArray[np.float32],
    x_first: NDArray[np.int64], x_taps: NDArray[np.float32],
) -> NDArray[np.float32]:  # fmt: skip
    """Each value from 4 x 4 lattice points, of which the first is at (y_first, x_first).

    Along x first, for the lattice's few rows; what is left per pixel goes along whole rows, many at a time.
    """
    planes, rows, _ = lattice.shape
    out = np.empty((planes, y_first.size, x_first.size), np.float32)
    wide = np.empty((rows, x_first.size), np.float32)
    for p in range(planes):
        for y in range(rows):
            for j in range(x_first.size):
                x = x_first[j]
                wide[y, j] = (
                    x_taps[0, j] * lattice[p, y, x] + x_taps[1, j] * lattice[p, y, x + 1]
                    + x_taps[2, j] * lattice[p, y, x + 2] + x_taps[3, j] * lattice[p, y, x + 3]
                )  # fmt: skip
        for i in range(y_first.size):
            y = y_first[i]
            first, second, third, fourth = y_taps[0, i], y_taps[1, i], y_taps[2, i], y_taps[3, i]
            a, b, c, d, row = wide[y], wide[y + 1], wide[y + 2], wide[y + 3], out[p, i]
            for j in range(x_first.size):
                row[j] = first * a[j] + second * b[j] + third * c[j] + fourth * d[j]
    return out
