"""The whole job and the plain loops that it is held against: every way makes the same patch cache."""

import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from pinned import on_cores, start
from process_memory import MemoryWatch

from unet_ray.config.augment import WEIGHTING, AugmentConfig
from unet_ray.config.recipe import RECIPES
from unet_ray.engine.augment_plan import prepare
from unet_ray.engine.augment_worker import AugmentWorker
from unet_ray.storage.patch_cache import Patch, PatchCache

ROOT = Path(__file__).resolve().parents[2]


def cache_config(
    images: str, labels: str, *, variants: int, patch_px: int, cache: str, per_shard: int
) -> AugmentConfig:
    """The notebook's recipe for its own network, of whole sections; weight map and all else as by default."""
    return AugmentConfig(
        images=(images,),
        labels=(labels,),
        variants=variants,
        for_preset="keras",
        patch_px=patch_px,
        recipe_name="notebook",
        recipe=RECIPES["notebook"],
        weighting=WEIGHTING["keras"],
        cache=cache,
        patches_per_shard=per_shard,
    )


def plain_loop(config: AugmentConfig, cores: Sequence[int], *, write_behind: bool) -> dict[str, Any]:
    """Make a cache without Ray: as many processes as cores, each with an equal share of the shards.

    Args:
        config: what to make; the cache must not be there.
        cores: one process is pinned to each.
        write_behind: encode and write a shard in a thread while the next one is computed, as the job does.
    """
    began = time.perf_counter()
    cache = PatchCache(config.cache)
    plan, made_with = prepare(config)
    cache.create_or_extend(plan.cache, made_with)
    with MemoryWatch(lambda pid, command: "worker") as watch:
        ends = []
        for number, core in enumerate(cores):
            share = range(number, plan.cache.shards, len(cores))
            pid, end = start(_share_of_loop, core, config.cache, plan, share, write_behind)
            watch.add(pid)
            ends.append(end)
        for end in ends:
            end.recv()
        first = time.perf_counter()
        for end in ends:
            end.send("all are ready: go")
        last = max(end.recv() for end in ends)
    wall = time.perf_counter() - began
    return {
        "patches_per_second": plan.cache.patches / (last - first),
        "startup_seconds": first - began,
        "wall_seconds": wall,
        "memory": watch.summary(),
        **_held(config.cache),
    }


def _share_of_loop(end: Connection) -> None:
    path, plan, share, write_behind = end.recv()
    worker = AugmentWorker(PatchCache(path), plan)
    blocks = [len(plan.validation) + shard for shard in share]
    end.send("ready")
    end.recv()
    if write_behind:
        with ThreadPoolExecutor(1) as writer:
            behind = None
            for block in blocks:
                made = worker.compute(block, None)
                if behind is not None:
                    behind.result()
                behind = writer.submit(_encode_and_write, worker, block, made)
            if behind is not None:
                behind.result()
    else:
        for block in blocks:
            _encode_and_write(worker, block, worker.compute(block, None))
    end.send(time.perf_counter())


def _encode_and_write(worker: AugmentWorker, block: int, made: Patch) -> None:
    worker.write(block, worker.encode(block, made))


def job(config: AugmentConfig, cores: Sequence[int]) -> dict[str, Any]:
    """Make a cache by ``jobs/augment.py``, a process of its own, with as many workers as cores.

    Raises:
        RuntimeError: it did not end well; says what it printed.
    """
    flags = ["--images", *config.images, "--labels", *config.labels, "--label-kind", config.label_kind]
    for name in ("cache", "variants", "for_preset", "patch_px", "recipe_name", "patches_per_shard", "seed"):
        flags += [f"--{name.replace('_', '-')}", str(getattr(config, name))]
    kept = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    began = time.perf_counter()
    with on_cores(cores):
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "jobs" / "augment.py"), *flags, "--workers", str(len(cores))],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env={**kept, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip

    def role(pid: int, command: str) -> str:
        if pid == process.pid:
            return "driver"
        return "worker" if command.startswith("ray::MapWorker") else "other_ray_processes"

    with MemoryWatch(role) as watch:
        watch.add(process.pid)
        out, errors = process.communicate()
    wall = time.perf_counter() - began
    if process.returncode != 0:
        raise RuntimeError(f"jobs/augment.py ended with {process.returncode}: {errors[-2000:]}")
    summary = json.loads(out.splitlines()[-1])
    return {
        "patches_per_second": summary["patches_per_second"],
        "startup_seconds": summary["startup_seconds"],
        "wall_seconds": wall,
        "summary": summary,
        "memory": watch.summary(),
        **_held(config.cache),
    }


def _held(path: str) -> dict[str, Any]:
    """Bytes of a cache's shards, and a digest of all of them."""
    shards = sorted(file for file in Path(path).rglob("c/**/*") if file.is_file())
    digest = hashlib.blake2b(digest_size=16)
    for file in shards:
        digest.update(str(file.relative_to(path)).encode() + file.read_bytes())
    return {"cache_bytes": sum(file.stat().st_size for file in shards), "cache_digest": digest.hexdigest()}


WAYS = ("plain_loop", "plain_loop_writing_behind", "job")


def cache_runs(
    images: str, labels: str, *, variants: int, patch_px: int, per_shard: int, cores: Sequence[int],
    repeats: int, folder: str | None, ways: Sequence[str] = WAYS,
) -> dict[str, Any]:  # fmt: skip
    """Make a cache in each of the ways, in turn, ``repeats`` times; each cache is removed again.

    Returns:
        way -> list of what `plain_loop` and `job` return, one of each repeat, and the median rate.

    Raises:
        RuntimeError: two ways made different caches.
    """

    def run(way: str, variants: int) -> dict[str, Any]:
        temporary = tempfile.mkdtemp(prefix="bench-", dir=folder)
        try:
            config = cache_config(
                images, labels, variants=variants, patch_px=patch_px, cache=f"{temporary}/cache.zarr",
                per_shard=per_shard,
            )  # fmt: skip
            os.sync()  # what the last one wrote must not be written out in this one's time
            if way == "job":
                return job(config, cores)
            return plain_loop(config, cores, write_behind=way == "plain_loop_writing_behind")
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    run("plain_loop", 1)  # so that none of the ways has to compile, or finds the sections not yet read
    runs: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
    for repeat in range(repeats):
        for way in ways:
            print(f"{way} on {len(cores)} cores: repeat {repeat + 1} of {repeats}", file=sys.stderr)
            runs[way].append(run(way, variants))
    if len({made["cache_digest"] for each in runs.values() for made in each}) != 1:
        raise RuntimeError("the same cache was made with different bytes")
    return {
        way: {"patches_per_second": statistics.median(made["patches_per_second"] for made in each), "repeats": each}
        for way, each in runs.items()
    }
