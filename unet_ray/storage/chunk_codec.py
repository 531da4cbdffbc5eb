"""The bytes of a shard without zarr's event loop: its index, and its chunks one by one, checksums verified.

zarr sends every step of every chunk through the loop, which takes four to eight times as long as the decoding,
and five times as long as the encoding.
"""

import math

import numpy as np
import numpy.typing as npt
from numcodecs import Blosc, Zstd
from numcodecs.checksum32 import CRC32C

from unet_ray.storage.array_spec import LZ4_LEVEL, ZSTD_LEVEL, ArraySpec
from unet_ray.storage.failure import reason

# What an index has for a chunk that was never written, as offset and as length.
NEVER_WRITTEN = 2**64 - 1


class ChunkCodec:
    """Encodes and decodes parts of the shards of an array by the codecs that zarr itself calls; any number of threads.

    Attributes:
        chunks: of one shard.
        index_bytes: length of a shard's index, which is its end.
    """

    def __init__(self, spec: ArraySpec) -> None:
        self.chunks = math.prod(side // chunk for side, chunk in zip(spec.shard, spec.chunk, strict=True))
        self.index_bytes = 16 * self.chunks + 4
        shuffle = Blosc.BITSHUFFLE if np.dtype(spec.dtype).itemsize == 1 else Blosc.SHUFFLE  # as zarr chooses
        self._compressor = Zstd(ZSTD_LEVEL) if spec.compressor == "zstd" else Blosc("lz4", LZ4_LEVEL, shuffle)
        self._checksum = CRC32C(location="end")

    def places(self, index: bytes | memoryview) -> npt.NDArray[np.uint64]:
        """Offset and length (chunks, 2) of each chunk, from the `index_bytes` at a shard's end.

        Raises:
            ValueError: the checksum is wrong, or the bytes are not that many.
        """
        if len(index) != self.index_bytes:
            raise ValueError(f"it has {len(index)} of {self.index_bytes} bytes of its index")
        try:
            return np.frombuffer(self._checksum.decode(index), "<u8").reshape(self.chunks, 2)
        except RuntimeError as error:  # numcodecs' for a wrong checksum and for bytes that do not decompress
            raise ValueError(reason(error)) from error

    def values(self, chunk: bytes | memoryview) -> bytes:
        """A chunk's values as bytes.

        Raises:
            ValueError: the checksum is wrong, or the bytes do not decompress.
        """
        try:
            decoded: bytes = self._compressor.decode(self._checksum.decode(chunk))
        except RuntimeError as error:
            raise ValueError(reason(error)) from error
        return decoded

    def index(self, places: npt.NDArray[np.uint64]) -> bytes:
        """A shard's index from the offset and length of each chunk; the inverse of `places`."""
        return bytes(self._checksum.encode(places.astype("<u8")))

    def encoded(self, values: npt.NDArray[np.generic]) -> bytes:
        """A chunk's bytes; the inverse of `values`."""
        return bytes(self._checksum.encode(self._compressor.encode(np.ascontiguousarray(values))))
