"""Scores of several classes, from counts of how often one was taken for another."""

import numpy as np
import numpy.typing as npt

from unet_ray.errors import VolumeError
from unet_ray.numerics.bootstrap import Interval, percentile_interval, resample_weights
from unet_ray.numerics.labels import MAX_CLASSES

Counts = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


def confusion(
    predicted: npt.NDArray[np.generic], truth: npt.NDArray[np.uint8], ignore: npt.NDArray[np.bool_] | None = None
) -> Counts:
    """Count pixels by true and predicted class.

    Args:
        predicted: (y, x), class indices.
        truth: (y, x), class indices below `MAX_CLASSES`.
        ignore: (y, x), True at pixels that are not counted.

    Returns:
        (`MAX_CLASSES`, `MAX_CLASSES`): row = true class, column = predicted class; those of sections add up.

    Raises:
        VolumeError: the prediction holds no class indices.

    >>> counts = confusion(np.array([[0, 1, 1]]), np.array([[0, 0, 1]], np.uint8))
    >>> counts[:2, :2].tolist()
    [[1, 1], [0, 1]]
    """
    if predicted.dtype.kind not in "bui" or not 0 <= int(predicted.min()) <= int(predicted.max()) < MAX_CLASSES:
        raise VolumeError(
            f"a prediction of classes has whole numbers from 0 to {MAX_CLASSES - 1}, but this one has "
            f"{predicted.dtype} values from {predicted.min()} to {predicted.max()}; give class indices"
        )
    pairs = truth.astype(np.int64) * MAX_CLASSES + predicted.astype(np.int64)
    counted = pairs if ignore is None else pairs[~ignore]
    return np.bincount(counted.ravel(), minlength=MAX_CLASSES**2).reshape(MAX_CLASSES, MAX_CLASSES)


def class_scores(counts: npt.NDArray[np.int64] | Floats) -> dict[str, Floats]:
    """Scores of confusion counts, (..., k, k).

    Returns:
        By name, (...): ``pixel_mismatch``, the share of wrong pixels, 0 is best; ``dice_c`` and ``iou_c`` of each
        class c, 1 is best, NaN where neither truth nor prediction has it; ``mean_dice`` and ``mean_iou`` over the
        classes that one of the two has.

    >>> scores = class_scores(np.array([[3, 1], [0, 4]]))
    >>> float(scores["pixel_mismatch"]), float(scores["iou_0"]), round(float(scores["dice_1"]), 3)
    (0.125, 0.75, 0.889)
    """
    right = np.diagonal(counts, axis1=-2, axis2=-1).astype(np.float64)
    either = counts.sum(axis=-1) + counts.sum(axis=-2) - right
    with np.errstate(invalid="ignore"):
        iou, dice = right / either, 2 * right / (either + right)
        found = {"pixel_mismatch": 1 - right.sum(axis=-1) / counts.sum(axis=(-2, -1))}
        for name, values in (("dice", dice), ("iou", iou)):
            there = either > 0
            found[f"mean_{name}"] = np.where(there, values, 0).sum(axis=-1) / there.sum(axis=-1)
    for c in range(counts.shape[-1]):
        found |= {f"dice_{c}": dice[..., c], f"iou_{c}": iou[..., c]}
    return found


def bootstrap_classes(counts: Counts, *, resamples: int, seed: int = 0) -> dict[str, Interval | None]:
    """Percentile intervals, 95 %, of `class_scores` over sections drawn with replacement.

    Args:
        counts: (sections, k, k).
        resamples: how many stacks are drawn.
        seed: the same seed draws the same stacks.

    Returns:
        (low, high) by name; None where fewer than two sections have the score.
    """
    enough = {name: np.count_nonzero(~np.isnan(values)) > 1 for name, values in class_scores(counts).items()}
    blocks = [np.tensordot(weights, counts, axes=1) for weights in resample_weights(len(counts), resamples, seed)]
    drawn = class_scores(np.concatenate(blocks))
    return {name: percentile_interval(values) if enough[name] else None for name, values in drawn.items()}
