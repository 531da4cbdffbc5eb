"""What a segmentation will take, told from a few of its own blocks before anything is written."""

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from unet_ray.engine.block_input import BlockInput
from unet_ray.engine.block_work import work_through
from unet_ray.engine.machines import roomiest_node
from unet_ray.engine.mask_survey import some_of, survey
from unet_ray.engine.segment_remainder import LABELS, Remainder
from unet_ray.engine.segment_worker import Job, SegmentWorker, on_worker, on_workers
from unet_ray.network.predict import Precision
from unet_ray.report.progress import duration, number
from unet_ray.storage.shards import Encoded
from unet_ray.storage.tiff import Kind, page_bytes

# Of each worker: two blocks to warm up and some more to measure, as far as they fit into this time.
MOST_BLOCKS, SECONDS = 6, 60.0
# Of a worker's memory over more blocks than those: what it frees on a CPU it keeps, in more and more pieces. Workers of
# one gigavoxel took 1.05 to 1.30 of what their first blocks did.
MEMORY_GROWTH = 1.15


@dataclass(frozen=True, slots=True)
class Measured:
    """What some blocks took on one worker, or on several at once.

    Attributes:
        blocks: that ``tiles`` and ``seconds`` are of.
        tiles: that were computed; none of those outside the mask.
        voxels: of all blocks, a worker's first one included.
        bytes: of their shards.
        tiff_bytes: of their voxels in the TIFF files that are asked for.
        seconds: of a worker, reading, computing and compressing side by side; summed over workers.
        startup_seconds: until the first block was read and computed, less what it takes later; the longest.
        worker_rss_bytes: memory of a worker, the largest.
    """

    blocks: int
    tiles: int
    voxels: int
    bytes: int
    tiff_bytes: int
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
            tiff_bytes=sum(one.tiff_bytes for one in found),
            seconds=sum(one.seconds for one in found),
            startup_seconds=max(one.startup_seconds for one in found),
            worker_rss_bytes=max(one.worker_rss_bytes for one in found),
        )


class _Rehearsal(SegmentWorker):
    """Does blocks as a segmentation does, all stages beside each other, but counts what it would put."""

    def __init__(self, job: Job, precision: Precision, tiff: Sequence[Kind]) -> None:
        super().__init__(job, precision)
        self.tiff, self.bytes, self.tiff_bytes = tiff, 0, 0
        self.computed = dict[int, float]()
        self.errors = dict[int, Exception]()

    def is_done(self, block: int) -> bool:
        return False

    def read(self, block: int) -> BlockInput:
        with self._kept_error(block):
            return super().read(block)

    def compute(self, block: int, data: BlockInput) -> npt.NDArray[Any]:
        with self._kept_error(block):
            found = super().compute(block, data)
        self.computed[block] = time.perf_counter()
        return found

    def encode(self, block: int, result: npt.NDArray[Any]) -> Encoded:
        with self._kept_error(block):
            self.tiff_bytes += bytes_as_tiff(self.job, result, self.tiff)
            return super().encode(block, result)

    def write(self, block: int, encoded: Encoded) -> int:
        self.bytes += sum(len(shard) for shard in encoded.values())
        return self.job.layout.blocks.write_box(block).voxels

    @contextmanager
    def _kept_error(self, block: int) -> Iterator[None]:
        """A row has an error's sentence alone, but its kind decides the exit code."""
        try:
            yield
        except Exception as error:
            self.errors[block] = error
            raise

    def do(self, blocks: Sequence[int]) -> list[dict[str, Any]]:
        """The blocks' rows.

        Raises:
            Exception: the error of a block that failed as often as it is tried.
        """
        rows = list(work_through(self, blocks))
        for row in rows:
            if not row["ok"]:
                raise self.errors[row["block"]]
        return rows


def measure(job: Job, precision: Precision, blocks: Sequence[int], tiff: Sequence[Kind] = ()) -> Measured:
    """Do blocks as a segmentation does, up to putting them; the first two warm up where there are more."""
    import ray.data  # noqa: F401  # an actor of a pool has loaded it, and it takes memory

    began = time.perf_counter()
    worker = _Rehearsal(job, precision, tiff)
    rows = worker.do(blocks[:1])
    alone = seconds = time.perf_counter() - began
    counted = rows
    if more := blocks[1 : 1 + int(SECONDS / alone)]:
        begun = time.perf_counter()
        counted = worker.do(more)
        rows, seconds = rows + counted, time.perf_counter() - begun
    if len(more) > 1:
        # From one pass's end to another's: nothing is read ahead for the first, nor written beside it.
        counted, ends = counted[1:], [worker.computed[block] for block in more]
        seconds = ends[-1] - ends[0]
    counts = [json.loads(row["counts"]) for row in counted]
    return Measured(
        blocks=len(counts),
        tiles=sum(count["tiles"] - count["tiles_masked"] for count in counts),
        voxels=sum(row["units"] for row in rows),
        bytes=worker.bytes,
        tiff_bytes=worker.tiff_bytes,
        seconds=seconds,
        startup_seconds=max(0.0, alone - seconds / len(counts)),
        worker_rss_bytes=max(row["rss"] for row in rows),
    )


def bytes_as_tiff(job: Job, probability: npt.NDArray[Any], tiff: Sequence[Kind]) -> int:
    """What a block takes in TIFF files of these kinds, all its sections taken to be like the first one."""
    depth: int = probability.shape[-3]
    first, size = probability[..., :1, :, :], 0
    for kind in tiff:
        pages = job.layout.label_of(first, job.threshold) if kind in LABELS else first
        size += sum(page_bytes(page, kind) for page in pages.reshape(-1, *pages.shape[-2:]))
    return size * depth


def measure_stored(job: Job, done: Sequence[int], tiff: Sequence[Kind]) -> Measured:
    """The bytes of blocks that are done.

    Raises:
        VolumeError: one is damaged.
    """
    blocks, output, layout = spread(done), job.output, job.layout
    size = tiff_bytes = 0
    for block in blocks:
        probability = output.read_block(layout, block)
        size += sum(len(shard) for shard in output.encode(layout, block, probability, job.threshold).values())
        tiff_bytes += bytes_as_tiff(job, probability, tiff)
    return Measured(len(blocks), 0, layout.blocks.voxels_of(blocks), size, tiff_bytes, 0.0, 0.0, 0)


def measure_beside(
    job: Job, precision: Precision, todo: Sequence[int], workers: int, tiff: Sequence[Kind] = ()
) -> Measured:
    """`measure` on as many workers of one node as will share it: one alone has its caches and memory for itself."""
    node, fitting = roomiest_node(job.threads, job.gpus_each)
    beside = max(1, min(workers, fitting, len(todo) // 2))
    chosen = spread(todo, beside * MOST_BLOCKS)
    calls = [(job, precision, chosen[first::beside], tiff) for first in range(beside)]
    return Measured.together(on_workers(job, measure, calls, node))


def spread(todo: Sequence[int], most: int = MOST_BLOCKS) -> list[int]:
    """At most so many of the blocks, evenly over all of them.

    >>> spread(range(100, 200), 5)
    [110, 130, 150, 170, 190]
    """
    count = min(most, len(todo))
    return [todo[(2 * k + 1) * len(todo) // (2 * count)] for k in range(count)]


def forecast(
    job: Job,
    precision: Precision,
    done: Sequence[int],
    todo: Sequence[int],
    left: Remainder,
    workers: int,
    *,
    startup_seconds: float = 0.0,
    left_seconds: float = 0.0,
    nodes: int = 1,
    price_per_node_hour: float | None = None,
) -> dict[str, Any]:
    """Seconds, memory, bytes and cost of the blocks that are left, and of what is made of them.

    Args:
        job: of the segmentation.
        precision: that it will use.
        done: chosen blocks that are done; they tell of bytes where nothing is to do.
        todo: chosen blocks that are not done.
        left: what is made beside them.
        workers: that will take part.
        startup_seconds: until the first block.
        left_seconds: what ``left`` takes.
        nodes: that the workers keep, and the head.
        price_per_node_hour: in any currency; None: no cost is told.

    Returns:
        ``forecast_seconds`` of the whole job: ``forecast_startup_seconds``, ``forecast_block_seconds`` and what the
        pyramid, label images and TIFF files take; ``forecast_bytes`` of the output, to which labels that are made anew
        add none, and ``forecast_tiff_bytes``; ``forecast_worker_rss_bytes`` and ``forecast_cost``; a line on
        stderr says the same. With a mask, ``forecast_tiles_masked`` as well: of a large output told from some of its
        blocks, as all the rest is.

    Raises:
        VolumeError: a block that is done is damaged.
    """
    grid = job.layout.blocks
    tiles = sum(sum(1 for _ in grid.tiles_of(block)) for block in todo)
    voxels = grid.voxels_of(todo)
    seconds, each, tiff_each, rss, masked = 0.0, 0.0, 0.0, 0, 0
    inside, shares = todo, (1.0, 1.0)
    if job.mask is not None and todo:
        looked_at = on_worker(job, survey, job.mask, grid, some_of(todo))
        inside, shares = looked_at.inside, (looked_at.block_share, looked_at.tile_share)
        masked = round(tiles * (1 - shares[1]))
        if looked_at.outside:
            found = measure_beside(job, precision, looked_at.outside, workers, left.tiff)
            seconds += len(todo) * (1 - shares[0]) / found.blocks * found.seconds / min(workers, len(todo))
            each += found.bytes / found.voxels * (1 - shares[0])
            tiff_each += found.tiff_bytes / found.voxels * (1 - shares[0])
            rss = found.worker_rss_bytes
    if inside:
        found = measure_beside(job, precision, inside, workers, left.tiff)
        seconds += found.startup_seconds
        seconds += tiles * shares[1] / found.tiles * found.seconds / min(workers, len(todo))
        each += found.bytes / found.voxels * shares[0]
        tiff_each += found.tiff_bytes / found.voxels * shares[0]
        rss = max(rss, found.worker_rss_bytes)
    if job.device == "cpu" and len(todo) > workers * MOST_BLOCKS:
        rss = round(MEMORY_GROWTH * rss)
    if not todo:
        found = measure_stored(job, done, left.tiff)
        each, tiff_each = found.bytes / found.voxels, found.tiff_bytes / found.voxels
    size, tiff_size = each * (voxels + left.voxels(job.layout)), tiff_each * left.tiff_pixels
    seconds_in_all = startup_seconds + seconds + left_seconds
    cost = None if price_per_node_hour is None else round(price_per_node_hour * nodes * seconds_in_all / 3600, 2)
    what, memory = f"what is left, {left}", ""
    if todo:
        what = (
            f"{voxels / 1e6:,.1f} Mvox on {workers} workers, of which {duration(seconds)} for the blocks, "
            f"{number(voxels / seconds / 1e6)} Mvox/s"
        )
        memory = f"; {rss / 1e9:.2f} GB of memory per worker"
    as_tiff = f" and {tiff_size / 1e6:,.1f} MB of TIFF" if left.tiff else ""
    left_out = f"; {masked} of {tiles} tiles are outside the mask" if job.mask is not None and todo else ""
    priced = (
        ""
        if cost is None
        else f"; {cost:,.2f} for {nodes} node{'s' * (nodes > 1)} at {price_per_node_hour:g} an hour each"
    )
    print(
        f"segment: forecast: {duration(seconds_in_all)} for {what}; {size / 1e6:,.1f} MB{as_tiff}{memory}{left_out}"
        f"{priced}",
        file=sys.stderr,
    )
    return {
        "forecast_seconds": round(seconds_in_all, 1),
        "forecast_startup_seconds": round(startup_seconds, 1),
        "forecast_block_seconds": round(seconds, 1),
        "forecast_bytes": round(size),
        "forecast_tiff_bytes": round(tiff_size),
        "forecast_worker_rss_bytes": rss,
        "forecast_cost": cost,
        **({} if job.mask is None else {"forecast_tiles_masked": masked}),
    }
