import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unet_ray.errors import VolumeError
from unet_ray.numerics.thresholds import HALF, THRESHOLDS, cell_probability, threshold_levels

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "golden.json").read_text())


def test_eight_bit_values_become_cells_where_the_reference_says():
    levels = threshold_levels(cell_probability(np.arange(256, dtype=np.uint8), "interior"))
    smallest = [int(np.argmax(levels > k)) for k in range(THRESHOLDS.size)]
    assert smallest == GOLDEN["min_8bit_value_that_is_cell_per_threshold"]


def test_the_polarity_is_turned_before_the_division():
    values = np.arange(256, dtype=np.uint8)
    expected = np.float32(255 - values.astype(np.int64)) / np.float32(255)
    np.testing.assert_array_equal(cell_probability(values), expected)
    np.testing.assert_array_equal(cell_probability(values), cell_probability(255 - values, "interior"))


def test_large_numbers_are_turned_exactly():
    below = np.random.default_rng(0).integers(0, 2 ** np.arange(1, 33)).astype(np.uint32)
    expected = below.astype(np.float32) / np.float32(2**32 - 1)
    np.testing.assert_array_equal(cell_probability(np.uint32(2**32 - 1) - below), expected)


def test_at_half_the_mask_is_that_of_a_membrane_probability_above_half():
    membrane = np.arange(256, dtype=np.uint8)
    is_cell = threshold_levels(cell_probability(membrane)) > HALF
    np.testing.assert_array_equal(is_cell, ~(membrane / 255 > 0.5))


@settings(deadline=None)
@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=20))
def test_levels_compare_the_float32_in_double_precision(values):
    array = np.array(values, np.float32)
    expected = [sum(float(v) > t for t in THRESHOLDS.tolist()) for v in array]
    assert threshold_levels(array).tolist() == expected


def test_a_float32_just_above_a_double_threshold_counts():
    assert threshold_levels(np.array([0.1], np.float32)).tolist() == [2]  # float32(0.1) > 0.1


@pytest.mark.parametrize(
    ("prediction", "full_scale", "expected"),
    [
        (np.array([False, True]), None, [1, 0]),
        (np.array([0, 1], np.uint8), 1, [1, 0]),
        (np.array([0, 65535], np.uint16), None, [1, 0]),
        (np.array([0, 255], np.float32), 255, [1, 0]),
        (np.array([0, 255], np.int64), 255, [1, 0]),
        (np.array([0.25, 1], np.float64), None, [0.75, 0]),
        (np.array([0.25, 1], np.float16), None, [0.75, 0]),
        (np.zeros((2, 0), np.uint8), None, np.zeros((2, 0))),
    ],
)
def test_what_a_file_may_hold(prediction, full_scale, expected):
    found = cell_probability(prediction, full_scale=full_scale)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)


def test_a_float32_prediction_of_cells_passes_unchanged():
    values = np.random.default_rng(3).random(1000, np.float32)
    np.testing.assert_array_equal(cell_probability(values, "interior"), values)


@pytest.mark.parametrize(
    ("prediction", "says"),
    [
        (np.array([0.5, np.nan], np.float32), "nan"),
        (np.array([0.5, 1.5]), "from 0.5 to 1.5"),
        (np.array([-0.5, 0.5]), "from -0.5"),
        (np.array([0, 1], np.int32), "int32"),
    ],
)
def test_what_is_no_probability_is_refused(prediction, says):
    with pytest.raises(VolumeError, match=says):
        cell_probability(prediction)
