"""What is held of decoded pieces, against a plain list of those used last."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.shipped import shipped
from unet_ray.storage.segment_cache import SegmentCache

SIZES = [1, 2, 3, 5, 8, 20]


@given(keys=st.lists(st.integers(0, len(SIZES) - 1), max_size=30), most=st.integers(0, 20))
def test_those_used_last_are_held_as_far_as_they_fit(keys, most):
    cache, last, decoded = SegmentCache(most), [], []
    for key in keys:

        def decode(key=key):
            decoded.append(key)
            return np.full(SIZES[key], key, np.uint8)

        decoded.clear()
        np.testing.assert_array_equal(cache.get(key, decode), np.full(SIZES[key], key))
        assert decoded == [key] * (key not in last)
        last = [other for other in last if other != key] + [key]
        while len(last) > 1 and sum(SIZES[other] for other in last) > most:
            last.pop(0)
        assert list(cache) == last


def test_a_piece_that_two_threads_decode_at_once_counts_once():
    cache, piece = SegmentCache(8), np.zeros(4, np.uint8)
    cache.get(1, lambda: cache.get(1, lambda: piece))  # the other thread came first
    cache.get(2, lambda: piece)
    assert list(cache) == [1, 2]


def test_a_worker_gets_an_empty_one_of_the_same_size():
    cache = SegmentCache(5)
    cache.get(1, lambda: np.zeros(4, np.uint8))
    arrived = shipped(cache)
    assert (list(arrived), arrived.max_bytes) == ([], 5)
