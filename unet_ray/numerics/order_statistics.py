"""Exact order statistics of more values than fit in memory."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_DIGIT_BITS = 16
_AT_ONCE = 1 << 20  # values; so that a large section costs no large temporaries


def order_statistics(
    read: Callable[[], Iterable[NDArray[Any]]], dtype: np.dtype[Any], shares: Sequence[float]
) -> list[float]:
    """The values that stand at ``shares`` of the way from the smallest to the largest.

    Values are sorted digit by digit, 16 bits each, the highest first, and only counted: so they are read
    once for 8 and 16 bits, twice for 32, four times for 64, and what is kept in memory is the counts.

    Args:
        read: yields all values, in pieces of any shape; called again for each digit.
        dtype: theirs: bool, whole numbers or floats, without NaN.
        shares: 0 is the smallest value, 1 the largest; of n values, ``share * (n - 1)`` is rounded to a rank.

    Raises:
        ValueError: there are no values.

    >>> order_statistics(lambda: [np.array([5, -3]), np.array([7, 9])], np.dtype(int), [0, 0.7, 1])
    [-3.0, 7.0, 9.0]
    """
    bits = 8 * dtype.itemsize
    digit_bits = min(_DIGIT_BITS, bits)
    prefixes, below = [0] * len(shares), list[int]()
    for shift in range(bits - digit_bits, -1, -digit_bits):
        counts = {prefix: np.zeros(1 << digit_bits, np.int64) for prefix in prefixes}
        for piece in read():
            assert piece.dtype == dtype, (piece.dtype, dtype)
            flat = np.ascontiguousarray(piece).reshape(-1)
            for start in range(0, flat.size, _AT_ONCE):
                _count(_keys(flat[start : start + _AT_ONCE]), shift, digit_bits, counts)
        if not below:
            total = int(counts[0].sum())
            if not total:
                raise ValueError("there are no values to take order statistics of")
            below = [round(share * (total - 1)) for share in shares]
        for number, prefix in enumerate(prefixes):
            ends = np.cumsum(counts[prefix])
            digit = int(np.searchsorted(ends, below[number], side="right"))
            below[number] -= int(ends[digit] - counts[prefix][digit])
            prefixes[number] = prefix << digit_bits | digit
    return [float(_value(prefix, dtype)) for prefix in prefixes]


def _count(keys: NDArray[Any], shift: int, digit_bits: int, counts: dict[int, NDArray[np.int64]]) -> None:
    """Count the digit at ``shift`` of the keys that begin with each prefix."""
    digits = (keys >> shift) & ((1 << digit_bits) - 1)
    above = shift + digit_bits
    for prefix, found in counts.items():
        chosen = digits if above == 8 * keys.itemsize else digits[keys >> above == prefix]
        found += np.bincount(chosen.astype(np.intp), minlength=found.size)


def _keys(values: NDArray[Any]) -> NDArray[Any]:
    """Unsigned whole numbers in the order of ``values``, of their size."""
    unsigned = np.dtype(f"u{values.dtype.itemsize}")
    keys: NDArray[Any] = values.view(unsigned)
    sign = unsigned.type(1 << (8 * unsigned.itemsize - 1))
    if values.dtype.kind == "i":
        keys = keys ^ sign
    elif values.dtype.kind == "f":  # IEEE 754 sorts like sign and magnitude
        keys = np.where(keys & sign, ~keys, keys | sign)
    return keys


def _value(key: int, dtype: np.dtype[Any]) -> Any:
    """The value with this key."""
    bits = 8 * dtype.itemsize
    sign = 1 << (bits - 1)
    if dtype.kind == "i":
        key ^= sign
    elif dtype.kind == "f":
        key = key ^ sign if key & sign else key ^ ((1 << bits) - 1)
    return np.array(key, f"u{dtype.itemsize}").view(dtype)[()]
