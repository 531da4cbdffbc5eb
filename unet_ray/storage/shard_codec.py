"""Whole shards of an array as bytes."""

import functools
import itertools

import numpy as np
import numpy.typing as npt

from unet_ray.storage.array_spec import ArraySpec
from unet_ray.storage.chunk_codec import NEVER_WRITTEN, ChunkCodec


class ShardCodec:
    """Encodes and decodes whole shards of one array; any number of threads."""

    def __init__(self, spec: ArraySpec) -> None:
        self.spec = spec
        self._codec = ChunkCodec(spec)
        self._counts = tuple(s // c for s, c in zip(spec.shard, spec.chunk, strict=True))

    def encode(self, values: npt.NDArray[np.generic]) -> bytes:
        """Bytes of a shard that begins with ``values``; what they do not fill is 0.

        Chunks lie in Morton order, as zarr-python puts them, so that one of its processes makes the same bytes.
        """
        if values.shape != self.spec.shard:
            padded = np.zeros(self.spec.shard, self.spec.dtype)
            padded[tuple(slice(0, n) for n in values.shape)] = values
            values = padded
        values = values.astype(self.spec.dtype, copy=False)
        places = np.empty((*self._counts, 2), np.uint64)
        parts, offset = list[bytes](), 0
        for chunk in morton_order(self._counts):
            part = self._codec.encoded(values[self._slices(chunk)])
            places[chunk] = offset, len(part)
            parts.append(part)
            offset += len(part)
        return b"".join([*parts, self._codec.index(places)])

    def decode(self, data: bytes) -> npt.NDArray[np.generic]:
        """The whole shard.

        Raises:
            ValueError: a checksum of the index or of a chunk is wrong, or the bytes are cut off.
        """
        if not data:
            raise ValueError("the shard is missing or empty")
        view, values = memoryview(data), np.zeros(self.spec.shard, self.spec.dtype)
        try:
            places = self._codec.places(view[-self._codec.index_bytes :]).tolist()
            for chunk, (offset, length) in zip(np.ndindex(*self._counts), places, strict=True):
                if not offset == length == NEVER_WRITTEN:
                    decoded = self._codec.values(view[offset : offset + length])
                    values[self._slices(chunk)] = np.frombuffer(decoded, self.spec.dtype).reshape(self.spec.chunk)
        except ValueError as error:
            raise ValueError(f"the shard does not decode ({error})") from error
        return values

    def _slices(self, chunk: tuple[int, ...]) -> tuple[slice, ...]:
        return tuple(slice(p * n, (p + 1) * n) for p, n in zip(chunk, self.spec.chunk, strict=True))


@functools.lru_cache
def morton_order(counts: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """Places of a grid in Z-order, the first axis fastest.

    >>> morton_order((2, 3))
    ((0, 0), (1, 0), (0, 1), (1, 1), (0, 2), (1, 2))

    Source: Morton 1966; the grid's sides need not be alike or powers of two.
    """
    bits = max(side - 1 for side in counts).bit_length()

    def interleaved(place: tuple[int, ...]) -> list[int]:
        return [at >> bit & 1 for bit in reversed(range(bits)) for at in reversed(place)]

    return tuple(sorted(itertools.product(*map(range, counts)), key=interleaved))
