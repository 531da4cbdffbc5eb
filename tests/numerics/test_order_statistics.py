import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from unet_ray.numerics.order_statistics import order_statistics

DTYPES = [
    "bool",
    "int8",
    "uint8",
    "int16",
    "uint16",
    "int32",
    "uint32",
    "int64",
    "uint64",
    "float16",
    "float32",
    "float64",
]
SHARES = [0.0, 0.001, 0.3, 0.5, 0.999, 1.0]


@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data())
def test_equals_sorting(dtype, data):
    elements = hnp.from_dtype(np.dtype(dtype), allow_nan=False)
    values = data.draw(hnp.arrays(dtype, st.integers(1, 40), elements=elements))
    cut = data.draw(st.integers(0, values.size))
    found = order_statistics(lambda: [values[:cut], values[cut:].reshape(1, -1)], values.dtype, SHARES)
    ranks = [round(share * (values.size - 1)) for share in SHARES]
    assert found == np.sort(values)[ranks].astype(np.float64).tolist()


@pytest.mark.parametrize(("dtype", "readings"), [("uint8", 1), ("int16", 1), ("float32", 2), ("float64", 4)])
def test_reads_once_per_sixteen_bits(dtype, readings):
    calls = []

    def read():
        calls.append(1)
        yield np.arange(100, dtype=dtype)

    assert order_statistics(read, np.dtype(dtype), SHARES) == [0, 0, 30, 50, 99, 99]
    assert len(calls) == readings


def test_large_sections_are_counted_whole():
    values = np.random.default_rng(0).permutation(7 * 300_000).astype(np.int32).reshape(7, -1)
    last = values.size - 1
    assert order_statistics(lambda: [values[:3], values[3:]], values.dtype, [0, 0.25, 1]) == [0, round(last / 4), last]


def test_no_values_have_no_order():
    with pytest.raises(ValueError, match="no values"):
        order_statistics(lambda: [np.empty((0, 4), np.int16)], np.dtype(np.int16), [0.5])
