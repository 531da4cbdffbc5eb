from math import log

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from unet_ray.numerics.contingency import OverlapSums, label_cells, overlap_sums, segments_of

label_images = hnp.arrays(np.int32, (2, 4, 5), elements=st.integers(0, 4))


def as_dict(sums):
    return {name: np.asarray(value).tolist() for name, value in sums.to_json().items()}


def counted_plainly(truth, predicted):
    """The sums from a dense table, one entry at a time."""
    table = np.zeros((truth.max() + 1, predicted.max() + 1), np.int64)
    for i, j in zip(truth.ravel(), predicted.ravel(), strict=True):
        table[i, j] += 1
    table = table[1:]

    def log_sum(values):
        return sum(int(c) * log(c) for c in np.ravel(values) if c)

    return {
        "pixels": table.sum(),
        "membrane": table[:, 0].sum(),
        "true_sq": (table.sum(axis=1) ** 2).sum(),
        "predicted_sq": (table[:, 1:].sum(axis=0) ** 2).sum(),
        "joint_sq": (table[:, 1:] ** 2).sum(),
        "membrane_sq": (table[:, 0] ** 2).sum(),
        "true_log": log_sum(table.sum(axis=1)),
        "predicted_log": log_sum(table[:, 1:].sum(axis=0)),
        "joint_log": log_sum(table[:, 1:]),
    }


@settings(deadline=None)
@given(label_images)
def test_sums_equal_those_of_a_plain_table(pair):
    truth, predicted = pair
    found = as_dict(overlap_sums(segments_of(truth), predicted))
    assert found == pytest.approx(counted_plainly(truth, predicted), rel=1e-12)


@settings(deadline=None)
@given(label_images, st.permutations(range(1, 5)), st.permutations(range(1, 5)))
def test_numbering_does_not_matter(pair, true_names, predicted_names):
    truth, predicted = pair
    before = overlap_sums(segments_of(truth), predicted)
    renamed = (
        np.array([0, *true_names], np.int32)[truth],
        np.array([0, *predicted_names], np.int32)[predicted],
    )
    after = overlap_sums(segments_of(renamed[0]), renamed[1])
    assert as_dict(after) == pytest.approx(as_dict(before), rel=1e-12)


@settings(deadline=None)
@given(label_images)
def test_segments_hold_each_labelled_pixel_once(pair):
    labels = pair[0]
    pixels, starts = segments_of(labels)
    assert sorted(pixels.tolist()) == np.flatnonzero(labels).tolist()
    for label in range(1, labels.max() + 1):
        assert set(labels.ravel()[pixels[starts[label - 1] : starts[label]]]) <= {label}


def test_labels_may_be_large_and_have_gaps():
    truth = segments_of(np.array([[7, 7, 0, 900]], np.int32))
    sums = overlap_sums(truth, np.array([[5000, 1, 3, 0]], np.int32))
    assert (int(sums.pixels), int(sums.membrane), int(sums.true_sq), int(sums.joint_sq)) == (3, 1, 5, 2)


def test_stacked_rows_keep_their_order():
    truth = segments_of(np.array([[1, 1]], np.int32))
    rows = [overlap_sums(truth, np.array([row], np.int32)) for row in ([1, 1], [1, 2], [0, 0])]
    assert OverlapSums.stacked(rows).joint_sq.tolist() == [4, 2, 0]


def test_cells_touching_by_a_corner_are_two():
    cell = np.array([[1, 1, 0], [0, 0, 1]], bool)
    labels = label_cells(cell)
    assert labels.dtype == np.int32
    assert labels.tolist() == [[1, 1, 0], [0, 0, 2]]
