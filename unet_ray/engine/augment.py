"""Labelled sections into a patch cache: one block of work per shard, on CPU workers."""

import sys
import time
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from unet_ray.command import Summary
from unet_ray.config.augment import AugmentConfig
from unet_ray.engine.augment_forecast import Forecast, forecast, require_room
from unet_ray.engine.augment_plan import AugmentPlan, prepare
from unet_ray.engine.augment_worker import AugmentWorker
from unet_ray.engine.blocks import Outcome, run_blocks, run_length
from unet_ray.engine.cluster import cluster, memory_to_ask_for, pool_size
from unet_ray.engine.past_runs import RunRecord
from unet_ray.errors import LabelError, VolumeError
from unet_ray.geometry.block_set import BlockSet
from unet_ray.report.pictures import contact_sheet_png
from unet_ray.report.progress import Progress
from unet_ray.storage.cache_check import verify
from unet_ray.storage.open_objects import open_objects
from unet_ray.storage.patch_cache import ARRAYS, CONTACT_SHEET, PatchCache
from unet_ray.storage.targets import check_folder_target

PICTURED = 10
NAMED_DAMAGE = 8


def augment(config: AugmentConfig) -> Summary:
    """Make, extend or finish a patch cache.

    Returns:
        The summary of the contract: patches, patches_written, patches_skipped, patches_per_second, ...

    Raises:
        InputError: inputs or settings are wrong; nothing was started.
        LabelError: a section cannot be used; training data are never skipped.
        TargetError: the cache cannot be written, or has no room.
    """
    began = time.time()
    cache = PatchCache(config.cache)
    inputs = [("--images", path) for path in config.images] + [("--labels", path) for path in config.labels]
    inputs += [("--ignore-masks", path) for path in config.ignore_masks]
    check_folder_target("--cache", config.cache, (CONTACT_SHEET,), inputs)
    fresh = cache.attributes() is None or config.overwrite
    if fresh:  # a cache that is complete may be read-only
        cache.objects.require_writable()
    plan, made_with = prepare(config)
    for line in plan.warnings:
        _say(line)
    checked: Summary = {}
    freed = 0
    if config.overwrite:
        done = BlockSet(plan.cache.blocks)
        freed = sum(info.size for info in cache.objects.list())
    else:
        plan = replace(plan, cache=cache.agreed(plan.cache, made_with))
        if config.verify:
            checked = _verify(cache)
        done = cache.done_blocks(plan.cache)
    expected = Forecast()
    if len(done) < done.num_blocks:
        if not fresh:
            cache.objects.require_writable()
        expected = forecast(cache, plan, done)
        require_room(cache, expected, freed)
    if config.overwrite:
        cache.overwrite()  # only now: a wrong setting must not cost the old cache
    cache.create_or_extend(plan.cache, made_with, plan.sources())
    skipped = plan.cache.patches - expected.patches
    summary: Summary = {
        "status": "complete",
        "seconds": 0.0,
        "startup_seconds": 0.0,
        "patches": plan.cache.patches,
        "patches_written": expected.patches,
        "patches_skipped": skipped,
        "patches_per_second": 0.0,
        "bytes_forecast": expected.bytes,
        "bytes_written": 0,
        "cache": config.cache,
        **checked,
    }
    if len(done) == done.num_blocks:
        return summary | {"seconds": round(time.time() - began, 2), "note": "the cache was complete; nothing to do"}
    missing = BlockSet(done.num_blocks, done.missing())
    record = RunRecord(cache.objects, began)
    outcome, first = _make(cache, plan, done, expected, config.workers, record)
    record.note()
    if outcome.failures:
        block, reason = min(outcome.failures.items())
        split, shard = plan.cache.place(block)
        raise LabelError(
            f"{len(outcome.failures)} of {done.num_blocks} blocks failed; first, {split} shard {shard}: {reason}; "
            "mend the input and run the same command again to do only those"
        )
    open_objects(config.cache).put(CONTACT_SHEET, _contact_sheet(cache, plan))
    return summary | {
        "seconds": round(time.time() - began, 2),
        "startup_seconds": round(first - began, 2),
        "patches_per_second": round(expected.patches / max(outcome.seconds, 1e-9), 2),
        "bytes_written": cache.bytes_of(plan.cache, missing),
        "peak_worker_rss_bytes": outcome.peak_worker_rss_bytes,
    }


def _say(line: str) -> None:
    print(f"augment: {line}", file=sys.stderr, flush=True)


def _verify(cache: PatchCache) -> Summary:
    """Check what is there and set aside what is damaged; what was checked, for the summary."""
    if cache.attributes() is None:
        return {}
    blocks = len(cache.done_blocks(cache.plan()))
    with Progress("augment --verify", total=blocks, unit="blocks") as progress:
        damaged = list(verify(cache, on_checked=partial(progress.advance, 1)))
    for split, shard in damaged[:NAMED_DAMAGE]:
        _say(f"{split} shard {shard} of {cache.path} is damaged, made again")
    shards = len(ARRAYS) * blocks
    found = f"{len(damaged)} blocks with damage" if damaged else "all whole"
    _say(f"{shards:,} shards of {blocks:,} blocks in {cache.path} checked, {found}")
    return {"shards_checked": shards, "blocks_damaged": len(damaged)}


def _make(
    cache: PatchCache,
    plan: AugmentPlan,
    done: BlockSet,
    expected: Forecast,
    workers: int | None,
    record: RunRecord,
) -> tuple[Outcome, float]:
    """Make the blocks that are missing; also when the first one began.

    Raises:
        TargetError: the disk is full or the store lost: nothing else could be written either.
        VolumeError: the store of the images is lost.
    """
    started: list[float] = []
    skipped, todo = plan.cache.patches - expected.patches, done.num_blocks - len(done)
    progress = Progress("augment", total=plan.cache.patches, unit="patches", already_done=skipped)
    with cluster(), record, progress:

        def on_row(row: dict[str, Any]) -> None:
            started.append(row["started"])
            record.take(row)
            if row["ok"]:
                # Not the row's units: of a block that a killed worker had finished there are none.
                progress.advance(plan.cache.patches_in(int(row["block"])))
            else:
                cache.objects.require_writable()
                if row["away"]:
                    # Of the images, then: a section that cannot be read ends the job anyway.
                    raise VolumeError(row["error"])

        memory = memory_to_ask_for(expected.worker_bytes, cpus_each=1)
        record.workers = count = pool_size(workers, cpus_each=1, memory_each=memory)
        outcome = run_blocks(
            partial(AugmentWorker, cache, plan),
            done,
            workers=workers,
            cpus_each=1,
            memory_each=memory,
            run_length=run_length(todo, count),
            stage="augment",
            on_row=on_row,
        )
    return outcome, min(started, default=time.time())


def _contact_sheet(cache: PatchCache, plan: AugmentPlan) -> bytes:
    """Picture of random variants of spread sections, with label outlines and weight maps; the same at each run."""
    sections = len(plan.training)
    variants = plan.cache.patches // sections
    count = min(PICTURED, plan.cache.patches)
    rng = np.random.default_rng(plan.settings.seed)
    chosen: dict[int, list[int]] = {}  # by section
    for k in range(count):
        chosen.setdefault(k * sections // count, []).append(k)
    numbers = [
        int(variant) * sections + section
        for section, places in chosen.items()
        for variant in rng.choice(variants, len(places), replace=False)
    ]
    patches = [cache.read("train", number) for number in numbers]
    drawn = [plan.drawn(number) for number in numbers]
    names = [stack["name"] for stack in plan.sources()["stacks"]]
    centre = plan.cache.channels // 2
    return contact_sheet_png(
        [patch.image[centre] for patch in patches],
        [patch.label for patch in patches],
        [patch.weight for patch in patches],
        [f"{names[d.stack]} " * (len(names) > 1) + f"section {d.section} variant {d.variant}" for d in drawn],
    )
