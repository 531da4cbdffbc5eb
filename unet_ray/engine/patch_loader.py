"""Batches of a patch cache in an order that is a function of (seed, epoch) alone."""

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from unet_ray.geometry.descriptor_grid import descriptor_sides
from unet_ray.numerics.shape_descriptors import shape_descriptors
from unet_ray.storage.patch_cache import ARRAYS, Patch, PatchCache
from unet_ray.storage.shard_reader import ShardReader

# About 60 patches of 512 x 512: enough for 16 threads that wait for an object store's answers.
READ_AHEAD_BYTES = 64 << 20
# So that of small patches, too, only few have to be read again where training was stopped.
MOST_BATCHES_AHEAD = 32
# Columns that are copied at once where rows become columns: whole rows would miss the processor's cache.
STRIP = 32
REMEDY = "run its jobs/augment.py command again with --verify"
_ORDER, _TURN = 0, 1


class LoadedBatch(NamedTuple):
    """A rank's part of a global batch.

    Attributes:
        patch: the patches, stacked on a leading axis; perhaps none.
        described: float32, shape descriptors of each label; None where they are not asked for.
        numbers: int64, of each patch in the cache.
        positions: int64, of each patch in the global batch.
        step: of the epoch, from 0.
    """

    patch: Patch
    described: npt.NDArray[np.float32] | None
    numbers: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int64]
    step: int


def epoch_order(patches: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """Patch numbers in the order of an epoch.

    >>> sorted(epoch_order(5, seed=0, epoch=3).tolist())
    [0, 1, 2, 3, 4]
    """
    return np.random.default_rng([seed, epoch, _ORDER]).permutation(patches)


def steps_per_epoch(patches: int, batch_size: int) -> int:
    """Steps of one pass; the last batch may be smaller."""
    return -(-patches // batch_size)


def reading_threads(path: str) -> int:
    """Threads that read and decode the cache at ``path`` unless told.

    A core decodes patches a hundred times faster than it trains on them: a quarter of the cores is plenty, and a
    GPU is fed by four. Threads that read from an object store mostly wait for its answers.
    """
    return 16 if "://" in path else min(4, max(1, (os.cpu_count() or 1) // 4))


class PatchLoader:
    """This rank's part of every global batch of an epoch, read ahead and decoded by threads.

    Args:
        cache: a complete patch cache.
        batch_size: patches of a global batch.
        seed: of order and symmetries.
        rank: this worker's number; it takes every ``world_size``-th patch of a batch.
        world_size: workers.
        random_dihedral: turn and flip each patch by one of the square's 8 symmetries.
        describe: make shape descriptors of the labels, as they are turned.
        threads: that read and decode; None: `reading_threads`.
        read_ahead_bytes: of decoded patches that may wait for the consumer; one batch may always.
    """

    def __init__(
        self, cache: PatchCache, *, batch_size: int, seed: int, rank: int, world_size: int, random_dihedral: bool,
        describe: bool = False, threads: int | None = None, read_ahead_bytes: int = READ_AHEAD_BYTES,
    ) -> None:  # fmt: skip
        self.cache, self.plan = cache, cache.plan()
        self.batch_size, self.seed, self.random_dihedral = batch_size, seed, random_dihedral
        self.rank, self.world_size, self.describe = rank, world_size, describe
        self.threads = threads or reading_threads(cache.path)
        self._specs = {name: self.plan.spec("train", name) for name in ARRAYS}
        self._readers = {
            name: ShardReader(cache.objects, f"train/{name}", spec, REMEDY) for name, spec in self._specs.items()
        }
        patch_bytes = sum(int(np.prod(spec.shape[1:])) * np.dtype(spec.dtype).itemsize for spec in self._specs.values())
        self._described = descriptor_sides(self.plan.patch_px, self.plan.patch_px)
        if describe:
            patch_bytes += int(np.prod(self._described)) * np.dtype(np.float32).itemsize
        batch_bytes = patch_bytes * -(-batch_size // world_size)
        self.batches_ahead = min(MOST_BATCHES_AHEAD, max(1, read_ahead_bytes // batch_bytes))

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return steps_per_epoch(self.plan.patches, self.batch_size)

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[LoadedBatch]:
        """This rank's batches of an epoch, from a step on; a batch may hold no patch at all.

        Reading starts with the first batch that is asked for. No thread is left when the iterator ends, is closed
        or raises.

        Raises:
            VolumeError: a patch cannot be read: at the next batch, though the patch be of a later one.
        """
        order = epoch_order(self.plan.patches, self.seed, epoch)
        turns = np.zeros_like(order)
        if self.random_dihedral:
            turns = np.random.default_rng([self.seed, epoch, _TURN]).integers(8, size=len(order))
        underway: deque[_Underway] = deque()
        failed: list[Exception] = []
        pool = ThreadPoolExecutor(self.threads, "patches")
        try:
            for step in range(first_step, self.steps):
                underway.append(self._begin(pool, step, order, turns, failed))
                if len(underway) > self.batches_ahead:
                    yield _finished(underway.popleft(), failed)
            while underway:
                yield _finished(underway.popleft(), failed)
        finally:
            pool.shutdown(cancel_futures=True)

    def _begin(
        self, pool: ThreadPoolExecutor, step: int, order: npt.NDArray[Any], turns: npt.NDArray[Any],
        failed: list[Exception],
    ) -> "_Underway":  # fmt: skip
        first = step * self.batch_size
        positions = np.arange(self.rank, min(self.batch_size, len(order) - first), self.world_size)
        mine = first + positions
        patch = Patch(
            **{name: np.empty((len(mine), *spec.shape[1:]), spec.dtype) for name, spec in self._specs.items()}
        )
        described = None
        if self.describe:
            described = np.empty((len(mine), *self._described), np.float32)
        batch = LoadedBatch(patch, described, order[mine], positions, step)
        reads = [
            pool.submit(self._read, int(order[place]), int(turns[place]), batch, row, failed)
            for row, place in enumerate(mine)
        ]
        return _Underway(batch, reads)

    def _read(self, number: int, turn: int, into: LoadedBatch, row: int, failed: list[Exception]) -> None:
        try:
            for name, reader in self._readers.items():
                copy_turned(reader.entry(number), turn, getattr(into.patch, name)[row])
            if into.described is not None:
                shape_descriptors(into.patch.label[row], into.patch.weight[row] > 0, into.described[row])
        except Exception as error:
            failed.append(error)
            raise


class _Underway(NamedTuple):
    """A batch whose patches are being read into it."""

    batch: LoadedBatch
    reads: list[Future[None]]


def _finished(underway: _Underway, failed: list[Exception]) -> LoadedBatch:
    wait(underway.reads, return_when=FIRST_EXCEPTION)
    if failed:
        raise failed[0]
    return underway.batch


def copy_turned(values: npt.NDArray[Any], turn: int, out: npt.NDArray[Any]) -> None:
    """Copy values under symmetry ``turn`` of the square: turn % 4 quarter turns, then flipped in x from 4 on.

    >>> out = np.zeros((2, 2), int)
    >>> copy_turned(np.array([[1, 2], [3, 4]]), 5, out)
    >>> out
    array([[4, 2],
           [3, 1]])
    """
    turned = np.rot90(values, turn % 4, axes=(-2, -1))
    if turn >= 4:
        turned = turned[..., ::-1]
    width = STRIP if turn % 2 else values.shape[-1]
    for x in range(0, values.shape[-1], width):
        out[..., x : x + width] = turned[..., x : x + width]
