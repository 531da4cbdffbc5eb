"""Whether a prediction would score far better read the other way round."""

from collections.abc import Sequence

import numpy as np

from unet_ray.numerics.metrics import SectionScores

FAR_BETTER = 0.1


def balanced_accuracies(sections: Sequence[SectionScores]) -> tuple[float, float]:
    """Mean of the shares of true cell and true membrane pixels that are found, as declared and turned round.

    Each is the best over the thresholds. A prediction that says nothing has 0.5 both ways, however much more
    cell than membrane there is, which the share of wrong pixels would take for a turned one.

    Args:
        sections: of one stack, scored in the polarity that was declared.

    Returns:
        (as declared, turned round), 0 to 1, 1 is best; (0.5, 0.5) where cells or membranes are missing from
        the truth. Values that lie exactly on a threshold count as above it one way and below it the other.
    """
    tp, fp, fn, tn = (np.sum([getattr(s, x) for s in sections], axis=0) for x in ("tp", "fp", "fn", "tn"))
    if tp[0] + fn[0] == 0 or fp[0] + tn[0] == 0:
        return 0.5, 0.5
    found = (tp / (tp + fn) + tn / (fp + tn)) / 2
    return float(found.max()), float(1 - found.min())


def looks_inverted(sections: Sequence[SectionScores]) -> bool:
    """Whether the other polarity finds at least a tenth more of the pixels."""
    declared, turned = balanced_accuracies(sections)
    return turned - declared > FAR_BETTER
