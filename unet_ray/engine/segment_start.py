"""What is found out on the hardware before a segmentation starts: threads, tile side, precision, seam, memory."""

import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from unet_ray.config.network import layers
from unet_ray.config.segment import SegmentConfig
from unet_ray.engine.calibration import Calibration
from unet_ray.engine.cluster import fewest_threads, gpu_share, pool_size, threads_each
from unet_ray.engine.machines import machines
from unet_ray.engine.segment_plan import (
    CUT,
    FEWEST_BLOCKS,
    LARGEST_CPU_TILE_PX,
    LARGEST_TILE_PX,
    layout_for,
    tile_sides,
)
from unet_ray.engine.segment_request import Request
from unet_ray.engine.segment_worker import Probed, block_seconds, calibrate_on_worker, on_worker, probe_on_worker
from unet_ray.geometry.receptive_field import legal_output_sides, pooling_factor
from unet_ray.network.model_file import decode
from unet_ray.network.summary import predicting_bytes
from unet_ray.storage.objects import absolute
from unet_ray.storage.segmentation import UNSAID

MOST_THREADS = 4
# Then a worker without a block at the end is idle for an eighth of the time at most.
BLOCKS_PER_WORKER = 8


def resolve_actors(request: Request) -> Request:
    """The request with the CPUs and the share of a GPU that an actor takes.

    CPUs are those that the output was begun with, else what was asked for, else the fastest. Without a GPU that is one,
    and an actor for each CPU as far as memory allows: several threads of a network wait for each other at each layer,
    so that whatever else runs on one CPU is lost on all. Beside a GPU reading and compressing want `MOST_THREADS`.

    Raises:
        ConfigError: an actor fits on no node.
    """
    config, job, stored = request.config, request.job, request.stored
    gpus_each, on_gpus = 0.0, 0
    asked, remedy = config.threads, ""
    if stored is not None:
        _say_unused(config, stored)
        asked = int(stored["threads"])
        remedy = (
            f"output {config.output} was begun with {asked} CPU per worker, on which its bytes depend: use such a "
            "node, or start it anew with --overwrite"
        )
    if config.use_gpu:
        gpus_each, on_gpus = gpu_share(config.workers_per_gpu, asked or MOST_THREADS, config.workers)
    if asked is not None:
        threads = asked
    else:
        threads = min(MOST_THREADS, threads_each(config.workers or max(1, on_gpus), gpus_each))
        if not config.use_gpu and config.workers is None:
            network, _, _ = decode(job.model)
            sides = tile_sides(job.volume.shape, pooling_factor(layers(network)))
            side = sides[-1] if config.tile_px == "auto" else job.layout.blocks.tiles.tile[2]
            inner = next(legal_output_sides(layers(network), at_least=side + 2 * job.crop))
            threads = fewest_threads(predicting_bytes(network, inner), threads)
    pool_size(config.workers, cpus_each=threads, gpus_each=gpus_each, remedy=remedy)
    return replace(request, job=replace(job, threads=threads, gpus_each=gpus_each))


def _say_unused(config: SegmentConfig, stored: Mapping[str, Any]) -> None:
    """Name on stderr what was given although an output that goes on keeps what it was begun with."""
    for name, asked in (("threads", config.threads), ("tiles_at_once", config.tiles_at_once)):
        kept, flag = stored.get(name, 1), f"--{name.replace('_', '-')}"
        if asked not in (None, "auto", kept):
            print(
                f"segment: {flag} {asked} is not used, for output {config.output} was begun with {flag} {kept}, on "
                "which its bytes depend; --overwrite starts it anew",
                file=sys.stderr,
            )


def largest_tile_px(request: Request) -> int:
    """The largest side of a tile that leaves every worker of a new output its memory, and blocks enough.

    What shares a GPU waits for the CPUs beside it, not for the network, and keeps the usual largest.
    """
    job = request.job
    if job.gpus_each:
        return LARGEST_TILE_PX
    network, _, _ = decode(job.model)
    workers, nodes = pool_size(request.config.workers, job.threads), machines()

    def suits(side: int) -> bool:
        inner = next(legal_output_sides(layers(network), at_least=side + 2 * job.crop))
        needed = predicting_bytes(network, inner)
        if sum(node.fits(job.threads, 0, needed) for node in nodes) < workers:
            return False
        layout = layout_for(job.volume.shape, side, network, job.layout.voxel_size_nm, dtype=job.layout.dtype, cut=CUT)
        blocks = len(replace(request, job=replace(job, layout=layout)).chosen())
        return blocks >= max(FEWEST_BLOCKS, BLOCKS_PER_WORKER * workers)

    sides = tile_sides(job.volume.shape, pooling_factor(layers(network)), LARGEST_CPU_TILE_PX)
    return next((side for side in reversed(sides) if side > LARGEST_TILE_PX and suits(side)), LARGEST_TILE_PX)


def calibrated(request: Request) -> tuple[Request, Calibration]:
    """The request for a new output, cut into tiles as suits the hardware of a worker that will compute."""
    config, job = request.config, request.job
    if config.tile_px != "auto" and (config.tiles_at_once != "auto" or not job.gpus_each):
        found = Calibration(config.tile_px, 1 if config.tiles_at_once == "auto" else config.tiles_at_once, {})
    else:
        found = on_worker(
            job, calibrate_on_worker, job, config.precision, config.tile_px, config.tiles_at_once,
            largest_tile_px(request),
        )  # fmt: skip
    network, _, _ = decode(job.model)
    layout = layout_for(
        job.volume.shape, found.tile_px, network, job.layout.voxel_size_nm, dtype=job.layout.dtype, cut=CUT
    )
    return replace(request, job=replace(job, layout=layout, tiles_at_once=found.tiles_at_once)), found


def probed(request: Request) -> Probed:
    """Precision, seam certificate, speed and memory, on a worker that will compute.

    Raises:
        SeamError: tile by tile would not equal one piece.
    """
    # The last: in float32 and in one piece it takes more memory than the blocks will.
    found: Probed = on_worker(request.job, probe_on_worker, request.job, request.config.precision, last=True)
    return found


def begin(request: Request) -> Request:
    """The request with a new output, claimed for it.

    Raises:
        InputError: nothing can be written there, or another run has begun it otherwise.
        SeamError: tile by tile would not equal one piece.
    """
    request, calibration = calibrated(request)
    found, job = probed(request), request.job
    certificate = found.certificate
    if certificate.note:
        print(f"segment: {certificate.note}", file=sys.stderr)
    said = {key: value for key, value in request.asked.items() if key not in UNSAID or value != UNSAID[key]}
    stored: dict[str, Any] = {
        "made_with": said | {"tile_px": calibration.tile_px, "precision": certificate.precision},
        **({"threshold": request.config.threshold} if job.layout.classes == 1 else {}),
        "threads": job.threads,
        "tiles_at_once": calibration.tiles_at_once,
        "calibration": calibration.pixels_per_second,
        "pyramid": job.layout.factors,
        "cut": CUT,
        "seam": asdict(certificate),
        "resolved_on": found.hardware,
        "block_seconds": block_seconds(job, found.pixels_per_second),
        "worker_rss_bytes": found.rss_bytes,
        # For evaluation: what the model has seen, and where to see whether that is scored.
        "training_sections": [section.model_dump() for section in request.metadata.training_sections],
        "sources": {"volume": absolute(request.config.volume)},
    }
    job.output.claim(job.layout, stored)
    return replace(request, stored=stored)
