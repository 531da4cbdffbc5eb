"""Means of boxes, against the loop over boxes in whole numbers."""

from fractions import Fraction
from math import floor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unet_ray.numerics.downsample import downsample

sides = st.tuples(*[st.integers(0, 7)] * 3)


@given(shape=sides, factors=st.tuples(*[st.integers(1, 3)] * 3), seed=st.integers(0, 99))
def test_every_box_is_its_rounded_mean(shape, factors, seed):
    values = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    found = downsample(values, factors)
    assert found.shape == tuple(-(-side // factor) for side, factor in zip(shape, factors, strict=True))
    for place in np.ndindex(found.shape):
        box = values[tuple(slice(p * f, (p + 1) * f) for p, f in zip(place, factors, strict=True))]
        assert found[place] == floor(Fraction(int(box.sum(dtype=int)), box.size) + Fraction(1, 2))


@given(shape=sides, factors=st.tuples(*[st.integers(1, 3)] * 3), seed=st.integers(0, 99))
def test_every_box_in_half_precision_is_its_rounded_mean(shape, factors, seed):
    draw = np.random.default_rng(seed)
    values = (draw.random(shape) * 2.0 ** draw.integers(-20, 1, shape)).astype(np.float16)
    found = downsample(values, factors)
    assert found.dtype == np.float16
    assert found.shape == tuple(-(-side // factor) for side, factor in zip(shape, factors, strict=True))
    for place in np.ndindex(found.shape):
        box = values[tuple(slice(p * f, (p + 1) * f) for p, f in zip(place, factors, strict=True))]
        mean = sum(map(Fraction, box.ravel().tolist())) / box.size
        # To the nearest, but for what float32 loses on the way: sums in half precision would be whole steps off.
        off = abs(Fraction(float(found[place])) - mean)
        assert off <= Fraction(float(np.spacing(found[place]))) / 2 + mean / 2**21


@pytest.mark.parametrize("factors", [(2, 8, 8), (1, 16, 16), (3, 43, 1), (1, 2, 200)])
def test_full_scale_of_large_boxes_does_not_overflow(factors):
    """128 voxels are summed in 16 bits, more in 32; whole boxes and what is left at the border."""
    for shape in (factors, tuple(2 * factor + 1 for factor in factors)):
        assert (downsample(np.full(shape, 255, np.uint8), factors) == 255).all()


def test_full_scale_does_not_overflow():
    assert (downsample(np.full((4, 8, 8), 255, np.uint8), (2, 2, 2)) == 255).all()
    # 8 times a value and its rounded mean are itself.
    assert (downsample(np.full((4, 8, 8), 0.9995, np.float16), (2, 2, 2)) == np.float16(0.9995)).all()
