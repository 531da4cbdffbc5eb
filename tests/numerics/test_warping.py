import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from unet_ray.numerics.contingency import label_cells
from unet_ray.numerics.warping import KINDS, RING, SIMPLE, classify, warp, warping_px

EIGHT = np.ones((3, 3), int)
sides = st.integers(1, 9)


@st.composite
def truth_and_prediction(draw):
    shape = draw(st.tuples(sides, sides))
    truth = draw(hnp.arrays(np.bool_, shape))
    grey = draw(hnp.arrays(np.uint8, shape, elements=st.sampled_from([0, 80, 120, 200, 255])))
    return truth, grey.astype(np.float32) / np.float32(255)


def test_simple_points_are_those_with_one_cell_and_one_membrane_beside_them():
    for code in range(256):
        window = np.zeros((3, 3), bool)
        for place, (dy, dx) in enumerate(RING):
            window[1 + dy, 1 + dx] = code >> place & 1
        cells, _ = ndimage.label(window)
        by_edge = {int(cells[y, x]) for y, x in ((0, 1), (1, 0), (1, 2), (2, 1))} - {0}
        membrane = ~window
        membrane[1, 1] = False
        assert SIMPLE[code] == (len(by_edge) == 1 and ndimage.label(membrane, EIGHT)[1] == 1), code
    assert SIMPLE.sum() == 116  # counted in the reference's own code


def warped_plainly(truth, probability, threshold):
    """The definition with whole-image labelling in place of the table of simple points."""
    warped = np.pad(truth, 1)
    target = np.pad(probability.astype(np.float64) > threshold, 1)
    distance = np.pad(np.abs(probability.astype(np.float64) - threshold).astype(np.float32), 1)

    def topology(image):
        return ndimage.label(image)[1], ndimage.label(~image, EIGHT)[1]

    while True:
        pixels = [(x, y) for y, x in np.argwhere(warped != target)]
        pixels = sorted(sorted(pixels), key=lambda xy: -distance[xy[1], xy[0]])
        flipped = 0
        for x, y in pixels:
            code = sum(int(warped[y + dy, x + dx]) << k for k, (dy, dx) in enumerate(RING))
            if SIMPLE[code]:
                before = topology(warped)
                warped[y, x] ^= True
                assert topology(warped) == before
                flipped += 1
        if not flipped:
            return warped[1:-1, 1:-1]


@settings(deadline=None, max_examples=150)
@given(truth_and_prediction(), st.sampled_from([0.0, 0.2, 0.5, 0.9]))
def test_warping_follows_the_definition_and_keeps_the_topology(pair, threshold):
    truth, probability = pair
    np.testing.assert_array_equal(warp(truth, probability, threshold), warped_plainly(*pair, threshold))


def classified_plainly(warped, predicted, radius):
    height, width = warped.shape
    if radius < 1 or radius > width or radius > height:
        radius = max(height, width)
    labels = label_cells(warped)
    counts = dict.fromkeys(KINDS, 0)

    def labels_around(image, y, x):
        inside = [(y + dy, x + dx) for dy, dx in RING if 0 <= y + dy < height and 0 <= x + dx < width]
        return {int(image[place]) for place in inside}

    for y, x in np.argwhere(warped != predicted):
        around, cell = labels_around(labels, y, x), warped[y, x]
        if around <= {0}:
            kind = "object_deletion" if cell else "object_addition"
        elif len(around) == 1:
            kind = "hole_addition" if cell else "hole_deletion"
        elif len(around) > 2:
            kind = "split" if cell else "merge"
        elif not cell:
            kind = "hole_addition"
        else:
            without = warped.copy()
            without[y, x] = False
            window = np.zeros_like(warped)
            near = (
                slice(max(0, y - radius), y + radius + 1),
                slice(max(0, x - radius), x + radius + 1),
            )
            window[near] = without[near]
            kind = "split" if len(labels_around(label_cells(window), y, x)) > 2 else "hole_deletion"
        counts[kind] += 1
    return list(counts.values())


@settings(deadline=None, max_examples=300)
@given(hnp.arrays(np.bool_, st.tuples(st.just(2), sides, sides)), st.integers(0, 10))
def test_mismatches_are_classified_by_the_definition(pair, radius):
    warped, predicted = pair
    assert classify(warped, predicted, radius).tolist() == classified_plainly(warped, predicted, radius)


@pytest.mark.parametrize("cut", [(0, 5), (10, 5), (5, 0), (5, 10)])
def test_a_way_round_counts_inside_the_window_only(cut):
    """A ring 11 pixels wide, cut in the middle of a side: the way round reaches 10 pixels far."""
    ring = np.zeros((41, 45), bool)
    ring[15:26, 15:26] = True
    ring[16:25, 16:25] = False
    predicted = ring.copy()
    predicted[15 + cut[0], 15 + cut[1]] = False
    for radius, kind in ((9, "split"), (10, "hole_deletion"), (0, "hole_deletion"), (42, "hole_deletion")):
        counts = classify(ring, predicted, radius)
        assert counts[KINDS.index(kind)] == counts.sum() == 1, radius
        assert counts.tolist() == classified_plainly(ring, predicted, radius)


def test_a_radius_larger_than_one_side_means_the_whole_section():
    ring = np.ones((50, 5), bool)
    ring[1:-1, 1:-1] = False
    predicted = ring.copy()
    predicted[0, 2] = False
    for radius, kind in ((5, "split"), (6, "hole_deletion")):
        assert classify(ring, predicted, radius)[KINDS.index(kind)] == 1


def test_thickness_and_small_shifts_are_free():
    truth = np.ones((20, 20), bool)
    truth[:, 9:11] = False
    shifted = np.roll(truth, 1, axis=1).astype(np.float32)
    assert warping_px(shifted, truth).sum() == 0


def test_a_merger_costs_one_pixel_per_channel():
    truth = np.ones((20, 20), bool)
    truth[:, 9:12] = False
    prediction = truth.astype(np.float32)
    prediction[[5, 14], 9:12] = 1.0
    counts = dict(zip(KINDS, warping_px(prediction, truth)[5].tolist(), strict=True))
    assert counts == dict.fromkeys(KINDS, 0) | {"merge": 2}


def test_a_wide_mismatch_is_counted_at_each_of_ten_thresholds():
    counts = warping_px(np.zeros((5, 5), np.float32), np.zeros((5, 5), bool))
    assert counts.shape == (10, 6)
    assert counts.dtype == np.int64
