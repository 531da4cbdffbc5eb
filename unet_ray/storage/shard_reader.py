"""Single chunks of a sharded array: the index of a shard is read once, then each chunk by one request."""

from functools import lru_cache
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
REMEDY = "run its jobs/augment.py command again with --verify"


class ShardReader:
    """Reads an array of `put_shard` that is cut into chunks along its first axis alone; any number of threads.

    zarr reads the index again for every chunk.

    Args:
        objects: what holds the array.
        path: the array's, below the root.
        spec: as the array was put.

    Raises:
        ValueError: a chunk is not one whole place of the first axis.
    """

    def __init__(self, objects: Objects, path: str, spec: ArraySpec) -> None:
        if spec.chunk != (1, *spec.shape[1:]) or spec.shard[1:] != spec.shape[1:]:
            raise ValueError(f"chunk {spec.chunk} of shard {spec.shard} is not one whole place of {spec.shape}")
        self._objects, self._path, self._spec = objects, path, spec
        self._codec = ChunkCodec(spec)
        self._index = lru_cache(INDEXES)(self._read_index)

    def chunk(self, number: int) -> npt.NDArray[Any]:
        """The values at one place of the first axis.

        Returns:
            Read-only, of the array's other axes; zeros where the chunk was never written.

        Raises:
            IndexError: there is no such place.
            VolumeError: the shard is missing, cut off or damaged, or its store does not answer.
        """
        if not 0 <= number < self._spec.shape[0]:
            raise IndexError(f"{self._path} has {self._spec.shape[0]} chunks, not a chunk {number}")
        shard, place = divmod(number, self._spec.shard[0])
        try:
            return self._decoded(shard, place)
        except ValueError:
            # Perhaps the shard was put again after its index had been read.
            self._index.cache_clear()
        try:
            return self._decoded(shard, place)
        except ValueError as error:
            raise VolumeError(f"shard {self._url(shard)} is damaged ({reason(error)}); {REMEDY}") from error

    def _decoded(self, shard: int, place: int) -> npt.NDArray[Any]:
        offset, length = self._index(shard)[place].tolist()
        inner = self._spec.shape[1:]
        if offset == length == NEVER_WRITTEN:
            return np.broadcast_to(np.zeros((), self._spec.dtype), inner)
        return np.frombuffer(self._codec.values(self._part(shard, offset, length)), self._spec.dtype).reshape(inner)

    def _read_index(self, shard: int) -> npt.NDArray[np.uint64]:
        """Offset and length of each chunk."""
        length = self._codec.index_bytes
        return self._codec.places(self._part(shard, -length, length))

    def _key(self, shard: int) -> str:
        return shard_key(self._path, (shard, *(0 for _ in self._spec.shape[1:])))

    def _url(self, shard: int) -> str:
        return f"{self._objects.url}/{self._key(shard)}"

    def _part(self, shard: int, offset: int, length: int) -> bytes:
        """``length`` bytes of a shard from ``offset``, which counts from the end where it is negative."""
        data = self._objects.get_part(self._key(shard), offset, length)
        if data is None:
            raise VolumeError(f"shard {self._url(shard)} is missing; {REMEDY}")
        if len(data) != length:
            raise ValueError(f"it has {len(data)} of {length} bytes that are looked for in it")
        return data
