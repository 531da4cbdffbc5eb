import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from unet_ray.numerics.warp import Field, affine_field, sample_linear, sample_nearest

GREY = np.arange(256, dtype=np.float32)
SIDES = st.integers(1, 9)


def _random_field(seed, reach, side=6):
    rng = np.random.default_rng(seed)
    offsets = rng.uniform(-reach, reach, (2, side, side)).astype(np.float32)
    offsets[:, 0] = np.round(offsets[:, 0])  # whole pixels too
    return Field(offsets, (float(rng.integers(-3, 9)), 2.5))


def _mirrored(array, reach):
    """The array with its mirror images on all sides, by NumPy."""
    return np.pad(array, reach, mode="reflect")


@settings(deadline=None)
@given(height=SIDES, width=SIDES, seed=st.integers(0, 10**6), reach=st.sampled_from([0, 2, 30]))
def test_sampling_is_that_of_the_mirrored_section(height, width, seed, reach):
    section = np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)
    field = _random_field(seed, reach)
    places = field.coordinates() + 50
    around = _mirrored(section, 50)
    linear = sample_linear(section[None], field, GREY)
    expected = ndimage.map_coordinates(around.astype(np.float64), places, order=1)
    np.testing.assert_allclose(linear[0], expected, atol=1e-3)
    y, x = np.floor(places + 0.5).astype(int)
    np.testing.assert_array_equal(sample_nearest(section, field), around[y, x])


def test_whole_places_are_exact():
    section = np.random.default_rng(0).integers(0, 256, (2, 20, 20), dtype=np.uint8)
    field = affine_field(None, np.eye(2), (9.5, 9.5), 20)
    np.testing.assert_array_equal(sample_linear(section, field, GREY), section)
    np.testing.assert_array_equal(sample_nearest(section[1], field), section[1])


def test_places_far_from_the_origin_are_as_exact():
    section = np.zeros((1, 3, 40_000), np.uint8)
    section[0, :, 30_001] = 200
    # Not halves, quarters, ...: those float32 has there, too.
    field = affine_field(np.full((2, 2, 2), 0.3, np.float32), np.eye(2), (1.0, 30_000.5), 2)
    np.testing.assert_allclose(sample_linear(section, field, GREY)[0, 0], [60, 140], atol=1e-3)


def test_grey_levels_are_changed_before_interpolation():
    section = np.array([[[0, 100]]], np.uint8)
    field = Field(np.zeros((2, 1, 1), np.float32), (0.0, 0.5))
    assert sample_linear(section, field, GREY**2)[0, 0, 0] == 5000


@settings(deadline=None)
@given(seed=st.integers(0, 10**6), side=st.integers(1, 8), rim=st.integers(0, 3))
def test_points_move_with_the_field(seed, side, rim):
    rng = np.random.default_rng(seed)
    displacement = rng.normal(0, 2, (2, side + 2 * rim, side + 2 * rim)).astype(np.float32)
    matrix, centre = rng.normal(0, 1, (2, 2)), tuple(rng.uniform(0, 50, 2))
    field = affine_field(displacement, matrix, centre, side + 2 * rim)
    places = field.coordinates()
    middle = (side + 2 * rim - 1) / 2
    for y, x in np.ndindex(places.shape[1:]):
        point = np.array([y, x]) - middle + displacement[:, y, x]
        np.testing.assert_allclose(places[:, y, x], centre + matrix @ point, atol=1e-4)
    inner = field.inner(side).coordinates()
    np.testing.assert_array_equal(inner, places[:, rim : rim + side, rim : rim + side])


@pytest.mark.parametrize(("side", "said"), [(12, "own pixels"), (9, "one centre")])
def test_a_field_has_a_centre_and_no_more_than_its_pixels(side, said):
    with pytest.raises(AssertionError, match=said):
        affine_field(None, np.eye(2), (0.0, 0.0), 14).inner(10).inner(side)


def test_labels_are_taken_from_the_pixel_of_the_place():
    ids = np.arange(30 * 40, dtype=np.int32).reshape(30, 40)  # each pixel holds its own index
    field = Field(np.random.default_rng(0).uniform(-14, 14, (2, 50, 50)).astype(np.float32), (14.6, 19.7))
    y, x = field.coordinates()
    found_y, found_x = np.divmod(sample_nearest(ids, field), 40)
    assert np.abs(found_y - y).max() <= 0.5
    assert np.abs(found_x - x).max() <= 0.5
