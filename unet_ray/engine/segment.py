"""A volume into its segmentation: Ray Data over block numbers, actors that hold the model."""

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import ray

from unet_ray.command import Summary
from unet_ray.config.segment import SegmentConfig
from unet_ray.engine.blocks import Outcome, run_blocks, run_length
from unet_ray.engine.bottleneck import bottleneck
from unet_ray.engine.cluster import cluster, loading, memory_to_ask_for, pool_size
from unet_ray.engine.past_runs import RunRecord
from unet_ray.engine.pyramid import anything_missing, build_pyramid, make_masks
from unet_ray.engine.segment_dry_run import dry_run
from unet_ray.engine.segment_export import export_tiff
from unet_ray.engine.segment_request import Request, open_request, take_over
from unet_ray.engine.segment_start import begin, resolve_actors
from unet_ray.engine.segment_worker import SegmentWorker
from unet_ray.geometry.block_set import BlockSet
from unet_ray.network.summary import TRACING
from unet_ray.report.progress import Progress
from unet_ray.storage.volume import open_volume

NAMED_FAILURES = 8
COUNTED = ("blocks_masked", "tiles", "tiles_masked", "tiles_constant", "passes_halved")


@dataclass
class Made:
    """What a run has made.

    Attributes:
        outcome: of the blocks of level 0.
        masks: by level, of the masks or label images that were made alone.
        above: by level, of the pyramid.
        began: when the first block began, seconds of the epoch; 0 without one.
        workers: that the blocks were shared by; 0 where a cluster was not needed.
    """

    outcome: Outcome = field(default_factory=Outcome)
    masks: dict[int, Outcome] = field(default_factory=dict)
    above: dict[int, Outcome] = field(default_factory=dict)
    began: float = 0.0
    workers: int = 0

    def failed(self, chosen: BlockSet) -> dict[int, str]:
        """Errors of the chosen blocks that are unwritten."""
        failures = self.outcome.failures | (self.masks[0].failures if 0 in self.masks else {})
        return {block: reason for block, reason in sorted(failures.items()) if block in chosen}

    def failed_above(self) -> list[str]:
        """Errors at the other levels."""
        return [
            f"level {level}, block {block}: {reason}"
            for made in (self.masks, self.above)
            for level in made.keys() - {0}
            for block, reason in made[level].failures.items()
        ]


def segment(config: SegmentConfig) -> Summary:
    """Segment a volume, or continue, repair or report a segmentation.

    Returns:
        The summary of the contract: voxels, blocks, blocks_written, seam_max_abs_diff, output, ...

    Raises:
        InputError: inputs or settings are wrong; nothing was started.
        SeamError: tile by tile would not equal one piece.
    """
    began = time.time()
    request = open_request(config)
    if config.dry_run:
        return dry_run(request, began) | {"seconds": round(time.time() - began, 2)}
    request = take_over(request)
    output, layout = request.job.output, request.job.layout
    done, chosen = output.done(layout.blocks), request.chosen()
    skipped = sum(block in done for block in chosen)
    if request.stored is not None:
        output.forget_above(layout, [block for block in chosen if block not in done])
    made, record = Made(), RunRecord(output.objects, began)
    if skipped < len(chosen) or request.stored is None or anything_missing(output, layout):
        if request.stored is not None:  # else it was asked before
            output.objects.require_writable()
        # Of what goes on the memory is stored.
        with cluster(meanwhile=TRACING if request.stored is None else ()), record:
            request, made = _make(request, done, record)
    summary = _summary(request, made, skipped, began)
    if "bottleneck" in summary:
        print(f"segment: {summary['bottleneck']['verdict']}", file=sys.stderr)
    chosen = request.chosen()
    if failed := made.failed(chosen):
        print(f"segment: {_incomplete(failed, len(chosen))}", file=sys.stderr)
    elif failed_above := made.failed_above():
        print(f"segment: the pyramid is incomplete; {failed_above[0]}; run the same command again", file=sys.stderr)
    else:
        export_tiff(config, request.job.layout, request.sections, request.region)
    record.note()
    return summary | {"seconds": round(time.time() - began, 2)}


def _make(request: Request, done: BlockSet, record: RunRecord) -> tuple[Request, Made]:
    """Make what is missing; also the request as it was resolved.

    Raises:
        InputError: the store of the output, or of the volume, does not answer any more.
        SeamError: tile by tile would not equal one piece.
    """
    request = resolve_actors(request)
    if request.stored is None:
        with loading(["ray.data"]):  # which `run_blocks` needs next; a worker calibrates and probes
            request = begin(request)
    else:
        request.job.output.create(request.job.layout, request.stored)
    made, job, stored = Made(), request.job, request.stored or {}
    # Outputs of earlier versions do not tell.
    memory = memory_to_ask_for(stored.get("worker_rss_bytes", 0), job.threads, job.gpus_each)
    made.workers = record.workers = pool_size(request.config.workers, job.threads, job.gpus_each, memory)
    if any(block not in done for block in request.chosen()):
        made.outcome, made.began = _segment_blocks(request, done, record, memory)
    made.masks = make_masks(job.output, job.layout, request.config.threshold)
    made.above = build_pyramid(job.output, job.layout, request.config.threshold)
    return request, made


def _summary(request: Request, made: Made, skipped: int, began: float) -> Summary:
    """What the command prints, but for its seconds."""
    layout, chosen, stored = request.job.layout, request.chosen(), request.stored or {}
    outcome, failed, failed_above = made.outcome, made.failed(chosen), made.failed_above()
    waits = bottleneck(outcome.stage_seconds, made.workers * outcome.seconds) if outcome.written else None
    summary: Summary = {
        "status": "incomplete" if failed or failed_above else "complete",
        "seconds": 0.0,
        "startup_seconds": round(made.began - began, 2) if made.began else 0.0,
        "voxels": layout.blocks.voxels_of(chosen),
        "voxels_per_second": round(outcome.units / max(outcome.seconds, 1e-9)),
        "blocks": len(chosen),
        "blocks_written": outcome.written,
        "blocks_skipped": skipped,
        "blocks_failed": len(failed),
        **{name: outcome.counts[name] for name in COUNTED},
        "pyramid_levels": len(layout.levels),
        "pyramid_blocks_written": sum(o.written for o in made.above.values()),
        **({} if waits is None else {"bottleneck": waits}),
        "model_seconds": round(outcome.stage_seconds["compute"], 2),
        "seam_max_abs_diff": stored["seam"]["seam_max_abs_diff"],
        "mask_change_share": stored["seam"]["mask_change_share"],
        "precision": stored["made_with"]["precision"],
        "tile_px": layout.blocks.tiles.tile[2],
        "tiles_at_once": request.job.tiles_at_once,
        "output": request.config.output,
        "peak_worker_rss_bytes": outcome.peak_worker_rss_bytes,
    }
    if not (made.workers or failed or failed_above):
        summary["note"] = "all chosen blocks and levels were there; nothing to do"
    if failed:
        summary["failures"] = {str(block): reason for block, reason in failed.items()}
    elif failed_above:
        summary["failures"] = failed_above
    return summary


def _incomplete(failed: Mapping[int, str], of: int) -> str:
    """The sentence of a run that ends with exit code 3."""
    first = sorted(failed)[:NAMED_FAILURES]
    named = f"{', '.join(str(block) for block in first)}{', ...' if len(failed) > len(first) else ''}"
    return (
        f"{len(failed)} of {of} blocks are unwritten ({named}); first failure, block {first[0]}: {failed[first[0]]}; "
        "run the same command again to finish them"
    )


def _segment_blocks(request: Request, done: BlockSet, record: RunRecord, memory_each: int) -> tuple[Outcome, float]:
    """Predict the chosen blocks that are not done, on as many workers as there are now; later on more, if may be.

    Raises:
        InputError: the store of the output, or of the volume, does not answer any more.
    """
    job, stored, config, chosen = request.job, request.stored or {}, request.config, request.chosen()
    blocks = job.layout.blocks
    todo = [block for block in chosen if block not in done]
    # Blocks that nobody chose count as settled here, so that only the others are missing.
    settled = BlockSet(blocks.num_blocks, (b for b in range(blocks.num_blocks) if b in done or b not in chosen))
    total = blocks.voxels_of(chosen) / 1e6
    before = total - blocks.voxels_of(todo) / 1e6
    started: list[float] = []
    reference, seconds_each = ray.put(job), stored.get("block_seconds", 0.0)
    with Progress("segment", total=total, unit="Mvox", already_done=before) as progress:

        def on_row(row: dict[str, Any]) -> None:
            started.append(float(row["started"]))
            record.take(row)
            if not row["ok"]:
                # Where this machine cannot write either, no other block could be.
                job.output.objects.require_writable()
            if row["away"]:
                # A worker has waited for minutes; where this machine gets no answer either, no other block would.
                open_volume(config.volume)
            progress.advance(row["units"] / 1e6)

        outcome = run_blocks(
            partial(SegmentWorker.in_actor, reference, stored["made_with"]["precision"]),
            settled,
            workers=config.workers,
            cpus_each=job.threads,
            gpus_each=job.gpus_each,
            memory_each=memory_each,
            run_length=run_length(len(todo), record.workers, seconds_each),
            seconds_each=seconds_each,
            stage="segment",
            on_row=on_row,
        )
    return outcome, min(started, default=time.time())
