"""The metrics of a stack, joined from those of its sections."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from unet_ray.numerics.metrics import SectionScores
from unet_ray.numerics.stack_curves import AT_FIXED, Floats, SectionTable
from unet_ray.numerics.thresholds import THRESHOLDS, WARPING_THRESHOLDS


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
        """Number of the threshold that serves other sections, and both V_rand and V_info.

        It is the middle of the three neighbours whose scores have the highest sum. The highest score alone would be
        chance: in a few sections one gap that closes moves it from one end of a plateau to the other.
        """
        both = np.pad(self.curves["v_rand"] + self.curves["v_info"], 1)
        return _best(both[:-2] + both[1:-1] + both[2:])

    def at_threshold(self, number: int) -> dict[str, float | None]:
        """Scores at one of `THRESHOLDS`, such as one that other sections chose; None where one is not defined."""
        return {name: _defined(self.curves[name][number]) for name in AT_FIXED}

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
    table = SectionTable.of(sections)
    once = np.ones((1, len(sections)))
    stacks = table.curves(once)
    curves = {"thresholds": THRESHOLDS} | {name: values[0] for name, values in stacks.items()}
    scores = {name: float(values[0]) for name, values in table.scores_of(once, stacks).items()}
    at_rand, at_info, at_voi = (_best(c) for c in (curves["v_rand"], curves["v_info"], -curves["voi"]))
    rows = [
        {
            "v_rand": float(table.scores["v_rand"][i, at_rand]),
            "v_info": float(table.scores["v_info"][i, at_info]),
            "voi_split": float(table.scores["voi_split"][i, at_voi]),
            "voi_merge": float(table.scores["voi_merge"][i, at_voi]),
            "adapted_rand_error": float(table.adapted[i]),
            "pixel_mismatch": section.pixel_mismatch,
            "dice": section.dice,
        }
        for i, section in enumerate(sections)
    ]
    warping = dict.fromkeys((f.name for f in fields(StackScores) if f.name.startswith("warping")), math.nan)
    if "warping_error" in curves:
        curves["warping_thresholds"] = WARPING_THRESHOLDS
        warping = _warping(sections, table, curves, rows)
    return StackScores(
        v_rand_threshold=_threshold(curves["v_rand"], at_rand),
        v_info_threshold=_threshold(curves["v_info"], at_info),
        voi_split=float(curves["voi_split"][at_voi]),
        voi_merge=float(curves["voi_merge"][at_voi]),
        voi_threshold=_threshold(curves["voi"], at_voi),
        **{**scores, **warping},
        curves=curves,
        sections=tuple(rows),
    )


def _warping(
    sections: Sequence[SectionScores], table: SectionTable, curves: dict[str, Floats], rows: list[dict[str, float]]
) -> dict[str, float]:
    """Scores at the best threshold of the curves; adds to each section's row."""
    assert table.split_px is not None
    assert table.merge_px is not None
    at = _best(-curves["warping_error"])
    for i, row in enumerate(rows):
        row["warping_split_px"], row["warping_merge_px"] = float(table.split_px[i, at]), float(table.merge_px[i, at])
    return {
        "warping_error": float(curves["warping_error"][at]),
        "warping_threshold": float(WARPING_THRESHOLDS[at]),
        "warping_split_px": float(curves["warping_split_px"][at]),
        "warping_merge_px": float(curves["warping_merge_px"][at]),
        "warping_empty_sections": float(sum(s.tp[at] + s.fp[at] == 0 < s.fn[at] for s in sections)),
    }


def _best(curve: Floats) -> int:
    """Place of the highest value, the first if several. A curve is defined everywhere or nowhere."""
    return int(np.argmax(curve))


def _threshold(curve: Floats, place: int) -> float:
    return math.nan if math.isnan(curve[place]) else float(THRESHOLDS[place])


def _defined(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
