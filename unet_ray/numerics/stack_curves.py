"""What sections contribute to a stack's scores, and those scores when each section counts so often."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from unet_ray.numerics.contingency import OverlapSums
from unet_ray.numerics.metrics import SectionScores
from unet_ray.numerics.partition_scores import (
    adapted_rand_error,
    f_score,
    info_score,
    rand_pairs,
    rand_score,
    split_merge_entropy,
)
from unet_ray.numerics.thresholds import HALF
from unet_ray.numerics.warping import MERGE, SPLIT

Floats = npt.NDArray[np.float64]
Pairs = tuple[Floats, Floats, Floats]

AT_FIXED = ("v_rand", "v_info", "pixel_mismatch")
"""Curves that are also read at a threshold which other sections have fixed."""

BEST_MEAN = ("v_rand", "v_info", "v_rand_unthinned", "v_info_unthinned")


@dataclass(frozen=True, eq=False)
class SectionTable:
    """A row per section, a column per threshold; float64, so that sums over large stacks cannot overflow.

    Attributes:
        pixels: pixels that count, (n,).
        cells: pixels of true cells, (n,).
        tp: cell in both, (n, 11), and so on.
        fp: cell in the prediction only.
        fn: cell in the truth only.
        tn: membrane in both.
        pairs: of pixels that are together in both, in the prediction only, in the truth only; unthinned.
        pairs_choose_2: the same without pairs of a pixel with itself.
        scores: by name, scores of each section alone, of which a stack has the mean; NaN where not defined.
        adapted: adapted Rand error at 0.5, (n,).
        split_px: split pixels after warping, (n, 10); None if a section was not asked for them.
        merge_px: merge pixels.
    """

    pixels: Floats
    cells: Floats
    tp: Floats
    fp: Floats
    fn: Floats
    tn: Floats
    pairs: Pairs
    pairs_choose_2: Pairs
    scores: dict[str, Floats]
    adapted: Floats
    split_px: Floats | None
    merge_px: Floats | None

    @classmethod
    def of(cls, sections: Sequence[SectionScores]) -> Self:
        """The table of at least one section."""
        thinned = OverlapSums.stacked([s.thinned for s in sections])
        unthinned = OverlapSums.stacked([s.unthinned for s in sections])
        split, merge = split_merge_entropy(unthinned)
        counted = [s.warping for s in sections if s.warping is not None]
        warping = np.stack(counted).astype(np.float64) if len(counted) == len(sections) else None
        tp, fp, fn, tn = (np.array([getattr(s, x) for s in sections], np.float64) for x in ("tp", "fp", "fn", "tn"))
        return cls(
            pixels=np.array([s.pixels for s in sections], np.float64),
            cells=unthinned.pixels[:, HALF].astype(np.float64),
            tp=tp, fp=fp, fn=fn, tn=tn,
            pairs=rand_pairs(unthinned),
            pairs_choose_2=rand_pairs(unthinned, choose_2=True),
            scores={
                "v_rand": rand_score(thinned),
                "v_info": info_score(thinned),
                "v_rand_unthinned": rand_score(unthinned),
                "v_info_unthinned": info_score(unthinned),
                "voi": split + merge,
                "voi_split": split,
                "voi_merge": merge,
            },
            adapted=adapted_rand_error(unthinned)[:, HALF],
            split_px=None if warping is None else warping[:, :, SPLIT],
            merge_px=None if warping is None else warping[:, :, MERGE],
        )  # fmt: skip

    @property
    def num_sections(self) -> int:
        """Rows."""
        return len(self.pixels)

    def curves(self, weights: Floats) -> dict[str, Floats]:
        """Scores of stacks over the thresholds.

        Args:
            weights: (stacks, sections), how often each section is in each stack, whole numbers.

        Returns:
            By name, (stacks, 11), or (stacks, 10) for names that begin with warping. Scores of partitions
            and entropies are means over the sections for which they are defined; pixels and pairs are
            summed first. NaN where no section has a true cell.
        """
        pixels = (weights @ self.pixels)[:, None]
        tp, fp, fn = (weights @ counts for counts in (self.tp, self.fp, self.fn))
        found = {name: _mean(weights, values) for name, values in self.scores.items()}
        found["rand_f"] = self._rand_f(weights, self.pairs)
        found["rand_f_choose_2"] = self._rand_f(weights, self.pairs_choose_2)
        found["pixel_f"] = f_score(tp, fp, fn)
        found["pixel_mismatch"] = (fp + fn) / pixels
        if self.split_px is not None and self.merge_px is not None:
            found["warping_split_px"] = weights @ self.split_px
            found["warping_merge_px"] = weights @ self.merge_px
            found["warping_error"] = (found["warping_split_px"] + found["warping_merge_px"]) / pixels
        return found

    def scores_of(self, weights: Floats, curves: dict[str, Floats]) -> dict[str, Floats]:
        """Scores of stacks, each at its own best threshold or at 0.5, by name: (stacks,).

        Args:
            weights: of the stacks.
            curves: what `curves` returned for them.
        """
        wrong = weights @ (self.fp + self.fn)[:, HALF]
        common = 2 * (weights @ self.tn[:, HALF])
        found = {name: curves[name].max(axis=1) for name in BEST_MEAN}
        found["rand_error"] = 1 - curves["rand_f"].max(axis=1)
        found["rand_error_choose_2"] = 1 - curves["rand_f_choose_2"].max(axis=1)
        found["pixel_error"] = 1 - curves["pixel_f"].max(axis=1)
        found["pixel_mismatch"] = curves["pixel_mismatch"][:, HALF]
        found["adapted_rand_error"] = _mean(weights, self.adapted)
        found["dice"] = np.where(wrong == 0, 1.0, common / np.maximum(common + wrong, 1))
        found["voi"] = curves["voi"].min(axis=1)
        if "warping_error" in curves:
            found["warping_error"] = curves["warping_error"].min(axis=1)
        return found

    def _rand_f(self, weights: Floats, pairs: Pairs) -> Floats:
        tp, fp, fn = (weights @ counts for counts in pairs)
        return np.where((weights @ self.cells)[:, None] > 0, f_score(tp, fp, fn), np.nan)


def _mean(weights: Floats, values: Floats) -> Floats:
    """Weighted mean over sections (the first axis of ``values``), of those for which the value is defined."""
    defined = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        mean: Floats = (weights @ np.where(defined, values, 0.0)) / (weights @ defined)
    return mean
