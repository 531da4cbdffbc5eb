"""Labelled sections into a patch cache: one block of work per shard, on CPU workers."""

import sys
import time
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from unet_ray.command import Summary
from unet_ray.config.augment import AugmentConfig
from unet_ray.engine.augment_plan import AugmentPlan, prepare
from unet_ray.engine.augment_worker import AugmentWorker
from unet_ray.engine.blocks import run_blocks
from unet_ray.engine.cluster import cluster, pool_size
from unet_ray.errors import LabelError
from unet_ray.geometry.block_set import BlockSet
from unet_ray.report.pictures import contact_sheet_png
from unet_ray.report.progress import Progress
from unet_ray.storage.objects import open_objects
from unet_ray.storage.patch_cache import PatchCache

PICTURE = "contact-sheet.png"
PICTURED = 10


def augment(config: AugmentConfig) -> Summary:
    """Make, extend or finish a patch cache.

    Returns:
        The summary of the contract: patches, patches_written, patches_skipped, patches_per_second, ...

    Raises:
        InputError: inputs or settings are wrong; nothing was started.
        LabelError: a section cannot be used; training data are never skipped.
    """
    began = time.time()
    cache = PatchCache(config.cache)
    cache.objects.require_writable()
    plan, made_with = prepare(config)
    if config.overwrite:
        cache.overwrite()  # only now: a wrong setting must not cost the old cache
    plan = replace(plan, cache=cache.create_or_extend(plan.cache, made_with))
    if config.verify:
        for split, shard in cache.verify():
            print(f"augment: {split} shard {shard} of {config.cache} is damaged, made again", file=sys.stderr)
    held_out = len(plan.validation)
    done = BlockSet(held_out + plan.cache.shards, cache.done("validation", plan.cache))
    for shard in cache.done("train", plan.cache):
        done.add(held_out + shard)
    skipped = sum(len(plan.cache.patches_of(b - held_out)) for b in done if b >= held_out)
    summary: Summary = {
        "status": "complete",
        "seconds": 0.0,
        "startup_seconds": 0.0,
        "patches": plan.cache.patches,
        "patches_written": 0,
        "patches_skipped": skipped,
        "patches_per_second": 0.0,
        "cache": config.cache,
    }
    if len(done) == done.num_blocks:
        return summary | {"seconds": round(time.time() - began, 2), "note": "the cache was complete; nothing to do"}
    with cluster():
        first_row: list[float] = []
        with Progress("augment", total=plan.cache.patches, unit="patches", already_done=skipped) as progress:

            def on_row(row: dict[str, Any]) -> None:
                first_row.append(row["started"])
                progress.advance(row["units"])

            workers = pool_size(config.workers, cpus_each=1)
            todo = done.num_blocks - len(done)
            outcome = run_blocks(
                partial(AugmentWorker, cache, plan),
                done,
                workers=workers,
                cpus_each=1,
                run_length=max(1, min(64, todo // (workers * 16))),
                on_row=on_row,
            )
    if outcome.failures:
        block, reason = min(outcome.failures.items())
        split, shard = ("validation", block) if block < held_out else ("train", block - held_out)
        raise LabelError(
            f"{len(outcome.failures)} of {done.num_blocks} blocks failed; first, {split} shard {shard}: {reason}; "
            "mend the input and run the same command again to do only those"
        )
    open_objects(config.cache).put(PICTURE, _contact_sheet(cache, plan))
    return summary | {
        "seconds": round(time.time() - began, 2),
        "startup_seconds": round(min(first_row) - began, 2),
        "patches_written": outcome.units,
        "patches_per_second": round(outcome.units / max(outcome.seconds, 1e-9), 2),
        "peak_worker_rss_bytes": outcome.peak_worker_rss_bytes,
    }


def _contact_sheet(cache: PatchCache, plan: AugmentPlan) -> bytes:
    """Picture of patches spread over the whole cache, with label outlines and weight maps."""
    count = min(PICTURED, plan.cache.patches)
    numbers = [int(n) for n in np.linspace(0, plan.cache.patches - 1, count)]
    patches = [cache.read("train", number) for number in numbers]
    drawn = [plan.drawn(number) for number in numbers]
    centre = plan.cache.channels // 2
    return contact_sheet_png(
        [patch.image[centre] for patch in patches],
        [patch.label for patch in patches],
        [patch.weight for patch in patches],
        [f"section {d.section} variant {d.variant}" for d in drawn],
    )
