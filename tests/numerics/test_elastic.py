import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.interpolate import CubicSpline

from unet_ray.numerics import grey_noise
from unet_ray.numerics.elastic import coarse_grid, smooth_noise


@settings(deadline=None, max_examples=25)
@given(
    sigma=st.floats(0.7, 30),
    start=st.integers(-90, 20),
    inset=st.integers(0, 20),
    key=st.integers(0, 2**53 - 1),
)
def test_field_is_endless(sigma, start, inset, key):
    whole = smooth_noise(alpha=34, sigma_px=sigma, key=key, start=start, side=60)
    part = smooth_noise(alpha=34, sigma_px=sigma, key=key, start=start + inset, side=20)
    np.testing.assert_array_equal(whole[:, inset : inset + 20, inset : inset + 20], part)


def _autocovariance(fields, lag):
    shifted = fields[..., lag:]
    return (fields[..., : shifted.shape[-1]] * shifted).mean()


@pytest.mark.parametrize("sigma", [6.0, 12.0])
def test_statistics_are_those_of_smoothed_per_pixel_noise(sigma):
    ours = np.stack([smooth_noise(alpha=34, sigma_px=sigma, key=key, start=0, side=512) for key in range(4)])
    rng = np.random.default_rng(0)
    pixels = rng.uniform(-1, 1, (8, 512, 512)).astype(np.float32)
    theirs = 34 * ndimage.gaussian_filter(pixels, (0, sigma, sigma), mode="wrap")
    variance = 34**2 / (12 * np.pi * sigma**2)
    for lag in (0, int(sigma), int(2 * sigma)):
        exact = variance * np.exp(-(lag**2) / (4 * sigma**2))
        # 8 fields have some 8 * (512 / 3.5 sigma)**2 independent values: 2 % at sigma 6, 3 % at 12, sd.
        assert abs(_autocovariance(ours, lag) - exact) < 0.01 * sigma * variance
        assert abs(_autocovariance(theirs, lag) - exact) < 0.01 * sigma * variance
    assert abs((ours[:, 0] * ours[:, 1]).mean()) < 0.01 * sigma * variance  # y and x are independent
    assert abs((ours[:2] * ours[2:]).mean()) < 0.01 * sigma * variance  # and so are keys


def test_covariance_is_within_a_thousandth(monkeypatch):
    """Without chance: what one lattice point contributes, over all places that it may have."""

    def one_point(shape, *, key, plane, start):
        noise = np.zeros(shape, np.float32)
        noise[shape[0] // 2, shape[1] // 2] = 1
        return noise

    monkeypatch.setattr(grey_noise, "normal", one_point)
    side, sigma, spacing = 160, 6.0, 4
    field = smooth_noise(alpha=34, sigma_px=sigma, key=0, start=0, side=side)[0].astype(float)
    variance = 34**2 / (12 * np.pi * sigma**2)
    for lag in range(30):
        found = (field[:, lag:] * field[:, : side - lag]).sum() / spacing**2
        assert abs(found - variance * np.exp(-(lag**2) / (4 * sigma**2))) < 1e-3 * variance, lag


def test_alpha_is_a_factor():
    one, two = (smooth_noise(alpha=a, sigma_px=8, key=3, start=0, side=40) for a in (1, 2))
    np.testing.assert_allclose(two, 2 * one, rtol=1e-6)


def test_coarse_grid_goes_through_its_nodes():
    nodes = np.random.default_rng(0).normal(0, 10, (2, 3, 3))
    field = coarse_grid(nodes, span_start=-4, span_px=21, start=-4, side=21)
    np.testing.assert_allclose(field[:, ::10, ::10], nodes, rtol=1e-5)


@settings(deadline=None)
@given(start=st.integers(-90, 20), inset=st.integers(0, 20))
def test_coarse_grid_depends_on_the_place_only(start, inset):
    nodes = np.random.default_rng(0).normal(0, 10, (2, 3, 3))
    whole = coarse_grid(nodes, span_start=-10, span_px=50, start=start, side=60)
    part = coarse_grid(nodes, span_start=-10, span_px=50, start=start + inset, side=20)
    np.testing.assert_array_equal(whole[:, inset : inset + 20, inset : inset + 20], part)


def test_coarse_grid_is_keys_cubic_convolution():
    # Between inner nodes Keys' kernel is the Hermite cubic whose slopes are central differences.
    values = np.array([3.0, -1, 4, 1, -5, 9])
    nodes = np.broadcast_to(values, (2, 6, 6))
    field = coarse_grid(nodes, span_start=0, span_px=51, start=0, side=51)
    slope_1, slope_2 = (values[2] - values[0]) / 20, (values[3] - values[1]) / 20
    hermite = CubicSpline([10, 20], values[1:3], bc_type=((1, slope_1), (1, slope_2)))
    np.testing.assert_allclose(field[1, 25, 10:21], hermite(np.arange(10, 21)), atol=1e-5)


def test_a_span_of_one_pixel_is_its_first_node():
    nodes = np.random.default_rng(0).normal(0, 10, (2, 3, 3))
    field = coarse_grid(nodes, span_start=0, span_px=1, start=0, side=1)
    np.testing.assert_allclose(field[:, 0, 0], nodes[:, 0, 0], rtol=1e-6)


def test_beyond_the_nodes_the_field_stays():
    nodes = np.random.default_rng(0).normal(0, 10, (2, 3, 3))
    field = coarse_grid(nodes, span_start=5, span_px=20, start=0, side=30)
    np.testing.assert_array_equal(field[:, :5], np.broadcast_to(field[:, 5:6], (2, 5, 30)))
    np.testing.assert_array_equal(field[:, :, 25:], np.broadcast_to(field[:, :, 24:25], (2, 30, 5)))
