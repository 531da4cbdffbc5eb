"""Local shape descriptors: what a pixel should know of the cell around it, learnt beside the membrane.

A network that can tell where a cell's mass lies, how far it spreads and how much of the neighbourhood it fills has to
know where its membrane closes, also where the staining is faint.

Source: Sheridan et al., "Local shape descriptors for neuron segmentation", Nature Methods 2023, in two dimensions.
"""

import math

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from unet_ray.geometry.descriptor_grid import STEP_PX
from unet_ray.numerics.compiled import compiled

_SIGMA = 4.0
"""Of the Gaussian window, steps: 16 px, about the radius of a small neurite at 4 nm."""
_REACH = 8
_WINDOW = np.exp(-(np.arange(-_REACH, _REACH + 1) ** 2) / (2 * _SIGMA**2))


def shape_descriptors(label: NDArray[np.uint8], known: NDArray[np.bool_], out: NDArray[np.float32]) -> None:
    """Describe the cell of every fourth pixel within a Gaussian window around it.

    Cells are the 4-connected pixels of class 0 in the label; other cells in the window do not count.

    Args:
        label: (h, w), 0 = inside a cell.
        known: (h, w), False where nobody labelled; such pixels are in no cell.
        out: of `unet_ray.geometry.descriptor_grid.descriptor_sides`, filled: offset in y and in x from the pixel to
            the cell's centre of mass in the window, variance in y and in x, correlation of y and x, share of the
            window that the cell fills, each scaled to 0..1; last 1 where there is a cell, and 0, like all others,
            where there is none.

    >>> found = np.empty((7, 17, 17), np.float32)
    >>> shape_descriptors(np.zeros((68, 68), np.uint8), np.ones((68, 68), bool), found)
    >>> [round(float(value), 2) for value in found[:, 8, 8]]  # in the middle of a cell that fills the window
    [0.5, 0.5, 0.82, 0.82, 0.5, 1.0, 1.0]
    """
    ids, _ = ndimage.label((label == 0) & known)
    _, rows, columns = out.shape
    middle = STEP_PX // 2
    sampled = ids[middle::STEP_PX, middle::STEP_PX][:rows, :columns]
    _describe(np.ascontiguousarray(sampled, np.int32), _WINDOW, _SIGMA, out)
    np.clip(out, 0, 1, out=out)


@compiled
def _describe(
    ids: NDArray[np.int32], window: NDArray[np.float64], sigma: float, out: NDArray[np.float32]
) -> None:  # fmt: skip
    """Moments of each pixel's own id in the window, scaled by its sigma."""
    rows, columns = ids.shape
    reach = window.size // 2
    for y in range(rows):
        for x in range(columns):
            cell = ids[y, x]
            if cell == 0:
                out[:, y, x] = 0
                continue
            whole = mass = of_y = of_x = of_yy = of_xx = of_yx = 0.0
            for dy in range(-min(reach, y), min(reach, rows - 1 - y) + 1):
                for dx in range(-min(reach, x), min(reach, columns - 1 - x) + 1):
                    weight = window[dy + reach] * window[dx + reach]
                    whole += weight
                    if ids[y + dy, x + dx] == cell:
                        mass += weight
                        of_y += weight * dy
                        of_x += weight * dx
                        of_yy += weight * dy * dy
                        of_xx += weight * dx * dx
                        of_yx += weight * dy * dx
            mean_y, mean_x = of_y / mass, of_x / mass
            in_y, in_x, both = of_yy / mass - mean_y**2, of_xx / mass - mean_x**2, of_yx / mass - mean_y * mean_x
            out[0, y, x] = (mean_y / sigma + 1) / 2
            out[1, y, x] = (mean_x / sigma + 1) / 2
            out[2, y, x] = in_y / sigma**2
            out[3, y, x] = in_x / sigma**2
            out[4, y, x] = (both / math.sqrt(max(in_y * in_x, 0.01)) + 1) / 2
            out[5, y, x] = mass / whole
            out[6, y, x] = 1
