"""Levels of lower resolution: means of small boxes of voxels."""

from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

Stored = TypeVar("Stored", np.uint8, np.float16)


def downsample(values: npt.NDArray[Stored], factors: tuple[int, int, int]) -> npt.NDArray[Stored]:
    """Mean of each box of ``factors`` (z, y, x) voxels.

    Args:
        values: (z, y, x), uint8 or float16. A box at the far border holds fewer voxels where a side is not a multiple.
        factors: voxels of a box along each axis.

    Returns:
        Of the same dtype, each side divided by its factor and rounded up. uint8 is summed in whole numbers and halves
        are rounded up; float16 is summed in float32, along z, then y, then x. So it is the same on every machine.

    >>> downsample(np.array([[[0, 1, 9], [0, 2, 10]]], np.uint8), (1, 2, 2))
    array([[[ 1, 10]]], dtype=uint8)
    >>> downsample(np.array([[[0.5, 1.0, 0.25]]], np.float16), (1, 2, 2))
    array([[[0.75, 0.25]]], dtype=float16)
    """
    whole = values.dtype == np.uint8
    total: npt.NDArray[Any] = values.astype(np.uint32 if whole else np.float32)
    boxes = np.ones((1, 1, 1), np.uint32)
    for axis, factor in enumerate(factors):
        starts = np.arange(0, values.shape[axis], factor)
        total = np.add.reduceat(total, starts, axis=axis)
        shape = [1, 1, 1]
        shape[axis] = len(starts)
        boxes = boxes * np.diff(np.append(starts, values.shape[axis])).astype(np.uint32).reshape(shape)
    mean: npt.NDArray[Any] = (2 * total + boxes) // (2 * boxes) if whole else total / boxes.astype(np.float32)
    return mean.astype(values.dtype)
