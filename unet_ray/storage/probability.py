"""Probabilities as a segmentation stores them, and the labels that follow from what is stored.

Labels are taken from the stored values, not from the network's floats: whoever
makes them later, after a new threshold or a repair, then gets the same ones.
"""

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Dtype = Literal["uint8", "float16"]


def mask_of(probability: npt.NDArray[Any], threshold: float) -> npt.NDArray[np.uint8]:
    """1 where the stored probability (uint8: 0..255 = 0..1; float16: 0..1) is above ``threshold``, else 0."""
    if probability.dtype == np.uint8:
        # A whole number is above the threshold where it is above its whole part; bytes are compared 10 times as fast.
        return (probability > np.uint8(threshold * 255)).view(np.uint8)
    # As a float64 of NumPy's: Python's own would be rounded to float16, and the values at it would count as above.
    return (probability > np.float64(threshold)).view(np.uint8)


def likeliest_class(probability: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Index of the class with the highest stored probability; of several the lowest.

    Args:
        probability: (k, z, y, x) with at most 256 classes.

    Returns:
        (z, y, x) uint8.

    >>> likeliest_class(np.array([[[[7, 1]]], [[[7, 2]]], [[[0, 3]]]], np.uint8)).tolist()
    [[[0, 2]]]
    """
    # Class by class: argmax over the first axis would hold 8 bytes per voxel and jump through memory.
    highest = probability[0].copy()
    found = np.zeros(highest.shape, np.uint8)
    for number, of_class in enumerate(probability[1:], start=1):
        found[of_class > highest] = number
        np.maximum(highest, of_class, out=highest)
    return found
