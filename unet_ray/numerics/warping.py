"""The warping error: splits and mergers that remain when the truth is bent onto the prediction.

Source: Jain et al., Boundary learning by optimization with topological constraints, CVPR 2010; order of
visiting and classification of the mismatches as in the organisers' Java classes for the ISBI 2012 challenge
(fiji/Trainable_Segmentation), with the parameters of their script: ten thresholds, radius 20, no mask.
"""

import numpy as np
import numpy.typing as npt

from unet_ray.numerics.compiled import compiled
from unet_ray.numerics.contingency import label_cells
from unet_ray.numerics.thresholds import WARPING_THRESHOLDS

KINDS = ("split", "merge", "hole_addition", "hole_deletion", "object_addition", "object_deletion")
"""What a pixel can be that the warped truth and the prediction do not agree on; the first two are errors."""
SPLIT, MERGE, HOLE_ADDITION, HOLE_DELETION, OBJECT_ADDITION, OBJECT_DELETION = range(6)

# The eight neighbours (dy, dx) in a ring; odd places share an edge with the centre.
RING = ((-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1))


def _simple_points() -> npt.NDArray[np.bool_]:
    # Yokoi's number for 4-connected cells is 1 exactly where flipping the centre keeps the topology of the
    # cells (4-connected) and of the membrane (8-connected); Yokoi, Toriwaki, Fukumura 1975.
    ring = (np.arange(256)[:, None] >> np.arange(8)) & 1
    number = sum(ring[:, k] * (1 - ring[:, (k + 1) % 8] * ring[:, (k + 2) % 8]) for k in (1, 3, 5, 7))
    return np.asarray(number == 1)


SIMPLE = _simple_points()
"""By the neighbourhood's bits (cell = 1, in the order of `RING`): may the centre be flipped?"""


def warping_px(
    cell_probability: npt.NDArray[np.float32], cell: npt.NDArray[np.bool_], radius: int = 20
) -> npt.NDArray[np.int64]:
    """Count, by kind, the pixels that warping cannot mend, at each of the ten thresholds.

    The warping error of a stack is the least over the thresholds of (split + merge pixels) / pixels, 0 being
    the best. A merger costs one pixel per channel through the membrane, a missing membrane about its length;
    thickness, small displacements, lost cells and specks cost nothing. A prediction of membrane everywhere
    has no error, so this number means nothing without the others.

    Args:
        cell_probability: (y, x), 0 = surely membrane, 1 = surely cell.
        cell: (y, x) the truth, True = cell interior. Outside is membrane.
        radius: pixels around a mismatch within which it is decided whether a cell was cut in two.

    Returns:
        int64 (10 thresholds, 6 `KINDS`).

    >>> truth = np.ones((5, 5), bool)
    >>> truth[:, 2] = False
    >>> prediction = truth.astype(np.float32)
    >>> prediction[2, 2] = 1.0  # a pinhole through the membrane
    >>> dict(zip(KINDS, warping_px(prediction, truth)[5].tolist()))["merge"]
    1
    """
    return np.stack([_mismatch_px(cell_probability, cell, float(t), radius) for t in WARPING_THRESHOLDS])


def _mismatch_px(
    cell_probability: npt.NDArray[np.float32], cell: npt.NDArray[np.bool_], threshold: float, radius: int
) -> npt.NDArray[np.int64]:
    predicted = cell_probability.astype(np.float64) > threshold
    warped = warp(cell, cell_probability, threshold)
    return classify(warped, predicted, radius)


def warp(
    cell: npt.NDArray[np.bool_], cell_probability: npt.NDArray[np.float32], threshold: float
) -> npt.NDArray[np.bool_]:
    """Bend the truth onto the thresholded prediction without changing its topology.

    Pixels that differ are flipped one by one where they are simple points, the farthest from the threshold
    first, then column by column; again and again until nothing more can be flipped. So the result depends
    on the threshold even if the prediction is binary.

    Args:
        cell: (y, x) the truth, True = cell interior (4-connected; membrane is 8-connected).
        cell_probability: (y, x), a cell where it is strictly above the threshold.
        threshold: 0 to 1.

    Returns:
        (y, x) bool, with as many cells and holes as the truth.

    >>> truth = np.array([[1, 1, 0, 1, 1]], bool)
    >>> warp(truth, np.array([[1, 0, 1, 1, 1]], np.float32), 0.5).astype(int).tolist()
    [[1, 0, 1, 1, 1]]
    """
    # One ring of membrane: a cell at the section's border is bounded there.
    warped = np.pad(cell, 1).astype(np.uint8)
    wide = cell_probability.astype(np.float64)
    x, y = np.nonzero((cell != (wide > threshold)).T)
    distance = np.abs(wide[y, x] - threshold).astype(np.float32)
    pixels = ((y + 1) * warped.shape[1] + x + 1)[np.argsort(-distance, kind="stable")]
    _flip_simple(warped, pixels, SIMPLE)
    return warped[1:-1, 1:-1].astype(np.bool_)


@compiled
def _flip_simple(warped: npt.NDArray[np.uint8], pixels: npt.NDArray[np.int64], simple: npt.NDArray[np.bool_]) -> None:
    width = warped.shape[1]
    flat = warped.reshape(-1)
    left = pixels.size
    while True:
        kept = 0
        for k in range(left):
            pixel = pixels[k]
            code = 0
            for place in range(8):
                code |= flat[pixel + RING[place][0] * width + RING[place][1]] << place
            if simple[code]:
                flat[pixel] ^= 1
            else:
                pixels[kept] = pixel
                kept += 1
        if kept in (left, 0):
            return
        left = kept


def classify(
    warped: npt.NDArray[np.bool_], predicted: npt.NDArray[np.bool_], radius: int = 20
) -> npt.NDArray[np.int64]:
    """Count the pixels where the warped truth and the prediction differ, by what they do to the cells.

    Args:
        warped: (y, x) the warped truth, True = cell.
        predicted: (y, x) the thresholded prediction, True = cell.
        radius: of the window (2 radius + 1 pixels wide) in which a cell pixel's removal is tried; the whole
            section if it is below 1 or larger than a side.

    Returns:
        int64, one count for each of `KINDS`.

    >>> warped = np.zeros((3, 5), bool)
    >>> warped[1] = True
    >>> predicted = warped.copy()
    >>> predicted[1, 2] = False
    >>> dict(zip(KINDS, classify(warped, predicted).tolist()))["split"]
    1
    """
    _, _, kinds = mismatch_kinds(warped, predicted, radius)
    return np.bincount(kinds, minlength=len(KINDS)).astype(np.int64)


def mismatch_kinds(
    warped: npt.NDArray[np.bool_], predicted: npt.NDArray[np.bool_], radius: int = 20
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
    """Where the warped truth and the prediction differ, and as what each of these pixels counts.

    Args:
        warped: as for `classify`, which counts them.
        predicted: the same.
        radius: the same.

    Returns:
        y and x of the pixels, int64 (n,), and their places in `KINDS`, uint8 (n,).
    """
    height, width = warped.shape
    if not 1 <= radius <= min(height, width):
        radius = max(height, width)
    labels = np.pad(label_cells(warped), 1, constant_values=-1)
    y, x = np.nonzero(warped != predicted)
    return y, x, _classify(labels, (y + 1) * labels.shape[1] + x + 1, radius)


@compiled
def _classify(labels: npt.NDArray[np.int32], pixels: npt.NDArray[np.int64], radius: int) -> npt.NDArray[np.uint8]:
    width = labels.shape[1]
    flat = labels.reshape(-1)
    seen = np.zeros(flat.size, np.int64)
    stack = np.empty(flat.size, np.int64)
    kinds = np.empty(pixels.size, np.uint8)
    for k in range(pixels.size):
        pixel = pixels[k]
        is_cell = flat[pixel] > 0
        membrane, first, several = False, 0, False
        for dy, dx in RING:
            label = flat[pixel + dy * width + dx]
            if label == 0:
                membrane = True
            elif label > 0 and first == 0:
                first = label
            elif label > 0 and label != first:
                several = True
        if first == 0:
            kinds[k] = OBJECT_DELETION if is_cell else OBJECT_ADDITION
        elif several and is_cell:  # the other segment touches a corner, so there is membrane as well
            kinds[k] = SPLIT
        elif several:
            kinds[k] = MERGE if membrane else HOLE_ADDITION
        elif not membrane:
            kinds[k] = HOLE_ADDITION if is_cell else HOLE_DELETION
        elif not is_cell:
            kinds[k] = HOLE_ADDITION
        elif _cuts(labels, pixel, radius, seen, stack, k + 1):
            kinds[k] = SPLIT
        else:
            kinds[k] = HOLE_DELETION
    return kinds


@compiled
def _cuts(
    labels: npt.NDArray[np.int32],
    pixel: int,
    radius: int,
    seen: npt.NDArray[np.int64],
    stack: npt.NDArray[np.int64],
    mark: int,
) -> bool:
    """Does the segment around a cell pixel fall apart, within the window, when the pixel is removed?"""
    height, width = labels.shape
    flat = labels.reshape(-1)
    y, x = pixel // width, pixel % width
    top, bottom = max(1, y - radius), min(height - 2, y + radius)
    left, right = max(1, x - radius), min(width - 2, x + radius)
    to_reach = 0
    start = 0
    for dy, dx in RING:
        if flat[pixel + dy * width + dx] > 0:
            to_reach += 1
            start = pixel + dy * width + dx
    seen[pixel] = mark
    seen[start] = mark
    stack[0] = start
    size = 1
    while size > 0:
        size -= 1
        place = stack[size]
        py, px = place // width, place % width
        if abs(py - y) <= 1 and abs(px - x) <= 1:
            to_reach -= 1
            if to_reach == 0:
                return False
        for step in (-width, width, -1, 1):
            other = place + step
            oy, ox = py, px
            if step == -width:
                oy -= 1
            elif step == width:
                oy += 1
            else:
                ox += step
            inside = top <= oy <= bottom and left <= ox <= right
            if inside and flat[other] > 0 and seen[other] != mark:
                seen[other] = mark
                stack[size] = other
                size += 1
    return True
