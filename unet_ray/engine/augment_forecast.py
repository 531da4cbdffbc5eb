"""How many bytes a patch cache will take, told from a few real patches before the work starts."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from unet_ray.engine.augment_plan import AugmentPlan
from unet_ray.engine.augment_worker import AugmentWorker
from unet_ray.engine.process_memory import peak_rss_bytes
from unet_ray.errors import TargetError
from unet_ray.geometry.block_set import BlockSet
from unet_ray.storage.patch_cache import ARRAYS, Patch, PatchCache, PatchLike
from unet_ray.storage.shard_codec import ShardCodec

# Patches are made until the error of their mean is this share of it, which takes a dozen or so.
WANTED_ERROR = 0.02
FEWEST, MOST = 12, 96
SECTIONS = 8
# What must be free: the forecast may be wrong by this share, and each file ends in a part-filled disk block.
RESERVE, DISK_BLOCK = 1.05, 4096


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a run still has to write.

    Attributes:
        patches: training patches.
        shards: training shards.
        sections: validation sections.
        bytes: of all arrays' shards, encoded.
        worker_bytes: memory of a process that makes patches, about: of this one, which has just made some.
    """

    patches: int = 0
    shards: int = 0
    sections: int = 0
    bytes: int = 0
    worker_bytes: int = 0

    @property
    def bytes_needed(self) -> int:
        """Bytes that must be free on a disk."""
        files = len(ARRAYS) * (self.shards + self.sections)
        return round(self.bytes * RESERVE) + files * DISK_BLOCK


def forecast(cache: PatchCache, plan: AugmentPlan, done: BlockSet) -> Forecast:
    """Make and encode a few patches and a validation section in this process, and count what is not done."""
    todo = list(done.missing())
    sections = sum(block < plan.cache.validation for block in todo)
    patches = sum(plan.cache.patches_in(block) for block in todo)
    worker, sizes = AugmentWorker(cache, plan), list[int]()
    each = whole = 0.0
    if patches:
        encoded = _Encoder(plan, "train")
        for number in sample(plan.cache.patches, len(plan.training)):
            sizes.append(encoded.size(worker.patch(plan.drawn(number))))
            if len(sizes) >= FEWEST and np.std(sizes) <= WANTED_ERROR * np.mean(sizes) * len(sizes) ** 0.5:
                break
        each = float(np.mean(sizes))
    if sections:
        whole = _Encoder(plan, "validation").size(worker.held_out(plan.cache.validation // 2))
    return Forecast(
        patches=patches,
        shards=len(todo) - sections,
        sections=sections,
        bytes=round(patches * each + sections * whole),
        worker_bytes=peak_rss_bytes(),
    )


def sample(patches: int, sections: int) -> Iterator[int]:
    """At most `MOST` patch numbers, of few sections spread over all: reading a section costs more than a patch.

    >>> list(sample(patches=60, sections=20))[:10]
    [0, 2, 5, 7, 10, 12, 15, 17, 20, 22]
    """
    chosen = min(SECTIONS, sections)
    for variant in range(min(patches // sections, -(-MOST // chosen))):
        yield from (variant * sections + n * sections // chosen for n in range(chosen))


class _Encoder:
    """Encodes patches one by one, as the chunks of a shard are."""

    def __init__(self, plan: AugmentPlan, split: str) -> None:
        self._codecs = {}
        for name in ARRAYS:
            spec = plan.cache.spec(split, name)
            one = (1, *spec.shape[1:])
            self._codecs[name] = ShardCodec(replace(spec, shape=one, shard=one))

    def size(self, patch: PatchLike) -> int:
        """Bytes of all arrays."""
        stacked = Patch.stack([patch])
        return sum(len(codec.encode(getattr(stacked, name))) for name, codec in self._codecs.items())


def require_room(cache: PatchCache, expected: Forecast, freed: int) -> None:
    """Say on stderr what will be written, and refuse a disk that cannot hold it.

    Args:
        cache: the target.
        expected: what will be written.
        freed: bytes that the run removes first.

    Raises:
        TargetError: there is not enough room.
    """
    parts = [f"{_count(expected.patches, 'patch')} in {_count(expected.shards, 'shard')}"] if expected.patches else []
    parts += [_count(expected.sections, "validation section")] if expected.sections else []
    what, free = " and ".join(parts), cache.objects.free_bytes()
    if free is not None and expected.bytes_needed > free + freed:
        raise TargetError(
            f"{cache.path} needs about {size(expected.bytes_needed)} for {what} but has {size(free + freed)} free; "
            "free some room, choose another path or ask for fewer --variants"
        )
    there = "" if free is None else f"; {size(free + freed)} are free in {cache.path}"
    print(f"augment: {what}, about {size(expected.bytes)}{there}", file=sys.stderr, flush=True)


def _count(number: int, noun: str) -> str:
    ending = "" if number == 1 else "es" if noun.endswith("ch") else "s"
    return f"{number:,} {noun}{ending}"


def size(count: int) -> str:
    """Bytes in powers of 1000, two digits or more.

    >>> size(999), size(4_123_456), size(61_400_000_000)
    ('999 bytes', '4.1 MB', '61 GB')
    """
    if count < 1000:
        return f"{count} bytes"
    value, units = float(count), iter(("kB", "MB", "GB", "TB", "PB"))
    unit = "bytes"
    while value >= 999.5 and unit != "PB":
        value, unit = value / 1000, next(units)
    return f"{value:.1f} {unit}" if value < 9.95 else f"{value:,.0f} {unit}"
