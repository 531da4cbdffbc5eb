"""How far a stack's scores would move had other sections been labelled: bootstrap intervals."""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from unet_ray.numerics.metrics import SectionScores
from unet_ray.numerics.stack_curves import AT_FIXED, SectionTable

Interval = tuple[float, float]

CONFIDENCE = 0.95
# Resamples that are scored together, so that memory is bounded: their weights of 1e5 sections take 50 MB.
AT_ONCE = 64
# What is not defined without true cells, beside the scores that each section has alone.
OF_CELLS = ("rand_error", "rand_error_choose_2", "adapted_rand_error")


def resample_weights(num_sections: int, resamples: int, seed: int = 0) -> Iterator[npt.NDArray[np.float64]]:
    """How often each section is in each resample, drawn with replacement.

    Yields:
        (at most `AT_ONCE`, num_sections); every row adds up to ``num_sections``.

    >>> [block.shape for block in resample_weights(3, 100)]
    [(64, 3), (36, 3)]
    """
    rng = np.random.default_rng(seed)
    for first in range(0, resamples, AT_ONCE):
        drawn = rng.integers(0, num_sections, (min(AT_ONCE, resamples - first), num_sections))
        yield np.stack([np.bincount(one, minlength=num_sections) for one in drawn]).astype(np.float64)


def percentile_interval(values: npt.NDArray[np.float64]) -> Interval | None:
    """The middle 95 % of the resamples' scores, those left out in which it is not defined; None without any."""
    defined = values[~np.isnan(values)]
    if not defined.size:
        return None
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(defined, [tail, 100 - tail])
    return float(low), float(high)


def bootstrap(
    sections: Sequence[SectionScores], *, resamples: int = 1000, seed: int = 0, fixed: int | None = None
) -> dict[str, Interval | None]:
    """Percentile intervals of a stack's scores, 95 %, over sections drawn with replacement.

    A score at its best threshold has its threshold chosen anew in each resample: the choice is part of the
    score, and what it owes to these very sections shows in the interval. Scores at 0.5 or at a fixed threshold
    keep theirs. Sections of one stack resemble their neighbours, and six are few: the intervals are rather too
    narrow than too wide.

    Args:
        sections: of one stack.
        resamples: how many stacks are drawn.
        seed: the same seed draws the same stacks.
        fixed: number of a threshold that other sections have fixed; adds the scores there.

    Returns:
        (low, high) by the name of the score as in `unet_ray.numerics.stack_scores.StackScores`, and
        ``*_at_fixed_threshold``. None where fewer than two sections have the score: one tells nothing of others.

    >>> from unet_ray.numerics.metrics import score_section
    >>> truth = np.ones((16, 16), bool)
    >>> truth[:, 8] = False
    >>> perfect = score_section(truth.astype(np.float32), truth)
    >>> bootstrap([perfect, perfect])["v_rand"], bootstrap([perfect])["v_rand"]
    ((1.0, 1.0), None)

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13 (percentile interval).
    """
    if not sections or resamples < 1:
        raise ValueError(f"{len(sections)} sections in {resamples} resamples: there has to be one at least")
    table = SectionTable.of(sections)
    found: dict[str, list[npt.NDArray[np.float64]]] = {}
    for weights in resample_weights(table.num_sections, resamples, seed):
        curves = table.curves(weights)
        scores = table.scores_of(weights, curves)
        if fixed is not None:
            scores |= {f"{name}_at_fixed_threshold": curves[name][:, fixed] for name in AT_FIXED}
        for name, values in scores.items():
            found.setdefault(name, []).append(values)
    of_cells = {*table.scores, *OF_CELLS}
    # The others are of pixels, which every section has.
    with_cells = int((table.cells > 0).sum())
    enough = {
        name: (with_cells if name.removesuffix("_at_fixed_threshold") in of_cells else table.num_sections) > 1
        for name in found
    }
    return {name: percentile_interval(np.concatenate(v)) if enough[name] else None for name, v in found.items()}
