"""Small trainings: a cache that is soon learned, settings, and what a run directory tells."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unet_ray.config.train import TrainConfig
from unet_ray.network.model_file import decode
from unet_ray.storage.patch_cache import CachePlan, Patch, PatchCache

MADE_WITH = {
    "sections": {
        "train/0/0": {"image": "aa", "label": "bb"},
        "validation/0/1": {"image": "cc", "label": "dd"},
    },
    "intensity": {"low": 0.0, "high": 255.0, "dtype": "uint8"},
    "voxel_size_nm": [50.0, 4.0, 4.0],
    "context_sections": 0,
}


def make_cache(path: str, context: int = 0) -> str:
    """Seven patches and two validation sections whose membrane is simply what is dark."""
    made, channels = PatchCache(path), 1 + 2 * context
    plan = made.create_or_extend(
        CachePlan(7, 32, 0, channels, 4, 2, (40, 48)), MADE_WITH | {"context_sections": context}
    )
    rng = np.random.default_rng(0)

    def patches(count: int, height: int, width: int) -> Patch:
        coarse = rng.random((count, 1, height // 8, width // 8)) < 0.3
        label = np.kron(coarse, np.ones((8, 8))).astype(np.uint8)
        image = (200 - 120 * label + rng.integers(-30, 30, label.shape)).astype(np.uint8)
        near = rng.integers(0, 256, (count, channels, height, width), dtype=np.uint8)
        near[:, context] = image[:, 0]
        return Patch(near, label[:, 0], rng.uniform(0.5, 3, label[:, 0].shape).astype(np.float16))

    for shard in range(plan.shards):
        made.put(plan, "train", shard, patches(len(plan.patches_of(shard)), 32, 32))
    for number in range(plan.validation):
        made.put(plan, "validation", number, patches(1, 40, 48))
    return path


def config(cache: str, run: Path, **changes: Any) -> TrainConfig:
    settings = {
        "base_channels": 2, "depth": 2, "epochs": 3, "batch_size": 3, "best_by": "loss", "learning_rate": 2e-3,
        "precision": "float32", "threads": 1,
    }  # fmt: skip
    return TrainConfig(cache=cache, run=str(run), **(settings | changes))


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return decode((run / "model.safetensors").read_bytes())[1]


def validations(run: Path) -> list[dict[str, Any]]:
    return [row for row in rows(run) if row["event"] == "validation"]


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in rows(run)]
