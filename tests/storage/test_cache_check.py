"""A shard is whole or it is not: any changed, lost or added byte shows."""

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.storage import MemoryStore

from unet_ray.storage.array_spec import ArraySpec
from unet_ray.storage.cache_check import check_shard
from unet_ray.storage.shard_codec import ShardCodec

AXES = ("n", "y", "x")


def shard_of(compressor):
    spec = ArraySpec((9, 5, 6), (4, 5, 6), (1, 5, 6), "float16", AXES, compressor)
    values = np.random.default_rng(0).integers(0, 9, spec.shard).astype(np.float16)
    return spec, ShardCodec(spec).encode(values)


WHOLE = {compressor: shard_of(compressor) for compressor in ("zstd", "blosc")}


@given(st.sampled_from(sorted(WHOLE)), st.data())
def test_every_changed_bit_and_every_cut_is_noticed(compressor, drawn):
    spec, data = WHOLE[compressor]
    check_shard(data, spec)
    place = drawn.draw(st.integers(0, len(data) - 1))
    changed = bytearray(data)
    changed[place] ^= 1 << drawn.draw(st.integers(0, 7))
    for damaged in (bytes(changed), data[:place], data[place + 1 :], data[:place] + b"\0" + data[place:]):
        with pytest.raises(ValueError, match=r"."):
            check_shard(damaged, spec)


def test_shards_of_fill_values_and_part_filled_ones_are_whole():
    for compressor, (spec, _) in WHOLE.items():
        for count in (0, 1, 4):
            data = ShardCodec(spec).encode(np.ones((count, 5, 6), np.float16))
            check_shard(data, spec)
            with pytest.raises(ValueError, match=r"."):
                check_shard(b"", spec)
        assert compressor == spec.compressor


def test_a_shard_of_other_sides_is_not_ours():
    """Its checksums are right, and still it is not a shard of the array."""
    spec, _ = WHOLE["zstd"]
    for sides in ((4, 5, 7), (3, 5, 6), (5, 5, 6)):
        other = ArraySpec(sides, sides, (1, *sides[1:]), "float16", AXES)
        with pytest.raises(ValueError, match=r"."):
            check_shard(ShardCodec(other).encode(np.zeros(sides, np.float16)), spec)


def test_a_chunk_that_was_never_written_is_noticed():
    """zarr reads it as fill values."""
    spec, _ = WHOLE["zstd"]
    stored = {}
    array = zarr.create_array(
        MemoryStore(stored), shape=spec.shape, shards=spec.shard, chunks=spec.chunk, dtype=spec.dtype,
        compressors=[ZstdCodec(level=3), Crc32cCodec()], fill_value=0,
    )  # fmt: skip
    array[:3] = 1
    data = stored["c/0/0/0"].to_bytes()
    assert (ShardCodec(spec).decode(data)[:3] == 1).all()
    with pytest.raises(ValueError, match="its chunks do not fill it"):
        check_shard(data, spec)
    array[3] = 1
    check_shard(stored["c/0/0/0"].to_bytes(), spec)
