"""A volume into its segmentation: Ray Data over block numbers, actors that hold the model."""

import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import ray

from unet_ray.command import Summary
from unet_ray.config.network import layers
from unet_ray.config.sections import parse_roi, parse_sections
from unet_ray.config.segment import SegmentConfig
from unet_ray.engine.blocks import Outcome, run_blocks, run_length
from unet_ray.engine.bottleneck import bottleneck
from unet_ray.engine.calibration import Calibration
from unet_ray.engine.cluster import cluster, fewest_threads, memory_to_ask_for, pool_size, threads_each
from unet_ray.engine.model_fit import check_classes, check_fit, grey_levels, voxel_size
from unet_ray.engine.model_source import read_model_file
from unet_ray.engine.past_runs import RunRecord
from unet_ray.engine.pyramid import anything_missing, build_pyramid, make_masks
from unet_ray.engine.segment_export import export_tiff
from unet_ray.engine.segment_forecast import forecast
from unet_ray.engine.segment_plan import layout_for, resolve_tile_px, tile_sides
from unet_ray.engine.segment_worker import (
    Job,
    SegmentWorker,
    block_seconds,
    calibrate_on_worker,
    on_worker,
    probe_on_worker,
)
from unet_ray.errors import ConfigError
from unet_ray.geometry.block_set import BlockSet
from unet_ray.geometry.box import Box, triple
from unet_ray.geometry.receptive_field import legal_output_sides, pooling_factor
from unet_ray.network.model_file import decode
from unet_ray.network.summary import predicting_bytes
from unet_ray.report.progress import Progress
from unet_ray.storage.fingerprint import digest
from unet_ray.storage.mask_volume import open_mask
from unet_ray.storage.objects import absolute
from unet_ray.storage.segmentation import FORMAT_VERSION, UNSAID, Segmentation, SegmentationLayout
from unet_ray.storage.volume import open_volume

MOST_THREADS = 4
NAMED_FAILURES = 8
COUNTED = ("blocks_masked", "tiles", "tiles_masked", "tiles_constant", "passes_halved")


def segment(config: SegmentConfig) -> Summary:
    """Segment a volume, or continue, repair or report a segmentation.

    Returns:
        The summary of the contract: voxels, blocks, blocks_written, seam_max_abs_diff, output, ...

    Raises:
        InputError: inputs or settings are wrong; nothing was started.
        SeamError: tile by tile would not equal one piece.
    """
    began = time.time()
    volume = open_volume(config.volume)
    mask = None if config.mask is None else open_mask(config.mask, volume)
    region = parse_roi(config.roi, volume.shape, "--roi")
    named = parse_sections(config.sections, volume.shape[0], "--sections") or range(volume.shape[0])
    sections = tuple(z for z in named if region.start[0] <= z < region.stop[0])
    if not sections:
        raise ConfigError(f"--sections names no section of --roi {config.roi}; widen one of them")
    model = read_model_file(config.model)
    network, _, metadata = decode(model, config.model)
    check_classes(config, network.classes)
    check_fit(config, volume, metadata)
    output = Segmentation(config.output)
    intensity = grey_levels(config, volume, metadata)
    asked = {
        "format_version": FORMAT_VERSION,
        "shape": list(volume.shape),
        "volume": volume.identity(),
        "model": digest(model),
        "intensity": intensity.model_dump(),
        "tta": config.tta,
        "probability_dtype": config.probability_dtype,
        **{key: value for key in ("tile_px", "precision") if (value := getattr(config, key)) != "auto"},
        # Only where there is one, so that outputs from before masks were known go on.
        **({} if mask is None else {"mask": mask.identity()}),
    }
    expected = asked.keys() - ({"volume"} if config.accept_changed_volume else set())
    stored = None if config.overwrite else output.refuse_other({"mask": None} | {key: asked[key] for key in expected})
    side = config.tile_px if stored is None else stored["made_with"]["tile_px"]
    tile_px = resolve_tile_px(side, volume.shape, network)
    factors = None if stored is None else tuple(triple(factor) for factor in stored["pyramid"])
    voxel_nm = voxel_size(config, volume, metadata)
    layout = layout_for(volume.shape, tile_px, network, voxel_nm, factors, config.probability_dtype)
    chosen = _chosen(layout, sections, region)
    job = Job(
        volume, model, intensity, output, layout, config.threshold, threads=1, use_gpu=config.use_gpu, tta=config.tta,
        tiles_at_once=1 if stored is None else stored.get("tiles_at_once", 1),
        mask=mask,
    )  # fmt: skip
    if config.dry_run:
        return _dry_run(config, job, stored, sections, region) | {"seconds": round(time.time() - began, 2)}
    output.objects.require_writable()
    if config.overwrite:
        output.overwrite()  # only now: a wrong setting must not cost the old output
    if config.verify and stored is not None:
        for level, block in sorted(set(output.verify(layout))):
            where = f"block {block}" if level == 0 else f"block {block} of level {level}"
            print(f"segment: {where} of {config.output} is damaged and will be made again", file=sys.stderr)
    if stored is not None and layout.classes == 1 and stored["threshold"] != config.threshold:
        output.drop_masks(layout)
        stored = stored | {"threshold": config.threshold}
        output.set_attributes(stored)
    if stored is not None and config.accept_changed_volume:
        stored = stored | {
            "made_with": stored["made_with"] | {"volume": asked["volume"]},
            "sources": {"volume": absolute(config.volume)},
        }
        output.set_attributes(stored)
    done = output.done(layout.blocks)
    skipped = sum(block in done for block in chosen)
    todo = [block for block in chosen if block not in done]
    if stored is not None:
        output.forget_above(layout, todo)
    outcome, startup, workers = Outcome(), 0.0, 0
    masks, above = dict[int, Outcome](), dict[int, Outcome]()
    record = RunRecord(output.objects, began)
    if todo or stored is None or anything_missing(output, layout):
        with cluster(), record:
            gpus = 1 if config.use_gpu else 0
            threads = _threads(config, stored, job)
            workers = pool_size(config.workers, cpus_each=threads, gpus_each=gpus)
            job = replace(job, threads=threads)
            if stored is None:
                job, calibration = _calibrated(job, config)
                layout = job.layout
                chosen = _chosen(layout, sections, region)
                todo = list(chosen)
                probed = on_worker(job, probe_on_worker, job, config.precision)
                certificate = probed.certificate
                if certificate.note:
                    print(f"segment: {certificate.note}", file=sys.stderr)
                said = {key: value for key, value in asked.items() if key not in UNSAID or value != UNSAID[key]}
                stored = {
                    "made_with": said | {"tile_px": calibration.tile_px, "precision": certificate.precision},
                    **({"threshold": config.threshold} if layout.classes == 1 else {}),
                    "threads": threads,
                    "tiles_at_once": calibration.tiles_at_once,
                    "calibration": calibration.pixels_per_second,
                    "pyramid": layout.factors,
                    "seam": asdict(certificate),
                    "resolved_on": probed.hardware,
                    "block_seconds": block_seconds(job, probed.pixels_per_second),
                    "worker_rss_bytes": probed.rss_bytes,
                    # For evaluation: what the model has seen, and where to see whether that is scored.
                    "training_sections": [section.model_dump() for section in metadata.training_sections],
                    "sources": {"volume": absolute(config.volume)},
                }
                output.claim(layout, stored)
            else:
                output.create(layout, stored)
            if todo:
                # Outputs of earlier versions do not tell.
                memory = memory_to_ask_for(stored.get("worker_rss_bytes", 0), threads, gpus)
                record.workers = workers = pool_size(config.workers, threads, gpus, memory)
                outcome, first = _segment_blocks(job, stored, chosen, done, record, memory, config)
                startup = first - began
            masks = make_masks(output, layout, config.threshold)
            above = build_pyramid(output, layout, config.threshold)
    failures = outcome.failures | (masks[0].failures if 0 in masks else {})
    failed = {block: reason for block, reason in failures.items() if block in chosen}
    failed_above = [
        f"level {level}, block {block}: {reason}"
        for made in (masks, above)
        for level in made.keys() - {0}
        for block, reason in made[level].failures.items()
    ]
    summary: Summary = {
        "status": "incomplete" if failed or failed_above else "complete",
        "seconds": 0.0,
        "startup_seconds": round(startup, 2),
        "voxels": layout.blocks.voxels_of(chosen),
        "voxels_per_second": round(outcome.units / max(outcome.seconds, 1e-9)),
        "blocks": len(chosen),
        "blocks_written": outcome.written,
        "blocks_skipped": skipped,
        "blocks_failed": len(failed),
        **{name: outcome.counts[name] for name in COUNTED},
        "pyramid_levels": len(layout.levels),
        "pyramid_blocks_written": sum(o.written for o in above.values()),
        **({"bottleneck": bottleneck(outcome.stage_seconds, workers * outcome.seconds)} if outcome.written else {}),
        "model_seconds": round(outcome.stage_seconds["compute"], 2),
        "seam_max_abs_diff": stored["seam"]["seam_max_abs_diff"] if stored else None,
        "mask_change_share": stored["seam"]["mask_change_share"] if stored else None,
        "precision": stored["made_with"]["precision"] if stored else None,
        "tile_px": layout.blocks.tiles.tile[2],
        "tiles_at_once": job.tiles_at_once,
        "output": config.output,
        "peak_worker_rss_bytes": outcome.peak_worker_rss_bytes,
    }
    if not (workers or failed or failed_above):
        summary["note"] = "all chosen blocks and levels were there; nothing to do"
    if "bottleneck" in summary:
        print(f"segment: {summary['bottleneck']['verdict']}", file=sys.stderr)
    if failed:
        summary["failures"] = {str(block): reason for block, reason in sorted(failed.items())}
        print(f"segment: {_incomplete(failed, len(chosen))}", file=sys.stderr)
    elif failed_above:
        summary["failures"] = failed_above
        print(f"segment: the pyramid is incomplete; {failed_above[0]}; run the same command again", file=sys.stderr)
    else:
        export_tiff(config, layout, sections, region)
    record.note()
    return summary | {"seconds": round(time.time() - began, 2)}


def _dry_run(
    config: SegmentConfig, job: Job, stored: dict[str, Any] | None, sections: tuple[int, ...], region: Box
) -> Summary:
    """What the chosen blocks that are not done will take; nothing is written."""
    blocks, chosen = job.layout.blocks, _chosen(job.layout, sections, region)
    done = BlockSet(0) if stored is None else job.output.done(blocks)
    todo = [block for block in chosen if block not in done]
    summary: Summary = {
        "status": "complete",
        "dry_run": True,
        "voxels": blocks.voxels_of(chosen),
        "blocks": len(chosen),
        "blocks_skipped": len(chosen) - len(todo),
        "tile_px": blocks.tiles.tile[2],
        "output": config.output,
    }
    if not todo:
        return summary | {"note": "all blocks are done; nothing is left to forecast"}
    with cluster():
        job = replace(job, threads=_threads(config, stored, job))
        workers = pool_size(config.workers, cpus_each=job.threads, gpus_each=1 if job.use_gpu else 0)
        if stored is None:
            job, _ = _calibrated(job, config)
            todo = list(_chosen(job.layout, sections, region))
            summary |= {"blocks": len(todo), "tile_px": job.layout.blocks.tiles.tile[2]}
        if stored is None:
            precision = on_worker(job, probe_on_worker, job, config.precision).certificate.precision
        else:
            precision = stored["made_with"]["precision"]
        summary |= forecast(job, precision, todo, workers, config.price_per_node_hour)
    return summary


def _incomplete(failed: Mapping[int, str], of: int) -> str:
    """The sentence of a run that ends with exit code 3."""
    first = sorted(failed)[:NAMED_FAILURES]
    named = f"{', '.join(str(block) for block in first)}{', ...' if len(failed) > len(first) else ''}"
    return (
        f"{len(failed)} of {of} blocks are unwritten ({named}); first failure, block {first[0]}: {failed[first[0]]}; "
        "run the same command again to finish them"
    )


def _chosen(layout: SegmentationLayout, sections: tuple[int, ...], region: Box) -> BlockSet:
    """Blocks that the chosen sections of a region touch."""
    blocks = layout.blocks
    _, height, width = blocks.tiles.volume
    chosen = BlockSet(blocks.num_blocks)
    for layer in sorted({z // blocks.shard[0] for z in sections}):
        z = layer * blocks.shard[0]
        for start, stop in blocks.runs_touching(region.intersect(Box((z, 0, 0), (z + 1, height, width)))):
            chosen.add_run(start, stop)
    return chosen


def _threads(config: SegmentConfig, stored: dict[str, Any] | None, job: Job) -> int:
    """CPUs of an actor: what the output was begun with, else what was asked for, else what is fastest.

    On CPUs that is one, and an actor for each of them as far as memory allows: several threads of a network wait for
    each other at each layer, so that whatever else runs on one CPU is lost on all.
    """
    if stored is not None:
        return int(stored["threads"])
    if config.threads is not None:
        return config.threads
    shared = min(MOST_THREADS, threads_each(config.workers or 1, gpus_each=1 if config.use_gpu else 0))
    if config.use_gpu or config.workers is not None:
        return shared
    network, _, _ = decode(job.model)
    factor = pooling_factor(layers(network))
    side = tile_sides(job.volume.shape, factor)[-1] if config.tile_px == "auto" else job.layout.blocks.tiles.tile[2]
    inner = next(legal_output_sides(layers(network), at_least=side + 2 * job.crop))
    return fewest_threads(predicting_bytes(network, inner), shared)


def _calibrated(job: Job, config: SegmentConfig) -> tuple[Job, Calibration]:
    """The job of a new output, cut into tiles as suits the hardware of a worker that will compute."""
    if config.tile_px != "auto" and (config.tiles_at_once != "auto" or not job.use_gpu):
        found = Calibration(config.tile_px, 1 if config.tiles_at_once == "auto" else config.tiles_at_once, {})
    else:
        found = on_worker(job, calibrate_on_worker, job, config.precision, config.tile_px, config.tiles_at_once)
    network, _, _ = decode(job.model)
    layout = layout_for(job.volume.shape, found.tile_px, network, job.layout.voxel_size_nm, dtype=job.layout.dtype)
    return replace(job, layout=layout, tiles_at_once=found.tiles_at_once), found


def _segment_blocks(
    job: Job,
    stored: dict[str, Any],
    chosen: BlockSet,
    done: BlockSet,
    record: RunRecord,
    memory_each: int,
    config: SegmentConfig,
) -> tuple[Outcome, float]:
    """Predict the chosen blocks that are not done, on as many workers as there are now; later on more, if may be.

    Raises:
        InputError: the store of the output, or of the volume, does not answer any more.
    """
    blocks = job.layout.blocks
    todo = [block for block in chosen if block not in done]
    # Blocks that nobody chose count as settled here, so that only the others are missing.
    settled = BlockSet(blocks.num_blocks, (b for b in range(blocks.num_blocks) if b in done or b not in chosen))
    total = blocks.voxels_of(chosen) / 1e6
    before = total - blocks.voxels_of(todo) / 1e6
    started: list[float] = []
    reference = ray.put(job)
    with Progress("segment", total=total, unit="Mvox", already_done=before) as progress:

        def on_row(row: dict[str, Any]) -> None:
            started.append(float(row["started"]))
            record.take(row)
            if row["away"]:
                # A worker has waited for minutes; where this machine gets no answer either, no other block would.
                job.output.objects.require_writable()
                open_volume(config.volume)
            progress.advance(row["units"] / 1e6)

        outcome = run_blocks(
            partial(SegmentWorker.in_actor, reference, stored["made_with"]["precision"]),
            settled,
            workers=config.workers,
            cpus_each=job.threads,
            gpus_each=1 if job.use_gpu else 0,
            memory_each=memory_each,
            run_length=run_length(len(todo), record.workers, stored.get("block_seconds", 0.0)),
            stage="segment",
            on_row=on_row,
        )
    return outcome, min(started, default=time.time())
