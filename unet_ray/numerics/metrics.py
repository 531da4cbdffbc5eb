"""The ISBI 2012 challenge's metrics of one section, as counts and sums that add up to a stack's.

A section is scored where it is read; `unet_ray.numerics.stack_scores.combine` joins the results.
Values equal those of the challenge's own code (fiji/Trainable_Segmentation), degenerate cases excepted.
"""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_ray.errors import LabelError, VolumeError
from unet_ray.numerics.border_thinning import thin_borders
from unet_ray.numerics.contingency import OverlapSums, label_cells, overlap_sums, segments_of
from unet_ray.numerics.thresholds import HALF, THRESHOLDS, threshold_levels
from unet_ray.numerics.warping import warping_px

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class SectionScores:
    """What one section contributes to every metric, for each of the 11 `THRESHOLDS` of cell probability.

    Attributes:
        shape: (y, x) pixels.
        tp: pixels that are cell in both, int64 (11,).
        fp: cell in the prediction only.
        fn: cell in the truth only.
        tn: membrane in both.
        unthinned: sums over the prediction's 4-connected cells against the truth's, (11,) each.
        thinned: the same after border thinning of the prediction (the truth is never thinned).
        warping: pixels by `unet_ray.numerics.warping.KINDS` at the 10 thresholds up to 0.9,
            int64 (10, 6); None if it was not asked for.
    """

    shape: tuple[int, int]
    tp: Counts
    fp: Counts
    fn: Counts
    tn: Counts
    unthinned: OverlapSums
    thinned: OverlapSums
    warping: Counts | None

    @property
    def pixels(self) -> int:
        """Pixels that count: all but the ignored ones."""
        return int(self.tp[0] + self.fp[0] + self.fn[0] + self.tn[0])

    @property
    def pixel_mismatch(self) -> float:
        """Share of pixels that are wrong at 0.5, 0 is best (the Hamming error, not the pixel error)."""
        return float(self.fp[HALF] + self.fn[HALF]) / self.pixels

    @property
    def dice(self) -> float:
        """Dice coefficient of *membrane* at 0.5, 1 is best; 1 if there is none in either."""
        wrong = int(self.fp[HALF] + self.fn[HALF])
        return 1.0 if wrong == 0 else float(2 * self.tn[HALF] / (2 * self.tn[HALF] + wrong))

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain lists and numbers."""
        found: dict[str, Any] = {}
        for name in (f.name for f in fields(self)):
            value = getattr(self, name)
            if isinstance(value, OverlapSums):
                value = value.to_json()
            elif isinstance(value, np.ndarray):
                value = value.tolist()
            found[name] = list(value) if isinstance(value, tuple) else value
        return found


def score_section(
    cell_probability: npt.NDArray[np.float32],
    cell: npt.NDArray[np.bool_],
    *,
    ignore: npt.NDArray[np.bool_] | None = None,
    warping: bool = True,
) -> SectionScores:
    """Score a section's prediction against its labels at all thresholds.

    Args:
        cell_probability: (y, x), 0 = surely membrane, 1 = surely cell interior, float32;
            `unet_ray.numerics.thresholds.cell_probability` makes it from what is stored.
        cell: (y, x) the truth, bool, True = cell interior.
        ignore: (y, x), True at pixels that nobody labelled. They are in no count. Cells end there in the
            truth and in the prediction alike, so that neither is charged with what lies behind them.
        warping: find the warping error, too; it takes longer than everything else together.

    Returns:
        Counts and sums. Nothing is cut off at the section's border, and no cell is too small.

    Raises:
        LabelError: the shapes differ.
        VolumeError: a probability is not a number from 0 to 1.

    >>> truth = np.ones((16, 16), bool)
    >>> truth[:, 8] = False
    >>> scores = score_section(truth.astype(np.float32), truth)
    >>> scores.pixel_mismatch, scores.dice, int(scores.tp[0])
    (0.0, 1.0, 240)
    """
    if cell_probability.ndim != 2 or cell_probability.size == 0:
        raise ValueError(f"a section is a non-empty (y, x) image, not {cell_probability.shape}")
    if cell_probability.shape != cell.shape:
        raise LabelError(
            f"the prediction is {cell_probability.shape} pixels (y, x) and its labels are {cell.shape};"
            " evaluate a prediction against the labels of the same section"
        )
    if not 0 <= cell_probability.min() <= cell_probability.max() <= 1:  # NaN fails, too
        raise VolumeError(
            "a probability has to lie between 0 and 1, but the prediction's values go from"
            f" {cell_probability.min():g} to {cell_probability.max():g}; convert it with its full scale"
        )
    cell = np.asarray(cell, np.bool_)
    known = cell.size
    if ignore is not None:
        if (known := int(np.count_nonzero(~ignore))) == 0:
            raise ValueError("a section has at least one labelled pixel")
        cell, cell_probability = cell & ~ignore, np.where(ignore, np.float32(0), cell_probability)
    levels = threshold_levels(np.asarray(cell_probability, np.float32))
    true_pixels, predicted_pixels = _above(levels[cell]), _above(levels)
    num_true = int(np.count_nonzero(cell))

    truth = segments_of(label_cells(cell))
    unthinned: list[OverlapSums] = []
    thinned: list[OverlapSums] = []
    for k in range(THRESHOLDS.size):
        if k > 0 and predicted_pixels[k] == predicted_pixels[k - 1]:
            # Masks are nested, so one of equal size is the same one; a binary prediction has only one.
            unthinned.append(unthinned[-1])
            thinned.append(thinned[-1])
            continue
        labels = label_cells(levels > k)
        unthinned.append(overlap_sums(truth, labels))
        thinned.append(overlap_sums(truth, thin_borders(labels)))
    fp = predicted_pixels - true_pixels
    return SectionScores(
        shape=(cell.shape[0], cell.shape[1]),
        tp=true_pixels,
        fp=fp,
        fn=num_true - true_pixels,
        tn=known - num_true - fp,
        unthinned=OverlapSums.stacked(unthinned),
        thinned=OverlapSums.stacked(thinned),
        warping=warping_px(cell_probability, cell) if warping else None,
    )


def _above(levels: npt.NDArray[np.uint8]) -> Counts:
    """Pixels that are above threshold k, for each k."""
    histogram = np.bincount(levels.ravel(), minlength=THRESHOLDS.size + 1)
    return np.cumsum(histogram[::-1])[::-1][1:]
