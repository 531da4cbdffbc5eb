import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unet_ray.numerics.error_map import MERGES, MISSED, SPLITS, TOO_MUCH, error_map
from unet_ray.numerics.thresholds import WARPING_THRESHOLDS
from unet_ray.numerics.warping import MERGE, SPLIT, warping_px


@given(seed=st.integers(0, 10_000), side=st.integers(3, 24), number=st.integers(0, 9))
def test_marks_are_the_warping_errors_and_the_rest_are_the_other_wrong_pixels(seed, side, number):
    rng = np.random.default_rng(seed)
    cell = rng.random((side, side + 2)) < 0.6
    probability = rng.random(cell.shape).astype(np.float32)
    threshold = float(WARPING_THRESHOLDS[number])
    found = error_map(probability, cell, threshold)
    counts = warping_px(probability, cell)[number]
    assert np.count_nonzero(found == SPLITS) == counts[SPLIT]
    assert np.count_nonzero(found == MERGES) == counts[MERGE]
    predicted = probability.astype(np.float64) > threshold
    np.testing.assert_array_equal(found != 0, predicted != cell)
    assert not predicted[found == TOO_MUCH].any()
    assert predicted[found == MISSED].all()


def two_cells(side=20):
    truth = np.ones((side, side), bool)
    truth[:, side // 2] = False
    return truth


@pytest.mark.parametrize("hole", [1, 3])
def test_a_hole_in_a_membrane_merges(hole):
    truth = two_cells()
    prediction = truth.astype(np.float32)
    prediction[8 : 8 + hole, 10] = 1
    found = error_map(prediction, truth)
    assert (found == MERGES).any()
    assert not (found == SPLITS).any()


def test_a_line_through_a_cell_splits_it_and_a_thicker_membrane_does_not():
    truth = two_cells()
    prediction = truth.astype(np.float32)
    prediction[:, 9] = 0
    assert set(np.unique(error_map(prediction, truth))) == {0, TOO_MUCH}
    prediction[10, :9] = 0
    found = error_map(prediction, truth)
    assert (found == SPLITS).any()
    assert not (found == MERGES).any()
