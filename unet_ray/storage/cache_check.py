"""Every shard of a patch cache checked: present, of its size, with the right checksums."""

import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from unet_ray.storage.array_spec import ArraySpec
from unet_ray.storage.chunk_codec import ChunkCodec
from unet_ray.storage.patch_cache import ARRAYS, RECORD, SPLITS, CachePlan, PatchCache
from unet_ray.storage.shards import set_aside_damaged

# Blocks handed to the threads at once; no more than these wait in memory, as numbers.
AT_ONCE = 1024


def verify(cache: PatchCache, on_checked: Callable[[], None] = lambda: None) -> Iterator[tuple[str, int]]:
    """Check all shards of every block that is done; set aside what fails, record included.

    One thread per CPU, each with one shard in memory.

    Args:
        cache: one that is there.
        on_checked: called after each block, whole or not.

    Yields:
        (split, shard) of each block that the next augment run will make again.
    """
    plan = cache.plan()
    specs = {(split, name): plan.spec(split, name) for split in SPLITS for name in ARRAYS}

    def is_whole(place: tuple[str, int]) -> bool:
        split, shard = place
        try:
            for name in ARRAYS:
                check_shard(cache.objects.get(cache.shard_key(split, name, shard)) or b"", specs[split, name])
        except ValueError:
            return False
        return True

    done = [(split, shard) for split in SPLITS for shard in cache.done(split, plan)]
    pool = ThreadPoolExecutor(os.cpu_count(), "verify")
    try:
        for first in range(0, len(done), AT_ONCE):
            places = done[first : first + AT_ONCE]
            for place, whole in zip(places, pool.map(is_whole, places), strict=True):
                if not whole:
                    _set_aside(cache, plan, *place)
                    yield place
                on_checked()
    finally:
        pool.shutdown(cancel_futures=True)


def check_shard(data: bytes, spec: ArraySpec) -> None:
    """Check the index, the checksums and the size of every chunk of a shard.

    Raises:
        ValueError: the shard is not whole.
    """
    codec = ChunkCodec(spec)
    chunk_bytes = math.prod(spec.chunk) * np.dtype(spec.dtype).itemsize
    body, index = memoryview(data)[: -codec.index_bytes], memoryview(data)[-codec.index_bytes :]
    places = codec.places(index).tolist()
    if sum(length for _, length in places) != len(body):
        raise ValueError("its chunks do not fill it")
    for offset, length in places:
        values = codec.values(body[offset : offset + length])
        if len(values) != chunk_bytes:
            raise ValueError(f"a chunk has {len(values)} of {chunk_bytes} bytes")


def _set_aside(cache: PatchCache, plan: CachePlan, split: str, shard: int) -> None:
    """Take back a block's record, and rename those of its shards that are damaged."""
    # The record first: killed in the middle, the block must not be taken for done.
    for name in sorted(ARRAYS, key=lambda name: name != RECORD):
        spec = plan.spec(split, name)
        set_aside_damaged(cache.objects, f"{split}/{name}", spec, [(shard, *(0 for _ in spec.shape[1:]))])
        if name == RECORD:
            cache.objects.delete(cache.shard_key(split, name, shard))
