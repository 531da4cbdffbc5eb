"""What a segmentation will take, told from a few of its own blocks before anything is written."""

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from unet_ray.engine.machines import roomiest_node
from unet_ray.engine.mask_survey import some_of, survey
from unet_ray.engine.process_memory import peak_rss_bytes
from unet_ray.engine.pyramid import pyramid_seconds
from unet_ray.engine.segment_worker import Job, SegmentWorker, on_worker, on_workers
from unet_ray.network.predict import Precision
from unet_ray.report.progress import duration, number
from unet_ray.storage.segmentation import SegmentationLayout

# Of each worker: one block to warm up and some more to measure, as far as they fit into this time.
MOST_BLOCKS, SECONDS = 5, 60.0
# What one CPU takes to export a megavoxel. Measured.
TIFF_MVOXEL_SECONDS = 0.04


@dataclass(frozen=True, slots=True)
class Measured:
    """What some blocks took on one worker, or on several at once.

    Attributes:
        blocks: that ``tiles`` and ``seconds`` are of.
        tiles: that were computed; none of those outside the mask.
        voxels: of all blocks, a worker's first one included.
        bytes: of their shards.
        seconds: of a worker, by the slowest of reading, computing and compressing, which go on side by side; summed
            over workers.
        startup_seconds: until the first block was read and computed, less what it takes later; the longest.
        worker_rss_bytes: memory of a worker, the largest.
    """

    blocks: int
    tiles: int
    voxels: int
    bytes: int
    seconds: float
    startup_seconds: float
    worker_rss_bytes: int

    @classmethod
    def together(cls, found: "Sequence[Measured]") -> "Measured":
        """What several workers measured at once."""
        return cls(
            blocks=sum(one.blocks for one in found),
            tiles=sum(one.tiles for one in found),
            voxels=sum(one.voxels for one in found),
            bytes=sum(one.bytes for one in found),
            seconds=sum(one.seconds for one in found),
            startup_seconds=max(one.startup_seconds for one in found),
            worker_rss_bytes=max(one.worker_rss_bytes for one in found),
        )


def measure(job: Job, precision: Precision, blocks: Sequence[int]) -> Measured:
    """Read, compute and encode blocks as a segmentation does; the first one warms up unless it is alone."""
    import ray.data  # noqa: F401  # an actor of a pool has loaded it, and it takes memory

    began = time.perf_counter()
    worker, grid = SegmentWorker(job, precision), job.layout.blocks
    spent: list[tuple[float, float, float]] = []
    sizes: list[int] = []
    for block in blocks:
        marks = [time.perf_counter()]
        data = worker.read(block)
        marks.append(time.perf_counter())
        result = worker.compute(block, data)
        marks.append(time.perf_counter())
        sizes.append(sum(len(shard) for shard in worker.encode(block, result).values()))
        marks.append(time.perf_counter())
        spent.append((marks[1] - marks[0], marks[2] - marks[1], marks[3] - marks[2]))
        if time.perf_counter() - began + sum(spent[-1]) > SECONDS:
            break
    first = 1 if len(spent) > 1 else 0
    seconds = max(sum(stage) for stage in zip(*spent[first:], strict=True))
    counts = [worker.counts(block) for block in blocks[first : len(spent)]]
    tiles = sum(count["tiles"] - count["tiles_masked"] for count in counts)
    usual = seconds / (len(spent) - first)
    return Measured(
        blocks=len(counts),
        tiles=tiles,
        voxels=sum(grid.write_box(block).voxels for block in blocks[: len(spent)]),
        bytes=sum(sizes),
        seconds=seconds,
        startup_seconds=max(0.0, sum(spent[0]) - usual) if first else 0.0,
        worker_rss_bytes=peak_rss_bytes(),
    )


def measure_beside(job: Job, precision: Precision, todo: Sequence[int], workers: int) -> Measured:
    """`measure` on as many workers of one node as will share it: one alone has its caches and memory for itself."""
    node, fitting = roomiest_node(job.threads, job.gpus_each)
    beside = max(1, min(workers, fitting, len(todo) // 2))
    chosen = spread(todo, beside * MOST_BLOCKS)
    calls = [(job, precision, chosen[first::beside]) for first in range(beside)]
    return Measured.together(on_workers(job, measure, calls, node))


def spread(todo: Sequence[int], most: int = MOST_BLOCKS) -> list[int]:
    """At most so many of the blocks, evenly over all of them.

    >>> spread(range(100, 200))
    [110, 130, 150, 170, 190]
    """
    count = min(most, len(todo))
    return [todo[(2 * k + 1) * len(todo) // (2 * count)] for k in range(count)]


def forecast(
    job: Job,
    precision: Precision,
    todo: Sequence[int],
    workers: int,
    nodes: int,
    price_per_node_hour: float | None,
    *,
    startup_seconds: float = 0.0,
    after_seconds: float = 0.0,
) -> dict[str, Any]:
    """Seconds, memory, bytes and cost of the blocks that are left, and of what is made of them.

    Args:
        job: of the segmentation.
        precision: that it will use.
        todo: blocks that are not done, at least one.
        workers: that will take part.
        nodes: that they keep, and the head.
        price_per_node_hour: in any currency; None: no cost is told.
        startup_seconds: until the first block.
        after_seconds: `after_seconds`.

    Returns:
        ``forecast_seconds`` of the whole job: ``forecast_startup_seconds``, ``forecast_block_seconds`` and what the
        pyramid and TIFF files take; ``forecast_bytes``, ``forecast_worker_rss_bytes`` and ``forecast_cost``; a line on
        stderr says the same. With a mask, ``forecast_tiles_masked`` as well: of a large output told from some of its
        blocks, as all the rest is.
    """
    grid = job.layout.blocks
    tiles = sum(sum(1 for _ in grid.tiles_of(block)) for block in todo)
    voxels = grid.voxels_of(todo)
    seconds, size, rss, masked = 0.0, 0.0, 0, 0
    inside, shares = todo, (1.0, 1.0)
    if job.mask is not None:
        looked_at = on_worker(job, survey, job.mask, grid, some_of(todo))
        inside, shares = looked_at.inside, (looked_at.block_share, looked_at.tile_share)
        masked = round(tiles * (1 - shares[1]))
        if looked_at.outside:
            found = measure_beside(job, precision, looked_at.outside, workers)
            seconds += len(todo) * (1 - shares[0]) / found.blocks * found.seconds / min(workers, len(todo))
            size += found.bytes / found.voxels * voxels * (1 - shares[0])
            rss = found.worker_rss_bytes
    if inside:
        found = measure_beside(job, precision, inside, workers)
        seconds += found.startup_seconds
        seconds += tiles * shares[1] / found.tiles * found.seconds / min(workers, len(todo))
        size += found.bytes / found.voxels * voxels * shares[0]
        rss = max(rss, found.worker_rss_bytes)
    size = round(size * _with_levels(job.layout))
    rate, seconds_in_all = voxels / seconds / 1e6, startup_seconds + seconds + after_seconds
    cost = None if price_per_node_hour is None else round(price_per_node_hour * nodes * seconds_in_all / 3600, 2)
    left_out = "" if job.mask is None else f"; {masked} of {tiles} tiles are outside the mask"
    priced = "" if cost is None else f"; {cost:,.2f} for {nodes} nodes at {price_per_node_hour:g} an hour each"
    print(
        f"segment: forecast: {duration(seconds_in_all)} for {voxels / 1e6:,.1f} Mvox on {workers} workers, of which "
        f"{duration(seconds)} for the blocks, {number(rate)} Mvox/s; {size / 1e6:,.1f} MB; {rss / 1e9:.2f} GB of "
        f"memory per worker{left_out}{priced}",
        file=sys.stderr,
    )
    return {
        "forecast_seconds": round(seconds_in_all, 1),
        "forecast_startup_seconds": round(startup_seconds, 1),
        "forecast_block_seconds": round(seconds, 1),
        "forecast_bytes": size,
        "forecast_worker_rss_bytes": rss,
        "forecast_cost": cost,
        **({} if job.mask is None else {"forecast_tiles_masked": masked}),
    }


def after_seconds(layout: SegmentationLayout, todo: Sequence[int], cpus: int, tiff_files: int) -> float:
    """What is left when blocks are done, about: the pyramid, on the cluster's CPUs, and TIFF files, on the driver's."""
    pyramid = pyramid_seconds(layout, len(todo) / layout.blocks.num_blocks, cpus)
    return pyramid + tiff_files * TIFF_MVOXEL_SECONDS * layout.blocks.voxels_of(todo) / 1e6 / (os.cpu_count() or 1)


def _with_levels(layout: SegmentationLayout) -> float:
    """Voxels of all levels over those of level 0."""
    shares = [1.0]
    for factor in layout.factors:
        shares.append(shares[-1] / (factor[0] * factor[1] * factor[2]))
    return sum(shares)
