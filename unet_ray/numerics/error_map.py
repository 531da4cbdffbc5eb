"""Where a section's mask is wrong, and which of these pixels change its cells."""

import numpy as np
import numpy.typing as npt

from unet_ray.numerics.warping import MERGE, SPLIT, mismatch_kinds, warp

TOO_MUCH, MISSED, SPLITS, MERGES = 1, 2, 3, 4
"""Values of an error map; 0 is right."""


def error_map(
    cell_probability: npt.NDArray[np.float32], cell: npt.NDArray[np.bool_], threshold: float = 0.5
) -> npt.NDArray[np.uint8]:
    """Mark the wrong pixels of a section, and among them those at which cells are split or merged.

    Membrane that is only thicker, thinner or a little displaced changes no cell: it is `TOO_MUCH` or `MISSED`.
    What is left after the truth was bent onto the mask without changing its cells, as for the warping error,
    is a `SPLITS` or a `MERGES`. Such a pixel stands for the whole membrane that it belongs to, so a long
    missing membrane may be marked as a line and a short one as a point.

    Args:
        cell_probability: (y, x), 0 = surely membrane, 1 = surely cell interior.
        cell: (y, x) the truth, True = cell interior.
        threshold: cell where the probability is strictly above it.

    Returns:
        uint8 (y, x): 0 where the mask is right, else `TOO_MUCH` (membrane in the prediction only), `MISSED`
        (in the truth only), or, of these, `SPLITS` and `MERGES`.

    >>> truth = np.ones((5, 7), bool)
    >>> truth[:, 3] = False
    >>> prediction = truth.astype(np.float32)
    >>> prediction[2, 3] = 1.0  # a hole through the membrane
    >>> error_map(prediction, truth)[2].tolist()
    [0, 0, 0, 4, 0, 0, 0]

    Source: Jain et al. 2010, with the classification of the challenge's code; see `unet_ray.numerics.warping`.
    """
    predicted = cell_probability.astype(np.float64) > threshold
    found = np.zeros(cell.shape, np.uint8)
    found[cell & ~predicted] = TOO_MUCH
    found[~cell & predicted] = MISSED
    y, x, kinds = mismatch_kinds(warp(cell, cell_probability, threshold), predicted)
    for kind, value in ((SPLIT, SPLITS), (MERGE, MERGES)):
        found[y[kinds == kind], x[kinds == kind]] = value
    return found
