"""Levels of lower resolution: means of small boxes of voxels."""

from math import prod
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

Stored = TypeVar("Stored", np.uint8, np.float16)
# Voxels of a box whose sum, twice over and rounded, 16 bits hold: they are summed and divided several times as fast.
MOST_IN_UINT16 = 128


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
    summed = np.dtype(np.float32 if not whole else np.uint16 if prod(factors) <= MOST_IN_UINT16 else np.uint32)
    total: npt.NDArray[Any] = values
    sizes = []
    for axis, (side, factor) in enumerate(zip(values.shape, factors, strict=True)):
        total = _sums(total, axis, factor, summed)
        sizes.append(np.minimum(factor, side - np.arange(0, side, factor)).astype(summed))
    boxes: Any = sizes[0][:, None, None] * sizes[1][:, None] * sizes[2]
    if boxes.size and (boxes == boxes.flat[0]).all():
        boxes = boxes.flat[0]  # NumPy multiplies and shifts instead of dividing
    mean: npt.NDArray[Any] = (2 * total + boxes) // (2 * boxes) if whole else total / boxes
    return mean.astype(values.dtype)


def _sums(values: npt.NDArray[Any], axis: int, factor: int, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Sums of ``factor`` neighbours each along an axis, first to last; the last one of what is left."""
    along = np.moveaxis(values, axis, 0)
    found = along[::factor].astype(dtype)
    for step in range(1, factor):
        part = along[step::factor]
        found[: len(part)] += part
    return np.moveaxis(found, 0, axis)
