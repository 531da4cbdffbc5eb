"""A prediction that was declared the wrong way round is found out; one that is merely bad is not."""

import numpy as np
import pytest

from unet_ray.numerics.metrics import score_section
from unet_ray.numerics.polarity import balanced_accuracies, looks_inverted

TRUTH = np.ones((20, 20), bool)
TRUTH[::5] = False  # a fifth is membrane


def scored(cells, truth=TRUTH):
    return [score_section(np.asarray(cells, np.float32), truth, warping=False)]


def test_shares_of_found_pixels():
    # Three quarters of the cells and all of the membrane.
    cells = TRUTH.astype(float)
    cells[:, :5] = 0
    assert balanced_accuracies(scored(cells)) == pytest.approx((0.875, 0.125))
    assert balanced_accuracies(scored(1 - cells)) == pytest.approx((0.125, 0.875))
    # Each way has a threshold of its own: 0.45 is above 0.4, and its opposite above 0.5.
    assert balanced_accuracies(scored(0.45 * cells)) == pytest.approx((0.875, 0.5))


@pytest.mark.parametrize(
    ("cells", "inverted"),
    [
        (TRUTH, False),
        (~TRUTH, True),
        (np.where(TRUTH, 0.2, 0.35), True),  # nothing is above 0.5
        (np.zeros(TRUTH.shape), False),  # four fifths of the pixels are wrong, but not for that reason
        (np.ones(TRUTH.shape), False),
        (~TRUTH | (np.arange(20) > 0), False),  # 0.475 as declared and 0.525 turned round
        (~TRUTH | (np.arange(20) > 2), True),  # 0.425 and 0.575
        (np.random.default_rng(0).random(TRUTH.shape), False),
    ],
    ids=["right", "inverted", "inverted and dark", "all membrane", "all cell", "hardly", "just", "noise"],
)
def test_only_an_inverted_one_looks_so(cells, inverted):
    assert looks_inverted(scored(cells)) == inverted


def test_a_truth_of_one_kind_tells_nothing():
    for truth in (np.ones_like(TRUTH), np.zeros_like(TRUTH)):
        assert balanced_accuracies(scored(TRUTH, truth)) == (0.5, 0.5)
