import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unet_ray.errors import VolumeError
from unet_ray.numerics.intensity import IntensityMap


def test_eight_bits_stay_as_they_are():
    every = np.arange(256, dtype=np.uint8).reshape(16, 16)
    np.testing.assert_array_equal(IntensityMap.identity().apply(every), every)
    assert IntensityMap.of_sample(every[:2]) == IntensityMap.identity()


def test_another_line_for_eight_bits():
    grey = IntensityMap(low=100, high=200, dtype="uint8").apply(np.array([0, 100, 150, 200, 255], np.uint8))
    np.testing.assert_array_equal(grey, [0, 0, 128, 255, 255])


def test_a_line_that_ends_where_that_of_eight_bits_does():
    grey = IntensityMap(low=55, high=255, dtype="uint8").apply(np.array([0, 55, 155, 255], np.uint8))
    np.testing.assert_array_equal(grey, [0, 0, 128, 255])


@pytest.mark.parametrize("dtype", ["uint16", "int32", "float32"])
def test_halves_are_rounded_up(dtype):
    values = np.arange(511).astype(dtype)
    np.testing.assert_array_equal(IntensityMap(low=0, high=510, dtype=dtype).apply(values), (np.arange(511) + 1) // 2)


@pytest.mark.parametrize("dtype", ["int32", "uint32", "float64"])
def test_large_values_are_as_exact(dtype):
    values = (2**30 + np.arange(256)).astype(dtype)
    grey = IntensityMap(low=2**30, high=2**30 + 255, dtype=dtype).apply(values)
    np.testing.assert_array_equal(grey, np.arange(256))


@settings(deadline=None)
@given(
    dtype=st.sampled_from(["uint16", "int16", "int32", "float16", "float32", "float64"]),
    low=st.integers(-1000, 1000),
    span=st.integers(1, 1000),
)
def test_follows_the_line(dtype, low, span):
    values = np.arange(low - 5, low + span + 6).astype(dtype)  # uint16 wraps, as a volume would hold it
    grey = IntensityMap(low=low, high=low + span, dtype=dtype).apply(values)
    exact = 255 * (values.astype(np.float64) - low) / span
    assert grey.dtype == np.uint8
    np.testing.assert_allclose(grey, np.clip(exact, 0, 255), atol=0.5 + 1e-9)


def test_ends_are_percentiles_of_all_sections():
    values = np.random.default_rng(0).permutation(2001).astype(np.float32)
    sections = [values[:300], values[300:301], values[301:]]
    found = IntensityMap.of_sections(lambda: sections, values.dtype, percentiles=(1, 95))
    assert found == IntensityMap(low=20, high=1900, dtype="float32")
    assert IntensityMap.model_validate_json(found.model_dump_json()) == found
    assert IntensityMap.of_sample(values) == IntensityMap.of_sections(lambda: sections, values.dtype)
    assert IntensityMap.of_sample(values) == IntensityMap(low=2, high=1998, dtype="float32")


def test_eight_bits_are_not_even_read():
    assert IntensityMap.of_sections(lambda: pytest.fail("read"), np.dtype(np.uint8)) == IntensityMap.identity()


@pytest.mark.parametrize("value", [0.0, -3e20, 1e20])
def test_one_huge_value_everywhere_is_black(value):
    flat = np.full((4, 4), value, np.float32)
    np.testing.assert_array_equal(IntensityMap.of_sample(flat).apply(flat), 0)


def test_a_flat_volume_is_black():
    flat = np.full((4, 4), 7, np.uint16)
    np.testing.assert_array_equal(IntensityMap.of_sample(flat).apply(flat), 0)


def test_rare_values_count_when_nothing_else_differs():
    sample = np.zeros(10_000, np.uint16)
    sample[0] = 60
    assert IntensityMap.of_sample(sample).high == 60
    assert IntensityMap.of_sample(60 - sample).low == 0


@pytest.mark.parametrize(
    ("values", "said"), [([1.0, np.nan], "NaN or infinity"), ([1.0, np.inf], "NaN or infinity"), ([], "no values")]
)
def test_values_that_are_none_are_refused(values, said):
    with pytest.raises(VolumeError, match=rf"raw\.tif was to be mapped to 8 bits, but holds {said};"):
        IntensityMap.of_sample(np.array(values), name="raw.tif")


def test_upside_down_is_our_mistake():
    with pytest.raises(ValueError, match="not below"):
        IntensityMap(low=5, high=5, dtype="uint16")
