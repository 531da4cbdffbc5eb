import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from unet_ray.numerics.grey_noise import add_gaussian, add_uniform, normal

KEYS = st.integers(0, 2**63 - 1)
PLACES = st.integers(-2000, 2000)


@settings(deadline=None)
@given(key=KEYS, y=PLACES, x=PLACES, plane=st.integers(0, 9))
def test_a_place_has_one_value(key, y, x, plane):
    whole = normal((7, 9), key=key, plane=plane, start=(y, x))
    part = normal((3, 4), key=key, plane=plane, start=(y + 2, x + 5))
    np.testing.assert_array_equal(whole[2:5, 5:], part)


def test_values_are_standard_normal():
    values = normal((700, 700), key=1)
    assert abs(values.mean()) < 4 / 700
    assert abs(values.std() - 1) < 4 / 700 / 2**0.5
    assert stats.kstest(values.ravel(), "norm").pvalue > 1e-3
    for other in (values[1:, :-1], values[:-1, 1:], values[1:, 1:]):
        correlation = (values[:-1, :-1] * other).mean()
        assert abs(correlation) < 4 / 700


def test_keys_and_planes_are_independent():
    first = normal((300, 300), key=1)
    for other in (
        normal((300, 300), key=2),
        normal((300, 300), key=1, plane=1),
        normal((300, 300), key=2**53),
    ):
        assert abs((first * other).mean()) < 4 / 300


def test_the_stream_is_what_it_was():
    # From this implementation's first version: stored caches are extended with the same noise.
    np.testing.assert_allclose(
        normal((2, 3), key=2026, start=(-1, 4)),
        [[0.6938547, -0.6890456, 0.5513383], [-0.257495, -0.3949037, 0.1570606]],
        rtol=1e-6,
    )


@pytest.mark.parametrize(
    "add", [lambda grey: add_gaussian(grey, sd=0, key=3), lambda g: add_uniform(g, low=0, high=0, key=3)]
)
def test_without_noise_grey_levels_are_rounded_half_up_and_clipped(add):
    grey = np.array([[[-5, -0.4, 0.5, 1.49, 254.5, 255.4, 300]]], np.float32)
    np.testing.assert_array_equal(add(grey), [[[0, 0, 1, 1, 255, 255, 255]]])


def test_gaussian_noise_has_its_spread():
    found = add_gaussian(np.full((2, 300, 300), 128, np.float32), sd=9, key=5) - 128.0
    assert abs(found.mean()) < 0.1
    # Rounding adds the variance of an even distribution one grey level wide.
    assert found.std() == pytest.approx((81 + 1 / 12) ** 0.5, rel=0.01)
    assert abs((found[0] * found[1]).mean()) < 1  # channels are independent


def test_uniform_noise_fills_its_bounds():
    found = add_uniform(np.full((1, 300, 300), 128, np.float32), low=-20, high=10, key=5) - 128.0
    counts = np.bincount((found + 20).astype(int).ravel())
    assert counts.size == 31
    np.testing.assert_allclose(counts[1:-1], 90_000 / 30, rtol=0.1)
    np.testing.assert_allclose(counts[[0, -1]], 90_000 / 60, rtol=0.15)


@settings(deadline=None)
@given(origin=st.integers(0, 50))
def test_origin_places_the_noise(origin):
    grey = np.full((1, 8, 8), 100, np.float32)
    whole = add_gaussian(np.full((1, 60, 60), 100, np.float32), sd=10, key=5)
    np.testing.assert_array_equal(
        add_gaussian(grey, sd=10, key=5, origin=origin), whole[:, origin : origin + 8, origin : origin + 8]
    )
