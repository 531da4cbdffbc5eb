"""The benchmark of training still runs, at toy size."""

import json
from pathlib import Path

import bench_train
import numpy as np
import pytest

from unet_ray.storage.patch_cache import CachePlan, Patch, PatchCache

MADE_WITH = {
    "sections": {"train/0/0": {"image": "aa", "label": "bb"}},
    "intensity": {"low": 0.0, "high": 255.0, "dtype": "uint8"},
    "voxel_size_nm": None,
    "context_sections": 0,
}


@pytest.mark.slow
def test_it_returns_rates_and_their_ratio(tmp_path: Path) -> None:
    cache = PatchCache(str(tmp_path / "cache.zarr"))
    plan = cache.create_or_extend(CachePlan(30, 32, 0, 1, 15, 1, (32, 32)), MADE_WITH)
    rng = np.random.default_rng(0)
    for split, shard, count in (("train", 0, 15), ("train", 1, 15), ("validation", 0, 1)):
        label = rng.integers(0, 2, (count, 32, 32), dtype=np.uint8)
        cache.put(plan, split, shard, Patch((label * 200)[:, None], label, np.ones(label.shape, np.float16)))
    asked = ["--cache", cache.path, "--batch-size", "2", "--base-channels", "2", "--depth", "2", "--threads", "1"]
    record = json.loads(json.dumps(bench_train.main([*asked, "--steps", "5", "--repeats", "1", "--workers", "1"])))
    (alone,), (job,) = record["results"]["bare"], record["results"]["job_1"]
    assert job["steps"] == 15
    assert 0 < job["in_steps_share"] <= 1.01
    assert record["ratios"]["job_1/bare"]["median"] == job["steps_per_second"] / alone["steps_per_second"]
