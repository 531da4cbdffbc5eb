"""What a segmentation will take, told without writing anything."""

import time

from unet_ray.command import Summary
from unet_ray.engine.cluster import cluster, memory_to_ask_for, nodes_for, pool_size
from unet_ray.engine.segment_forecast import forecast
from unet_ray.engine.segment_remainder import remainder
from unet_ray.engine.segment_request import Request
from unet_ray.engine.segment_start import calibrated, probed, resolve_actors
from unet_ray.geometry.block_set import BlockSet
from unet_ray.network.summary import TRACING


def dry_run(request: Request, began: float) -> Summary:
    """What the chosen blocks that are not done will take, and the rest of the job; nothing is written.

    Args:
        request: that would be carried out.
        began: when the command did, seconds of the epoch.
    """
    config, blocks, chosen, stored = request.config, request.job.layout.blocks, request.chosen(), request.stored
    done = BlockSet(blocks.num_blocks) if stored is None else request.job.output.done(blocks)
    todo = [block for block in chosen if block not in done]
    summary: Summary = {
        "status": "complete",
        "dry_run": True,
        "voxels": blocks.voxels_of(chosen),
        "blocks": len(chosen),
        "blocks_skipped": len(chosen) - len(todo),
        "tile_px": blocks.tiles.tile[2],
        "output": request.config.output,
    }
    left, opened = remainder(request, done, todo), time.time() - began
    if not (todo or left):
        return summary | {"note": "everything is done; nothing is left to forecast"}
    with cluster(meanwhile=TRACING if stored is None else ()):
        request = resolve_actors(request)
        if stored is None:
            request, _ = calibrated(request)
            todo = list(request.chosen())
            done = BlockSet(request.job.layout.blocks.num_blocks)
            left = remainder(request, done, todo)
            summary |= {"blocks": len(todo), "tile_px": request.job.layout.blocks.tiles.tile[2]}
            found = probed(request)
            precision, rss = found.certificate.precision, found.rss_bytes
        else:
            precision, rss = stored["made_with"]["precision"], stored.get("worker_rss_bytes", 0)
        job, cpus = request.job, pool_size(None, cpus_each=1)
        memory = memory_to_ask_for(rss, job.threads, job.gpus_each)
        workers = pool_size(config.workers, job.threads, job.gpus_each, memory)
        at_once = nodes_for(min(workers, len(todo)), job.threads, job.gpus_each, memory)
        summary |= forecast(
            job, precision, list(request.chosen()), todo, left, workers,
            # Until now all was as it will be, the workers' own start apart; the driver alone writes TIFF files.
            startup_seconds=time.time() - began if todo or left.on_cluster() else opened,
            left_seconds=left.seconds(job.layout, cpus),
            nodes=at_once if todo else nodes_for(cpus if left.on_cluster() else 0, 1),
            price_per_node_hour=config.price_per_node_hour,
        )  # fmt: skip
    return summary
