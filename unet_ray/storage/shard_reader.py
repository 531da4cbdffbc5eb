"""Chunks of a sharded array: the index of a shard is read once, then each chunk by one request."""

from collections.abc import Sequence
from concurrent.futures import Executor
from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_ray.errors import VolumeError
from unet_ray.storage.array_spec import ArraySpec
from unet_ray.storage.chunk_codec import NEVER_WRITTEN, ChunkCodec
from unet_ray.storage.failure import reason
from unet_ray.storage.objects import Objects
from unet_ray.storage.shards import shard_key

# Indexes kept; one takes 16 bytes per chunk of its shard.
INDEXES = 4096


class ShardReader:
    """Reads an array of `put_shard`; any number of threads.

    zarr reads the index again for every chunk, and takes several times as long to decode it.

    Args:
        objects: what holds the array.
        path: the array's, below the root.
        spec: as the array was put.
        remedy: what a user is told to do about a shard that is less than whole.
    """

    def __init__(self, objects: Objects, path: str, spec: ArraySpec, remedy: str) -> None:
        self._objects, self._path, self._spec, self._remedy = objects, path, spec, remedy
        self._codec = ChunkCodec(spec)
        self._chunks = tuple(side // chunk for side, chunk in zip(spec.shard, spec.chunk, strict=True))
        self._index = lru_cache(INDEXES)(self._read_index)

    def read(self, start: Sequence[int], stop: Sequence[int], pool: Executor) -> npt.NDArray[Any]:
        """The values from ``start`` up to ``stop``, in the array's axis order and inside of it.

        Args:
            start: of each axis.
            stop: of each axis, exclusive.
            pool: whose threads ask for the chunks.

        Raises:
            VolumeError: as `chunk`.
        """
        found = np.empty([b - a for a, b in zip(start, stop, strict=True)], self._spec.dtype)
        sides = self._spec.chunk
        ranges = (range(a // side, -(-b // side)) for a, b, side in zip(start, stop, sides, strict=True))

        def put(place: tuple[int, ...]) -> None:
            first = [p * side for p, side in zip(place, sides, strict=True)]
            begin = [max(a, f) for a, f in zip(start, first, strict=True)]
            end = [min(b, f + side) for b, f, side in zip(stop, first, sides, strict=True)]
            there = tuple(slice(b - a, e - a) for a, b, e in zip(start, begin, end, strict=True))
            here = tuple(slice(b - f, e - f) for f, b, e in zip(first, begin, end, strict=True))
            found[there] = self.chunk(place)[here]

        for _ in pool.map(put, product(*ranges)):
            pass
        return found

    def chunk(self, place: Sequence[int]) -> npt.NDArray[Any]:
        """The values of the chunk at a place of the grid of chunks.

        Returns:
            Read-only, of a chunk's sides also at the array's end; zeros where the chunk was never written.

        Raises:
            IndexError: there is no such place.
            VolumeError: the shard is missing, cut off or damaged, or its store does not answer.
        """
        spec = self._spec
        if any(not 0 <= p * side < end for p, side, end in zip(place, spec.chunk, spec.shape, strict=True)):
            raise IndexError(f"{self._path} has shape {spec.shape} and no chunk {tuple(place)}")
        shard = tuple(p // n for p, n in zip(place, self._chunks, strict=True))
        inside = tuple(p % n for p, n in zip(place, self._chunks, strict=True))
        try:
            return self._decoded(shard, inside)
        except ValueError:
            # Perhaps the shard was put again after its index had been read.
            self._index.cache_clear()
        try:
            return self._decoded(shard, inside)
        except ValueError as error:
            raise VolumeError(f"shard {self._url(shard)} is damaged ({reason(error)}); {self._remedy}") from error

    def entry(self, number: int) -> npt.NDArray[Any]:
        """The values at one place of the first axis, read-only, of an array that is cut along that axis alone.

        Raises:
            ValueError: a chunk is not one whole place of the first axis.
            IndexError: as `chunk`.
            VolumeError: as `chunk`.
        """
        spec = self._spec
        if spec.chunk != (1, *spec.shape[1:]):
            raise ValueError(f"chunk {spec.chunk} of {self._path} is not one whole place of {spec.shape}")
        found: npt.NDArray[Any] = self.chunk((number, *(0 for _ in spec.shape[1:])))[0]
        return found

    def _decoded(self, shard: tuple[int, ...], inside: tuple[int, ...]) -> npt.NDArray[Any]:
        offset, length = self._index(shard)[inside].tolist()
        sides, dtype = self._spec.chunk, self._spec.dtype
        if offset == length == NEVER_WRITTEN:
            return np.broadcast_to(np.zeros((), dtype), sides)
        return np.frombuffer(self._codec.values(self._part(shard, offset, length)), dtype).reshape(sides)

    def _read_index(self, shard: tuple[int, ...]) -> npt.NDArray[np.uint64]:
        """Offset and length of each chunk, (chunks along each axis, 2)."""
        length = self._codec.index_bytes
        return self._codec.places(self._part(shard, -length, length)).reshape(*self._chunks, 2)

    def _url(self, shard: tuple[int, ...]) -> str:
        return f"{self._objects.url}/{shard_key(self._path, shard)}"

    def _part(self, shard: tuple[int, ...], offset: int, length: int) -> bytes:
        """``length`` bytes of a shard from ``offset``, which counts from the end where it is negative."""
        data = self._objects.get_part(shard_key(self._path, shard), offset, length)
        if data is None:
            raise VolumeError(f"shard {self._url(shard)} is missing; {self._remedy}")
        if len(data) != length:
            raise ValueError(f"it has {len(data)} of {length} bytes that are looked for in it")
        return data
