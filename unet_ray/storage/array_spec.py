"""Sides, chunks and codecs of a sharded zarr v3 array."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import zarr
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec
from zarr.storage import MemoryStore

# Of both compressors.
ZSTD_LEVEL, LZ4_LEVEL = 3, 5


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """A sharded array: sides in its own axis order, whole chunks per shard, fill value 0.

    Raises:
        ValueError: chunks do not divide shards.
    """

    shape: tuple[int, ...]
    shard: tuple[int, ...]
    chunk: tuple[int, ...]
    dtype: str
    axes: tuple[str, ...]
    compressor: str = "zstd"

    def __post_init__(self) -> None:
        if any(s % c for s, c in zip(self.shard, self.chunk, strict=True)):
            raise ValueError(f"chunk {self.chunk} does not divide shard {self.shard}")

    @property
    def counts(self) -> tuple[int, ...]:
        """Shards along each axis."""
        return tuple(-(-n // s) for n, s in zip(self.shape, self.shard, strict=True))

    def create(self, store: MemoryStore, shape: Sequence[int], attributes: Mapping[str, Any]) -> Any:
        """The array in memory, with checksums on every chunk and on the shard's index."""
        zstd, lz4 = ZstdCodec(level=ZSTD_LEVEL), BloscCodec(cname="lz4", clevel=LZ4_LEVEL)
        return zarr.create_array(
            store,
            shape=tuple(shape),
            shards=self.shard,
            chunks=self.chunk,
            dtype=self.dtype,
            compressors=[zstd if self.compressor == "zstd" else lz4, Crc32cCodec()],
            fill_value=0,
            dimension_names=self.axes,
            attributes=dict(attributes),
            # A shard of fill values is written like any other: its presence is the record.
            config={"write_empty_chunks": True},
        )
