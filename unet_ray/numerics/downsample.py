"""Levels of lower resolution: means of small boxes of voxels."""

import numpy as np
import numpy.typing as npt


def downsample(values: npt.NDArray[np.uint8], factors: tuple[int, int, int]) -> npt.NDArray[np.uint8]:
    """Mean of each box of ``factors`` (z, y, x) voxels, halves rounded up.

    Args:
        values: (z, y, x) uint8. A box at the far border holds fewer voxels where a side is not a multiple.
        factors: voxels of a box along each axis.

    Returns:
        uint8, each side divided by its factor and rounded up. Whole numbers throughout, so the same on every machine.

    >>> downsample(np.array([[[0, 1, 9], [0, 2, 10]]], np.uint8), (1, 2, 2))
    array([[[ 1, 10]]], dtype=uint8)
    """
    total, boxes = values.astype(np.uint32), np.ones((1, 1, 1), np.uint32)
    for axis, factor in enumerate(factors):
        starts = np.arange(0, values.shape[axis], factor)
        total = np.add.reduceat(total, starts, axis=axis)
        shape = [1, 1, 1]
        shape[axis] = len(starts)
        boxes = boxes * np.diff(np.append(starts, values.shape[axis])).astype(np.uint32).reshape(shape)
    return ((2 * total + boxes) // (2 * boxes)).astype(np.uint8)
