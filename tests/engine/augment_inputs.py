"""Small labelled stacks, and what is planned and made of them without a cluster."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_ray.config.augment import AugmentConfig
from unet_ray.engine.augment_plan import AugmentPlan, prepare
from unet_ray.engine.augment_worker import AugmentWorker
from unet_ray.storage.patch_cache import Patch, PatchCache

Write = Callable[..., str]
Inputs = Callable[..., dict[str, Any]]
DEPTH, HEIGHT, WIDTH = 4, 40, 48


def noise(dtype: str = "uint8", *, seed: int = 0, shape: tuple[int, ...] = (DEPTH, HEIGHT, WIDTH)) -> npt.NDArray[Any]:
    return (np.random.default_rng(seed).random(shape) * 250).astype(dtype)


def grid(*, shape: tuple[int, ...] = (DEPTH, HEIGHT, WIDTH)) -> npt.NDArray[np.uint8]:
    """Membrane labels: every 8th column is bright."""
    labels = np.zeros(shape, np.uint8)
    labels[..., ::8] = 255
    return labels


def planned(asked: dict[str, Any]) -> AugmentPlan:
    return prepare(AugmentConfig(**asked))[0]


def patches(plan: AugmentPlan) -> tuple[Patch, Patch]:
    """All training patches, and all validation sections."""
    worker = AugmentWorker(PatchCache("unused"), plan)
    held_out = plan.cache.validation
    blocks = [worker.compute(block, None) for block in range(held_out + plan.cache.shards)]

    def joined(some: list[Patch]) -> Patch:
        empty = blocks[0] if not some else some[0]
        return Patch(
            *(
                np.concatenate([getattr(empty, n)[:0], *(getattr(b, n) for b in some)])
                for n in ("image", "label", "weight")
            )
        )

    return joined(blocks[held_out:]), joined(blocks[:held_out])
