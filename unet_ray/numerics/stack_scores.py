"""The metrics of a stack, joined from those of its sections."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

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
from unet_ray.numerics.thresholds import HALF, THRESHOLDS, WARPING_THRESHOLDS
from unet_ray.numerics.warping import MERGE, SPLIT

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class StackScores:
    """Every metric of a stack. One threshold is chosen for the whole stack, per metric, as in the challenge.

    Thresholds are those of *cell* probability (cell where it is above); on membrane probability that is
    1 - threshold. NaN: not defined (no section has a true cell; the warping error was not asked for).

    Attributes:
        v_rand: best mean over sections of the foreground-restricted Rand F-score after border thinning
            (the challenge's official score since 2015); 1 is best. Sections without a true cell are left out.
        v_rand_threshold: where it is reached; the lowest, if several.
        v_info: the same of the information F-score; 1 is best.
        v_info_threshold: where it is reached.
        v_rand_unthinned: as `v_rand`, without thinning.
        v_info_unthinned: as `v_info`, without thinning.
        rand_error: 1 - best F-score of the Rand pairs summed over sections, without thinning (the "Rand
            error" of ISBI 2012, N^2 normalisation); 0 is best.
        rand_error_choose_2: the same without pairs of a pixel with itself (the code of 2012 to 2014).
        pixel_error: 1 - best F-score of cell pixels, summed over sections (ISBI 2012); 0 is best.
        pixel_mismatch: share of pixels that are wrong at 0.5; 0 is best.
        adapted_rand_error: scikit-image's, 4-connected cells at 0.5, mean over sections; 0 is best.
        dice: of membrane pixels at 0.5, counted over the stack; 1 is best.
        voi: least mean over sections of the foreground-restricted variation of information, nats; 0 is best.
        voi_split: its part that splits cost, H(S|T).
        voi_merge: its part that mergers cost, H(T|S).
        voi_threshold: where it is reached.
        warping_error: least share of split and merge pixels after warping; 0 is best.
        warping_threshold: where it is reached.
        warping_split_px: split pixels there.
        warping_merge_px: merge pixels there.
        warping_empty_sections: sections that have true cells, but no predicted one there. They cost
            nothing, whatever is in them: with any of these do not trust the warping error.
        curves: by name, what the scores above were chosen from: an array over ``thresholds`` (11) or, for
            the names that begin with warping, ``warping_thresholds`` (10).
        sections: a row per section, in the order given: its own scores at the stack's thresholds.
    """

    v_rand: float
    v_rand_threshold: float
    v_info: float
    v_info_threshold: float
    v_rand_unthinned: float
    v_info_unthinned: float
    rand_error: float
    rand_error_choose_2: float
    pixel_error: float
    pixel_mismatch: float
    adapted_rand_error: float
    dice: float
    voi: float
    voi_split: float
    voi_merge: float
    voi_threshold: float
    warping_error: float
    warping_threshold: float
    warping_split_px: float
    warping_merge_px: float
    warping_empty_sections: float
    curves: dict[str, Floats]
    sections: tuple[dict[str, float], ...]

    def summary(self) -> dict[str, float | None]:
        """Return the scores alone, ready for JSON: None where one is not defined."""
        numbers = (f.name for f in fields(self) if f.name not in ("curves", "sections"))
        return {name: _defined(getattr(self, name)) for name in numbers}

    @property
    def common_threshold(self) -> int:
        """Number of the threshold with the highest sum of V_rand and V_info: one for a mask that serves both."""
        return _best(self.curves["v_rand"] + self.curves["v_info"])

    def at_threshold(self, number: int) -> dict[str, float | None]:
        """Scores at one of `THRESHOLDS`, such as one that other sections chose; None where one is not defined."""
        return {name: _defined(self.curves[name][number]) for name in ("v_rand", "v_info", "pixel_mismatch")}

    def to_json(self) -> dict[str, Any]:
        """Return scores, curves and section rows as plain numbers and lists, None where not defined."""
        return {
            **self.summary(),
            "curves": {name: [_defined(v) for v in curve] for name, curve in self.curves.items()},
            "sections": [{name: _defined(v) for name, v in row.items()} for row in self.sections],
        }


def combine(sections: Sequence[SectionScores]) -> StackScores:
    """Join the scores of sections to those of their stack; the order matters only for the rows.

    >>> from unet_ray.numerics.metrics import score_section
    >>> truth = np.ones((16, 16), bool)
    >>> truth[:, 8] = False
    >>> scores = combine([score_section(truth.astype(np.float32), truth)] * 2)
    >>> scores.v_rand, scores.v_info, scores.warping_error, scores.pixel_error
    (1.0, 1.0, 0.0, 0.0)
    """
    if not sections:
        raise ValueError("a stack has at least one section")
    thinned = OverlapSums.stacked([s.thinned for s in sections])
    unthinned = OverlapSums.stacked([s.unthinned for s in sections])
    pixels = sum(s.shape[0] * s.shape[1] for s in sections)
    tp, fp, fn, tn = (np.sum([getattr(s, x) for s in sections], axis=0) for x in ("tp", "fp", "fn", "tn"))
    v_rand, v_info = rand_score(thinned), info_score(thinned)
    split, merge = split_merge_entropy(unthinned)
    adapted = adapted_rand_error(unthinned)[:, HALF]
    curves = {
        "thresholds": THRESHOLDS,
        "v_rand": _mean(v_rand),
        "v_info": _mean(v_info),
        "v_rand_unthinned": _mean(rand_score(unthinned)),
        "v_info_unthinned": _mean(info_score(unthinned)),
        "rand_f": _summed_rand(unthinned, choose_2=False),
        "rand_f_choose_2": _summed_rand(unthinned, choose_2=True),
        "pixel_f": f_score(tp, fp, fn),
        "pixel_mismatch": (fp + fn) / pixels,
        "voi": _mean(split + merge),
        "voi_split": _mean(split),
        "voi_merge": _mean(merge),
    }
    at_rand, at_info, at_voi = (_best(c) for c in (curves["v_rand"], curves["v_info"], -curves["voi"]))
    rows = [
        {
            "v_rand": float(v_rand[i, at_rand]),
            "v_info": float(v_info[i, at_info]),
            "voi_split": float(split[i, at_voi]),
            "voi_merge": float(merge[i, at_voi]),
            "adapted_rand_error": float(adapted[i]),
            "pixel_mismatch": section.pixel_mismatch,
            "dice": section.dice,
        }
        for i, section in enumerate(sections)
    ]
    warping = dict.fromkeys((f.name for f in fields(StackScores) if f.name.startswith("warping")), math.nan)
    counted = [s.warping for s in sections if s.warping is not None]
    if len(counted) == len(sections):
        warping = _warping(sections, np.stack(counted), curves, rows)
    wrong = int(fp[HALF] + fn[HALF])
    return StackScores(
        v_rand=float(curves["v_rand"][at_rand]),
        v_rand_threshold=_threshold(curves["v_rand"], at_rand),
        v_info=float(curves["v_info"][at_info]),
        v_info_threshold=_threshold(curves["v_info"], at_info),
        v_rand_unthinned=float(curves["v_rand_unthinned"].max()),
        v_info_unthinned=float(curves["v_info_unthinned"].max()),
        rand_error=1 - float(curves["rand_f"].max()),
        rand_error_choose_2=1 - float(curves["rand_f_choose_2"].max()),
        pixel_error=1 - float(curves["pixel_f"].max()),
        pixel_mismatch=wrong / pixels,
        adapted_rand_error=float(_mean(adapted)),
        dice=1.0 if wrong == 0 else float(2 * tn[HALF] / (2 * tn[HALF] + wrong)),
        voi=float(curves["voi"][at_voi]),
        voi_split=float(curves["voi_split"][at_voi]),
        voi_merge=float(curves["voi_merge"][at_voi]),
        voi_threshold=_threshold(curves["voi"], at_voi),
        **warping,
        curves=curves,
        sections=tuple(rows),
    )


def _warping(
    sections: Sequence[SectionScores],
    counts: npt.NDArray[np.int64],
    curves: dict[str, Floats],
    rows: list[dict[str, float]],
) -> dict[str, float]:
    """Scores from counts (section, threshold, kind); adds to the curves and to each section's row."""
    pixels = sum(s.shape[0] * s.shape[1] for s in sections)
    split, merge = counts[:, :, SPLIT], counts[:, :, MERGE]
    error = (split + merge).sum(axis=0) / pixels
    curves["warping_thresholds"] = WARPING_THRESHOLDS
    curves["warping_error"] = error
    curves["warping_split_px"] = split.sum(axis=0).astype(np.float64)
    curves["warping_merge_px"] = merge.sum(axis=0).astype(np.float64)
    at = _best(-error)
    for i, row in enumerate(rows):
        row["warping_split_px"], row["warping_merge_px"] = float(split[i, at]), float(merge[i, at])
    return {
        "warping_error": float(error[at]),
        "warping_threshold": float(WARPING_THRESHOLDS[at]),
        "warping_split_px": float(curves["warping_split_px"][at]),
        "warping_merge_px": float(curves["warping_merge_px"][at]),
        "warping_empty_sections": float(sum(s.tp[at] + s.fp[at] == 0 < s.fn[at] for s in sections)),
    }


def _summed_rand(sums: OverlapSums, *, choose_2: bool) -> Floats:
    # In floating point: the pairs of many large sections would overflow 64 bits.
    tp, fp, fn = (pairs.sum(axis=0) for pairs in rand_pairs(sums, choose_2))
    return np.where(sums.pixels.sum(axis=0) > 0, f_score(tp, fp, fn), np.nan)


def _mean(values: Floats) -> Floats:
    """Mean over sections (the first axis), of those for which the value is defined."""
    defined = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        mean: Floats = np.where(defined, values, 0.0).sum(axis=0) / defined.sum(axis=0)
    return mean


def _best(curve: Floats) -> int:
    """Place of the highest value, the first if several. A curve is defined everywhere or nowhere."""
    return int(np.argmax(curve))


def _threshold(curve: Floats, place: int) -> float:
    return math.nan if math.isnan(curve[place]) else float(THRESHOLDS[place])


def _defined(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
