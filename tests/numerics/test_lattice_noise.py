"""Hashed lattices: statistics, smoothness, independence of the window."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from unet_ray.numerics.lattice_noise import add_noise, mix, noise_in_z, point_bits, spline_weights, unit

NO_SLOPE = np.empty((0, 0))


def test_mix_is_splitmix64() -> None:
    # First outputs for seed 1234567, from the reference implementation (Vigna, splitmix64.c).
    step = 0x9E3779B97F4A7C15
    states = [np.uint64((1234567 + k * step) % 2**64) for k in range(3)]
    assert [int(mix(state)) for state in states] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]


def test_points_are_uniform_and_neighbours_independent() -> None:
    values = np.array([[unit(np.uint64(point_bits(1, 2, 3, y, x))) for x in range(-50, 50)] for y in range(-50, 50)])
    assert abs(values.mean() - 0.5) < 0.01
    assert abs(values.var() - 1 / 12) < 0.003
    for a, b in ((values[1:], values[:-1]), (values[:, 1:], values[:, :-1])):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.03


@given(t=st.floats(0, 1, exclude_max=True))
def test_weights_sum_to_one(t: float) -> None:
    weights = spline_weights(t)
    assert abs(sum(weights) - 1) < 1e-12
    assert min(weights) >= 0


def test_slope_is_the_derivative() -> None:
    value, slope = np.array([noise_in_z(7, 3, z, 40, 2, -4) for z in range(-100, 100)]).T
    np.testing.assert_allclose(slope[1:-1], (value[2:] - value[:-2]) / 2, atol=2e-4)
    assert np.abs(slope).max() > 0.01
    assert np.abs(value).max() < 1


@settings(max_examples=30, deadline=None)
@given(y=st.integers(0, 60), x=st.integers(0, 60), spacing=st.integers(1, 40), period=st.integers(0, 5))
def test_a_window_is_a_crop(y: int, x: int, spacing: int, period: int) -> None:
    whole, part = np.zeros((2, 80, 90)), np.zeros((2, 20, 30))
    add_noise(whole[0], whole[1], 5.0, 9, 1, -3, period, -40, -50, spacing)
    add_noise(part[0], part[1], 5.0, 9, 1, -3, period, y - 40, x - 50, spacing)
    np.testing.assert_array_equal(whole[:, y : y + 20, x : x + 30], part)
    assert 0 < np.abs(whole[0]).max() < 5
    assert (np.abs(whole[1]).max() > 0) == (period > 0)


def test_noise_is_added() -> None:
    twice, once = np.zeros((8, 8)), np.zeros((8, 8))
    add_noise(once, NO_SLOPE, 1.0, 1, 2, 3, 4, 0, 0, 5)
    for _ in range(2):
        add_noise(twice, NO_SLOPE, 1.0, 1, 2, 3, 4, 0, 0, 5)
    np.testing.assert_allclose(twice, 2 * once, rtol=1e-15)
