"""Two segmentations counted against one another: the sums behind Rand and information scores.

n_ij is the number of pixels in segment i of the truth and segment j of the prediction; 0 is membrane.
Pixels that the truth calls membrane are dropped ("foreground-restricted"). Pixels of a true cell that
the prediction calls membrane are singletons: each one a segment of its own.

Source: Arganda-Carreras et al., Crowdsourcing the creation of image segmentation algorithms for
connectomics, Front. Neuroanat. 2015, and the organisers' Java code (fiji/Trainable_Segmentation).
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from math import log
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from unet_ray.numerics.compiled import compiled

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]


def label_cells(cell: npt.NDArray[np.bool_]) -> npt.NDArray[np.int32]:
    """Number the 4-connected components of the cell pixels.

    Args:
        cell: (y, x), True = cell interior.

    Returns:
        (y, x) int32: 0 = membrane, segments from 1 without gaps.

    >>> label_cells(np.array([[1, 0], [0, 1]], bool)).tolist()  # a diagonal does not connect
    [[1, 0], [0, 2]]
    """
    return np.asarray(ndimage.label(cell)[0], np.int32)


class Segments(NamedTuple):
    """The pixels of a label image segment by segment, so that a table can be made in one sweep.

    Attributes:
        pixels: flat pixel numbers of segments 1, 2, ..., one segment after the other; 0 is left out.
        starts: segment i is ``pixels[starts[i - 1]:starts[i]]``.
    """

    pixels: npt.NDArray[np.int32]
    starts: Counts


def segments_of(labels: npt.NDArray[np.int32]) -> Segments:
    """Group the pixels of a label image (0 = left out) by label.

    >>> pixels, starts = segments_of(np.array([[2, 0], [1, 2]], np.int32))
    >>> pixels.tolist(), starts.tolist()
    ([2, 0, 3], [0, 1, 3])
    """
    flat = labels.ravel()
    sizes = np.bincount(flat, minlength=1)
    sizes[0] = 0
    starts = np.cumsum(sizes)
    return Segments(_grouped(flat, starts), starts)


@compiled
def _grouped(flat: npt.NDArray[np.int32], starts: Counts) -> npt.NDArray[np.int32]:
    pixels = np.empty(starts[-1], np.int32)
    following = starts.copy()
    for pixel in range(flat.size):
        label = flat[pixel]
        if label > 0:
            pixels[following[label - 1]] = pixel
            following[label - 1] += 1
    return pixels


@dataclass(frozen=True, eq=False)
class OverlapSums:
    """Sums over n_ij, i >= 1, of one section: an array over thresholds each, or one value.

    They are whole numbers, and sums of c ln c, from which every score follows; sums of sections add.

    Attributes:
        pixels: n, the pixels of true cells.
        membrane: the sum of n_i0, the singletons.
        true_sq: sum of a_i^2, with a_i the size of a true segment.
        predicted_sq: sum over j >= 1 of b_j^2, with b_j the size of a predicted segment inside true cells.
        joint_sq: sum over j >= 1 of n_ij^2.
        membrane_sq: sum of n_i0^2 (for the adapted Rand error only).
        true_log: sum of a_i ln a_i.
        predicted_log: sum over j >= 1 of b_j ln b_j.
        joint_log: sum over j >= 1 of n_ij ln n_ij.
    """

    pixels: Counts
    membrane: Counts
    true_sq: Counts
    predicted_sq: Counts
    joint_sq: Counts
    membrane_sq: Counts
    true_log: Floats
    predicted_log: Floats
    joint_log: Floats

    @classmethod
    def stacked(cls, rows: "Sequence[OverlapSums]") -> "OverlapSums":
        """Put rows side by side along a new first axis."""
        return cls(**{f.name: np.stack([getattr(row, f.name) for row in rows]) for f in fields(cls)})

    def to_json(self) -> dict[str, Any]:
        """Return the sums as lists."""
        return {f.name: np.asarray(getattr(self, f.name)).tolist() for f in fields(self)}


def overlap_sums(truth: Segments, predicted: npt.NDArray[np.int32]) -> OverlapSums:
    """Count a predicted label image against the true segments.

    Args:
        truth: of an image of the same shape.
        predicted: (y, x), 0 = membrane. Labels may have gaps; only their equality matters.

    Returns:
        Sums, each a single number. Below 3e9 pixels of true cells the squares fit into 64 bits.

    >>> true = segments_of(np.array([[1, 1, 1, 0, 2]], np.int32))
    >>> sums = overlap_sums(true, np.array([[1, 1, 0, 1, 1]], np.int32))
    >>> [int(x) for x in (sums.pixels, sums.membrane, sums.true_sq, sums.predicted_sq, sums.joint_sq)]
    [4, 1, 10, 9, 5]
    """
    whole, real = _sums(truth.pixels, truth.starts, predicted.ravel(), int(predicted.max(initial=0)))
    return OverlapSums(*whole, *real)


@compiled
def _sums(
    pixels: npt.NDArray[np.int32], starts: Counts, predicted: npt.NDArray[np.int32], num_predicted: int
) -> tuple[Counts, Floats]:
    # One row of the table at a time: a dense counter and the list of what it touched is exact, needs
    # neither sorting nor hashing, and memory only for the segments.
    row = np.zeros(num_predicted + 1, np.int64)
    size = np.zeros(num_predicted + 1, np.int64)
    touched = np.empty(num_predicted + 1, np.int64)
    whole = np.zeros(6, np.int64)
    real = np.zeros(3, np.float64)
    whole[0] = pixels.size
    for segment in range(1, starts.size):
        start, stop = starts[segment - 1], starts[segment]
        if stop == start:
            continue
        num_touched = 0
        for k in range(start, stop):
            j = predicted[pixels[k]]
            if row[j] == 0:
                touched[num_touched] = j
                num_touched += 1
            row[j] += 1
        area = stop - start
        whole[2] += area * area
        real[0] += area * log(area)
        for k in range(num_touched):
            j = touched[k]
            count = row[j]
            row[j] = 0
            if j == 0:
                whole[1] += count
                whole[5] += count * count
            else:
                whole[4] += count * count
                real[2] += count * log(count)
                size[j] += count
    for j in range(1, num_predicted + 1):
        count = size[j]
        if count > 0:
            whole[3] += count * count
            real[1] += count * log(count)
    return whole, real
