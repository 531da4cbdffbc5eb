"""Batches of a patch cache in an order that is a function of (seed, epoch) alone."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_ray.storage.patch_cache import Patch, PatchCache

READ_AHEAD = 4
_ORDER, _TURN = 0, 1


def epoch_order(patches: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """Patch numbers in the order of an epoch.

    >>> sorted(epoch_order(5, seed=0, epoch=3).tolist())
    [0, 1, 2, 3, 4]
    """
    return np.random.default_rng([seed, epoch, _ORDER]).permutation(patches)


def steps_per_epoch(patches: int, batch_size: int) -> int:
    """Steps of one pass; the last batch may be smaller."""
    return -(-patches // batch_size)


class PatchLoader:
    """This rank's part of every global batch of an epoch, read ahead by a thread.

    Args:
        cache: a complete patch cache.
        batch_size: patches of a global batch.
        seed: of order and symmetries.
        rank: this worker's number; it takes every ``world_size``-th patch of a batch.
        world_size: workers.
        random_dihedral: turn and flip each patch by one of the square's 8 symmetries.
    """

    def __init__(
        self, cache: PatchCache, *, batch_size: int, seed: int, rank: int, world_size: int, random_dihedral: bool
    ) -> None:
        self.cache, self.plan = cache, cache.plan()
        self.batch_size, self.seed, self.random_dihedral = batch_size, seed, random_dihedral
        self.rank, self.world_size = rank, world_size

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return steps_per_epoch(self.plan.patches, self.batch_size)

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Patch]:
        """This rank's batches of an epoch, from a step on; a batch may hold no patch at all."""
        order = epoch_order(self.plan.patches, self.seed, epoch)
        turns = np.random.default_rng([self.seed, epoch, _TURN]).integers(8, size=len(order))
        ahead: deque[Future[Patch]] = deque()
        with ThreadPoolExecutor(1, "patches") as reader:
            for step in range(first_step, self.steps):
                places = np.arange(step * self.batch_size, min((step + 1) * self.batch_size, len(order)))
                mine = places[self.rank :: self.world_size]
                ahead.append(reader.submit(self._batch, order[mine], turns[mine]))
                if len(ahead) > READ_AHEAD:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()

    def _batch(self, numbers: npt.NDArray[Any], turns: npt.NDArray[Any]) -> Patch:
        patches = [self.cache.read("train", int(n)) for n in numbers]
        if self.random_dihedral:
            patches = [_turned(p, int(t)) for p, t in zip(patches, turns, strict=True)]
        return Patch.stack(patches) if patches else self._empty()

    def _empty(self) -> Patch:
        specs = {name: self.plan.spec("train", name) for name in ("image", "label", "weight")}
        return Patch(*(np.zeros((0, *spec.shape[1:]), spec.dtype) for spec in specs.values()))


def _turned(patch: Patch, turn: int) -> Patch:
    """The patch under symmetry ``turn`` of the square: turn % 4 quarter turns, flipped from 4 on."""

    def of(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        turned = np.rot90(values, turn % 4, axes=(-2, -1))
        return np.ascontiguousarray(turned[..., ::-1] if turn >= 4 else turned)

    return Patch(of(patch.image), of(patch.label), of(patch.weight))
