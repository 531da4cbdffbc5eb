import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from unet_ray.config.recipe import WeightMap
from unet_ray.numerics.weight_map import class_weights, weight_map, weight_reach_px


def _brute_force(cell_ids, class_map, weighting, weights, ignore=None):
    """One distance transform per cell, float64."""
    distances = np.full((2, *cell_ids.shape), np.inf)
    for cell in np.unique(cell_ids[cell_ids > 0]):
        distance = ndimage.distance_transform_edt(cell_ids != cell)
        distances = np.sort(np.stack([*distances, distance]), axis=0)[:2]
    reach = weight_reach_px(weighting)
    inside = slice(reach, -reach)
    total = distances[:, inside, inside].sum(axis=0)
    term = weighting.border_weight * np.exp(-(total**2) / (2 * weighting.border_sigma_px**2))
    expected = np.asarray(weights)[class_map] + np.where(class_map == 1, term, 0)
    return expected if ignore is None else np.where(ignore, 0, expected)


def _assert_equal_to_float16(found, expected):
    assert found.dtype == np.float16
    # Half a unit of the last place, and half of one more where float32 lies across a rounding border.
    spacing = np.spacing(expected.astype(np.float16)).astype(np.float64)
    assert (np.abs(found.astype(np.float64) - expected) <= 0.51 * spacing).all()


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_equals_one_distance_transform_per_cell(data):
    sigma = data.draw(st.sampled_from([0.4, 1.0, 1.3, 2.0]), "sigma")
    weighting = WeightMap(border_sigma_px=sigma)
    reach = weight_reach_px(weighting)
    height, width = data.draw(st.tuples(st.integers(1, 9), st.integers(1, 9)), "crop")
    shape = height + 2 * reach, width + 2 * reach
    few = data.draw(st.integers(0, 40), "cell pixels")
    rng = np.random.default_rng(data.draw(st.integers(0, 10**6), "seed"))
    ids = np.zeros(shape, np.int32)
    ids[rng.integers(shape[0], size=few), rng.integers(shape[1], size=few)] = rng.integers(1, 6, few)
    class_map = (ids[reach : reach + height, reach : reach + width] == 0).astype(np.uint8)
    ignore = data.draw(hnp.arrays(bool, (height, width)), "ignore")
    found = weight_map(ids, class_map, weighting=weighting, class_weights=(0.7, 2.0), ignore=ignore)
    _assert_equal_to_float16(found, _brute_force(ids, class_map, weighting, (0.7, 2.0), ignore))


def test_worked_by_hand():
    # Cell 1 fills the two rows above, cell 2 is the corner below. (d1, d2) of the pixels of rows 2, 3, 4:
    #   x = 0: (1, sqrt 20) (2, sqrt 17) (3, 4)    x = 4: (1, 2) (2, 1) (0, in cell 2)
    ids = np.ones((5, 5), np.int32)
    ids[2:] = 0
    ids[4, 4] = 2
    padded = np.zeros((55, 55), np.int32)
    padded[25:30, 25:30] = ids
    found = weight_map(padded, (ids == 0).astype(np.uint8), weighting=WeightMap()).astype(np.float64)
    expected = {
        (0, 0): 1.0, (4, 4): 1.0,
        (2, 4): 1 + 10 * np.exp(-9 / 50), (3, 4): 1 + 10 * np.exp(-9 / 50),
        (2, 0): 1 + 10 * np.exp(-0.598885438), (3, 0): 1 + 10 * np.exp(-0.749848450),
        (4, 0): 1 + 10 * np.exp(-49 / 50),
    }  # fmt: skip
    for place, weight in expected.items():
        assert found[place] == pytest.approx(weight, rel=2**-11), place
    assert found[2, 4] == pytest.approx(9.35270, rel=2**-11)


def test_cells_beyond_the_crop_count():
    ids = np.zeros((51, 51), np.int32)
    ids[25, 25 - 10], ids[25, 25 + 12] = 1, 2
    found = weight_map(ids, np.ones((1, 1), np.uint8), weighting=WeightMap(border_weight=1e4))[0, 0]
    assert found == pytest.approx(1 + 1e4 * np.exp(-(22**2) / 50), rel=2**-11)


def test_one_cell_in_two_pieces_has_no_border():
    ids = np.pad(np.array([[3, 0, 3]], np.int32), 25)
    found = weight_map(ids, np.array([[0, 1, 0]], np.uint8), weighting=WeightMap())
    np.testing.assert_array_equal(found, [[1, 1, 1]])


def test_what_is_left_out_beyond_the_reach_is_less_than_float16_shows():
    reach = weight_reach_px(WeightMap())
    most = 10 * np.exp(-((reach + 1) ** 2) / 50)
    for weight in (0.125, 0.5, 1, 2):
        assert most < np.spacing(np.float16(weight)) / 2


def test_without_the_border_term_no_context_is_needed():
    weighting = WeightMap(border_weight=0)
    class_map = np.array([[0, 1, 2]], np.uint8)
    found = weight_map(np.zeros((1, 3), np.int32), class_map, weighting=weighting, class_weights=(0.5, 2, 4))
    np.testing.assert_array_equal(found, [[0.5, 2, 4]])


def test_weights_stay_within_float16():
    weighting = WeightMap(border_weight=0)
    found = weight_map(
        np.zeros((1, 1), np.int32), np.ones((1, 1), np.uint8), weighting=weighting, class_weights=(1, 1e9)
    )
    np.testing.assert_array_equal(found, [[65504]])
    between = np.pad(np.array([[1, 0, 2]], np.int32), 25)
    found = weight_map(between, np.array([[0, 1, 0]], np.uint8), weighting=WeightMap(border_weight=1e6))
    np.testing.assert_array_equal(found, [[1, 65504, 1]])


def test_the_border_term_is_of_membrane_alone():
    between = np.pad(np.array([[1, 0, 0, 2]], np.int32), 25)
    classes = np.array([[0, 1, 2, 0]], np.uint8)
    found = weight_map(between, classes, weighting=WeightMap(), class_weights=(1, 1, 3))
    np.testing.assert_array_equal(found[0, [0, 2, 3]], [1, 3, 1])
    assert found[0, 1] == pytest.approx(1 + 10 * np.exp(-9 / 50), rel=2**-11)


def test_ids_without_the_context_are_our_mistake():
    with pytest.raises(ValueError, match="grown by 25"):
        weight_map(np.zeros((4, 4), np.int32), np.zeros((4, 4), np.uint8), weighting=WeightMap())


@settings(deadline=None)
@given(st.lists(st.integers(0, 2) | st.integers(0, 10**9), min_size=1, max_size=6).filter(any))
def test_class_weights_balance_and_have_mean_one(counts):
    weights = np.array(class_weights(counts, WeightMap()))
    share = np.array(counts) / sum(counts)
    assert (weights * share).sum() == pytest.approx(1)
    each = (weights * share)[share > 0]
    np.testing.assert_allclose(each, each[0])
    assert (weights[share == 0] == 1).all()
    assert class_weights(counts, WeightMap(class_balance=False)) == (1.0,) * len(counts)


@pytest.mark.real_data
def test_equals_brute_force_on_isbi(shared_data):
    tifffile = pytest.importorskip("tifffile")
    labels = tifffile.imread(shared_data / "isbi2012" / "train-labels.tif", key=20)[:200, :200]
    membrane = labels == 0
    ids = np.pad(ndimage.label(~membrane)[0].astype(np.int32), 25, mode="reflect")
    found = weight_map(ids, membrane.astype(np.uint8), weighting=WeightMap(), class_weights=(0.6, 2.5))
    _assert_equal_to_float16(found, _brute_force(ids, membrane.astype(np.uint8), WeightMap(), (0.6, 2.5)))
