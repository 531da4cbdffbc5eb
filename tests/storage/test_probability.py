"""Stored probabilities and the labels that follow from them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from unet_ray.storage.probability import likeliest_class, mask_of


@given(
    arrays.arrays(
        st.sampled_from([np.uint8, np.float16]),
        st.tuples(st.integers(1, 6), st.integers(1, 3), st.integers(1, 4), st.integers(1, 4)),
        elements=st.integers(0, 1),  # many ties
        fill=st.nothing(),
    )
)
def test_the_likeliest_class_is_the_first_of_the_highest(values):
    found = likeliest_class(values)
    assert (found.dtype, found.shape) == (np.uint8, values.shape[1:])
    np.testing.assert_array_equal(found, values.argmax(axis=0))
    spread = (values * np.arange(1, len(values) + 1).reshape(-1, 1, 1, 1)).astype(values.dtype)
    np.testing.assert_array_equal(likeliest_class(spread), spread.argmax(axis=0))


def test_256_classes_fit():
    values = np.zeros((256, 1, 1, 2), np.uint8)
    values[255, 0, 0, 1] = 1
    assert likeliest_class(values).tolist() == [[[0, 255]]]


@given(st.floats(0.001, 0.999))
def test_half_precision_is_compared_exactly(threshold):
    """With its neighbours in float16, one of which the threshold itself would be rounded to."""
    near = np.float16(threshold)
    values = np.array([np.nextafter(near, np.float16(0)), near, np.nextafter(near, np.float16(1))])
    expected = [float(value) > threshold for value in values.tolist()]
    assert mask_of(values, threshold).tolist() == expected


@pytest.mark.parametrize(("threshold", "least"), [(0.5, 128), (0.2, 52), (0.002, 1)])
def test_bytes_are_compared_with_255_times_the_threshold(threshold, least):
    assert np.flatnonzero(mask_of(np.arange(256, dtype=np.uint8), threshold))[0] == least


@given(st.floats(0, 1))
def test_bytes_are_above_any_threshold_as_exact_numbers_are(threshold):
    values = np.arange(256, dtype=np.uint8)
    found = mask_of(values, threshold)
    assert found.dtype == np.uint8
    assert found.tolist() == [value > threshold * 255 for value in range(256)]
