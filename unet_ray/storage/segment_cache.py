"""Decoded pieces of compressed images, the most recently used ones, in bounded memory."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from typing import Any

from numpy.typing import NDArray

CACHE_BYTES = 64 << 20


class SegmentCache:
    """Keeps the most recently used arrays; safe to use from several threads.

    Holds at most ``max_bytes``, or one array where that alone is larger: a section that
    is one compressed strip must not be decoded again for each of its tiles.

    >>> import numpy as np
    >>> cache = SegmentCache(max_bytes=8)
    >>> [int(cache.get(k, lambda: np.full(4, k, np.uint8))[0]) for k in (1, 2, 1, 3)]
    [1, 2, 1, 3]
    >>> sorted(cache)
    [1, 3]
    """

    def __init__(self, max_bytes: int = CACHE_BYTES) -> None:
        self.max_bytes = max_bytes
        self._held: OrderedDict[Hashable, NDArray[Any]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type["SegmentCache"], tuple[int]]:
        return SegmentCache, (self.max_bytes,)

    def get(self, key: Hashable, decode: Callable[[], NDArray[Any]]) -> NDArray[Any]:
        """The array of ``key``; ``decode()`` makes it where it is not held. Not to be written to."""
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
                return self._held[key]
        # Outside the lock: other threads decode at the same time.
        array = decode()
        with self._lock:
            if key not in self._held:
                self._held[key] = array
                self._bytes += array.nbytes
                while self._bytes > self.max_bytes and len(self._held) > 1:
                    _, dropped = self._held.popitem(last=False)
                    self._bytes -= dropped.nbytes
        return array

    def __iter__(self) -> Iterator[Hashable]:
        """Keys that are held."""
        with self._lock:
            return iter(list(self._held))
