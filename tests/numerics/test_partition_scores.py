from itertools import product
from math import log

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from unet_ray.numerics.contingency import OverlapSums, overlap_sums, segments_of
from unet_ray.numerics.partition_scores import (
    adapted_rand_error,
    f_score,
    info_score,
    precision_recall,
    rand_pairs,
    rand_score,
    split_merge_entropy,
)

pairs_of_labels = hnp.arrays(np.int32, (2, 3, 4), elements=st.integers(0, 3))


def sums_of(truth, predicted):
    return overlap_sums(segments_of(np.asarray(truth, np.int32)), np.asarray(predicted, np.int32))


def with_singletons(truth, predicted):
    """Labels of the pixels of true cells, each pixel without a predicted cell having its own."""
    keep = truth.ravel() > 0
    own = np.where(predicted.ravel() > 0, predicted.ravel(), 1000 + np.arange(predicted.size))
    return truth.ravel()[keep], own[keep]


@settings(deadline=None)
@given(pairs_of_labels)
def test_rand_pairs_are_pairs_of_pixels(pair):
    t, s = with_singletons(*pair)
    sums = sums_of(*pair)
    for choose_2 in (False, True):
        counted = [0, 0, 0]
        for i, j in product(range(len(t)), repeat=2):
            if choose_2 and i >= j:
                continue
            together = (t[i] == t[j], s[i] == s[j])
            for k, which in enumerate([(True, True), (False, True), (True, False)]):
                counted[k] += together == which
        assert [float(x) for x in rand_pairs(sums, choose_2)] == counted


def entropy(labels):
    shares = np.unique(labels, return_counts=True)[1] / len(labels)
    return -sum(p * log(p) for p in shares)


@settings(deadline=None)
@given(pairs_of_labels.filter(lambda pair: pair[0].any()))
def test_entropies_and_information_score_follow_from_the_shares(pair):
    t, s = with_singletons(*pair)
    sums = sums_of(*pair)
    joint, of_t, of_s = entropy(t * 10000 + s), entropy(t), entropy(s)
    split, merge = split_merge_entropy(sums)
    assert float(split) == pytest.approx(joint - of_t, abs=1e-12)
    assert float(merge) == pytest.approx(joint - of_s, abs=1e-12)
    one = len(set(t)), len(set(s))
    if 1 in one:
        expected = float(one == (1, 1))
    else:
        c_merge, c_split = (of_t - (joint - of_s)) / of_t, (of_s - (joint - of_t)) / of_s
        expected = 2 * c_merge * c_split / (c_merge + c_split) if c_merge + c_split > 1e-12 else 0
    assert float(info_score(sums)) == pytest.approx(expected, abs=1e-9)


@settings(deadline=None)
@given(pairs_of_labels)
def test_scores_lie_between_0_and_1(pair):
    sums = sums_of(*pair)
    for score in (rand_score, lambda x: rand_score(x, True), info_score, adapted_rand_error):
        value = float(score(sums))
        assert 0 <= value <= 1 if pair[0].any() else np.isnan(value)
    if pair[0].any():
        assert min(split_merge_entropy(sums)) >= 0


@settings(deadline=None)
@given(hnp.arrays(np.int32, (3, 4), elements=st.integers(0, 3)).filter(np.any))
def test_the_truth_itself_is_perfect(labels):
    sums = sums_of(labels, labels)
    assert [float(f(sums)) for f in (rand_score, info_score, adapted_rand_error)] == [1, 1, 0]
    assert [float(x) for x in split_merge_entropy(sums)] == [0, 0]


def test_rounding_leaves_no_negative_entropy():
    for seed in range(50):
        labels = np.random.default_rng(seed).integers(1, 40, (1, 500))
        split, merge = split_merge_entropy(sums_of(labels, 40 - labels))
        assert 0 <= min(split, merge) <= max(split, merge) < 1e-14


def test_precision_falls_with_mergers_and_recall_with_splits():
    two, one = np.array([[1, 1, 2, 2]]), np.array([[1, 1, 1, 1]])
    assert [float(x) for x in precision_recall(*rand_pairs(sums_of(two, one)))] == [0.5, 1]
    assert [float(x) for x in precision_recall(*rand_pairs(sums_of(one, two)))] == [1, 0.5]
    split, merge = split_merge_entropy(sums_of(one, two))
    assert (float(split), float(merge)) == (pytest.approx(log(2)), 0)


def test_a_pinhole_worked_by_hand():
    """Six cells, the first and fourth of them merged: 620, 682, 620, 640, 704, 640 pixels."""
    areas = np.array([620, 682, 620, 640, 704, 640])
    truth = np.repeat(np.arange(1, 7), areas)[None]
    sums = sums_of(truth, np.where(truth == 4, 1, truth))
    total = (areas**2).sum()
    assert float(rand_score(sums)) == pytest.approx(2 * total / (2 * total + 2 * 620 * 640), abs=1e-15)
    assert 1 - float(rand_score(sums)) == pytest.approx(0.134712141, abs=1e-9)
    assert float(split_merge_entropy(sums)[1]) == pytest.approx(0.223555225, abs=1e-9)


def test_singletons_are_one_pixel_each_but_one_segment_for_the_adapted_rand_error():
    sums = sums_of([[1, 1, 1, 1]], [[0, 0, 0, 0]])
    assert float(rand_score(sums)) == pytest.approx(2 * 4 / (4 + 16))
    assert float(adapted_rand_error(sums)) == 0


def test_a_cell_of_one_pixel_has_no_pairs():
    sums = sums_of([[1, 0]], [[0, 0]])
    assert [float(f(sums)) for f in (rand_score, info_score, adapted_rand_error)] == [1, 1, 0]


def test_f_score_where_nothing_is_right_or_nothing_is_false():
    tp, fp, fn = np.array([[0.0, 3, 1], [0, 0, 0], [0, 3, 0]]).T
    np.testing.assert_array_equal(f_score(tp, fp, fn), [0, 1, 0])
    assert f_score(*(np.array([x]) for x in (1.0, 1.0, 2.0))) == pytest.approx(0.4)


def test_arrays_give_the_scores_of_their_rows():
    truth = [[1, 1, 2, 2, 0, 3]]
    rows = [sums_of(truth, p) for p in ([[1, 1, 2, 2, 2, 3]], [[1, 1, 1, 1, 1, 1]], [[0, 0, 2, 2, 0, 3]])]
    stacked = OverlapSums.stacked(rows)
    for score in (rand_score, info_score, adapted_rand_error):
        assert score(stacked).tolist() == [float(score(row)) for row in rows]


@settings(deadline=None, max_examples=30)
@given(hnp.arrays(np.int32, (2, 6, 7), elements=st.integers(0, 5)).filter(lambda pair: pair[0].any()))
def test_scikit_image_relates_to_it_as_documented(pair):
    metrics = pytest.importorskip("skimage.metrics")
    truth, predicted = pair
    sums = sums_of(truth, predicted)
    with np.errstate(invalid="ignore", divide="ignore"):
        expected, precision, recall = metrics.adapted_rand_error(truth, predicted)
        if not np.isnan(expected):
            assert float(adapted_rand_error(sums)) == pytest.approx(expected, abs=1e-12)
        own = np.where(predicted > 0, predicted, 10 + np.arange(predicted.size).reshape(predicted.shape))
        error, precision, recall = metrics.adapted_rand_error(truth, own)
        bits = metrics.variation_of_information(truth, own, ignore_labels=(0,))
    if not np.isnan(error):
        assert 1 - float(rand_score(sums, choose_2=True)) == pytest.approx(error, abs=1e-12)
        ours = precision_recall(*rand_pairs(sums, choose_2=True))
        if not np.isnan([precision, recall]).any():  # their names are exchanged
            assert [float(x) for x in ours] == pytest.approx([recall, precision], abs=1e-12)
    assert [float(x) for x in split_merge_entropy(sums)] == pytest.approx(bits * log(2), abs=1e-12)
