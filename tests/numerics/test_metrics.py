import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.shipped import shipped
from unet_ray.errors import LabelError, VolumeError
from unet_ray.numerics.border_thinning import thin_borders
from unet_ray.numerics.contingency import label_cells, overlap_sums, segments_of
from unet_ray.numerics.metrics import score_section
from unet_ray.numerics.stack_scores import combine
from unet_ray.numerics.thresholds import THRESHOLDS

shapes = st.tuples(st.integers(1, 8), st.integers(1, 8))
unit = st.sampled_from([0.0, 0.05, 0.15, 0.2, 0.45, 0.5, 0.65, 0.99, 1.0])


@st.composite
def prediction_and_truth(draw):
    shape = draw(shapes)
    return draw(hnp.arrays(np.float32, shape, elements=unit)), draw(hnp.arrays(np.bool_, shape))


@settings(deadline=None)
@given(prediction_and_truth())
def test_every_threshold_is_scored_as_if_alone(pair):
    probability, truth = pair
    scores = score_section(probability, truth, warping=False)
    assert scores.warping is None
    segments = segments_of(label_cells(truth))
    for k, threshold in enumerate(THRESHOLDS.tolist()):
        mask = probability.astype(np.float64) > threshold
        assert scores.tp[k] == (mask & truth).sum()
        assert scores.fp[k] == (mask & ~truth).sum()
        assert scores.fn[k] == (~mask & truth).sum()
        assert scores.tn[k] == (~mask & ~truth).sum()
        labels = label_cells(mask)
        for sums, image in ((scores.unthinned, labels), (scores.thinned, thin_borders(labels))):
            alone = overlap_sums(segments, image).to_json()
            assert {name: values[k] for name, values in sums.to_json().items()} == alone


@settings(deadline=None)
@given(prediction_and_truth())
def test_counts_are_monotonous_in_the_threshold(pair):
    scores = score_section(*pair, warping=False)
    assert (np.diff(scores.tp) <= 0).all()
    assert (np.diff(scores.fp) <= 0).all()
    assert (np.diff(scores.fn) >= 0).all()
    assert (np.diff(scores.tn) >= 0).all()
    assert (scores.tp + scores.fp + scores.fn + scores.tn == pair[1].size).all()
    assert (np.diff(scores.unthinned.membrane) >= 0).all()


def test_mismatch_and_dice_are_those_of_the_membrane_mask():
    truth = np.ones((4, 5), bool)
    truth[:, 2] = False
    probability = np.where(truth, 0.9, 0.1).astype(np.float32)
    probability[0, 2], probability[1, 0], probability[2, 0] = 0.6, 0.4, 0.5  # 0.5 is not above 0.5
    scores = score_section(probability, truth)
    assert scores.pixel_mismatch == 3 / 20
    assert scores.dice == 2 * 3 / (2 * 3 + 3)


def test_without_any_membrane_dice_is_1():
    assert score_section(np.ones((3, 3), np.float32), np.ones((3, 3), bool)).dice == 1


def test_scores_travel_and_print():
    rng = np.random.default_rng(1)
    scores = score_section(rng.random((20, 30), np.float32), rng.random((20, 30)) > 0.3)
    there = shipped(scores)
    assert there.to_json() == scores.to_json()
    written = json.loads(json.dumps(scores.to_json()))
    assert written["shape"] == [20, 30]
    assert np.shape(written["warping"]) == (10, 6)
    assert len(written["thinned"]["joint_sq"]) == 11


def test_the_inputs_are_left_alone():
    rng = np.random.default_rng(2)
    probability, truth = rng.random((9, 9), np.float32), rng.random((9, 9)) > 0.3
    before = probability.copy(), truth.copy()
    score_section(probability, truth)
    np.testing.assert_array_equal(probability, before[0])
    np.testing.assert_array_equal(truth, before[1])


def test_shapes_that_differ_are_refused():
    with pytest.raises(LabelError, match=r"\(4, 5\).*\(5, 4\)"):
        score_section(np.zeros((4, 5), np.float32), np.zeros((5, 4), bool))


@pytest.mark.parametrize("bad", [np.nan, -0.1, 1.1, 255, np.inf])
def test_what_is_no_probability_is_refused(bad):
    probability = np.full((3, 3), 0.5, np.float32)
    probability[1, 1] = bad
    with pytest.raises(VolumeError, match="between 0 and 1"):
        score_section(probability, np.zeros((3, 3), bool))


def test_ignored_pixels_are_in_no_count():
    """Whatever is there, the rest scores as the image without it, where cells end at the same place."""
    rng = np.random.default_rng(4)
    truth, probability = rng.random((24, 30)) > 0.3, rng.random((24, 30)).astype(np.float32)
    ignore = np.zeros(truth.shape, bool)
    ignore[:, 11:14] = True
    found = score_section(probability, truth, ignore=ignore)
    assert found.pixels == 24 * 27
    assert (found.tp + found.fp + found.fn + found.tn == found.pixels).all()
    # A wall in both says the same but for its own pixels, which both call membrane.
    walled = score_section(np.where(ignore, np.float32(0), probability), truth & ~ignore)
    assert (found.tn == walled.tn - 24 * 3).all()
    for name in ("tp", "fp", "fn", "warping"):
        assert np.array_equal(getattr(found, name), getattr(walled, name)), name
    assert found.thinned.to_json() == walled.thinned.to_json()
    # What is under the mask does not matter.
    other = score_section(np.where(ignore, np.float32(1), probability), truth | ignore, ignore=ignore)
    assert other.to_json() == found.to_json() != score_section(probability, truth).to_json()
    assert combine([found]).pixel_mismatch == found.pixel_mismatch == (found.fp[5] + found.fn[5]) / (24 * 27)
    nowhere = score_section(probability, truth, ignore=np.zeros_like(ignore))
    assert nowhere.to_json() == score_section(probability, truth).to_json()


def test_a_section_without_a_label_is_our_own_mistake():
    blank = np.zeros((3, 3), np.float32)
    with pytest.raises(ValueError, match="at least one labelled pixel"):
        score_section(blank, blank > 0, ignore=np.ones((3, 3), bool))
