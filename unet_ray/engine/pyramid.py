"""What is made from stored probabilities: label images that are missing, and levels of lower resolution."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

from unet_ray.engine.block_work import BlockWorker
from unet_ray.engine.blocks import Outcome, run_blocks, run_few, run_length
from unet_ray.engine.cluster import KILLED, pool_size
from unet_ray.engine.pyramid_worker import MaskWorker, PyramidWorker
from unet_ray.geometry.block_set import BlockSet
from unet_ray.geometry.tiles import BlockGrid
from unet_ray.storage.segmentation import Segmentation
from unet_ray.storage.segmentation_layout import SegmentationLayout

# What one process takes for a block and for a megavoxel that it makes. Measured on one core: 0.003 s per block, 0.019 s
# per megavoxel; in an object store a block's requests take longer.
BLOCK_SECONDS, MVOXEL_SECONDS = 0.02, 0.02
# A pool of actors takes so long to start, a task less; but a task tells nothing before its end, and of one that is
# killed all is done again.
POOL_SECONDS, TASK_SECONDS, LONGEST_TASK_SECONDS = 5.0, 0.5, 20.0


def missing_masks(
    output: Segmentation, layout: SegmentationLayout, *, anew: bool = False
) -> Iterator[tuple[int, list[int]]]:
    """Levels, and their blocks whose probability is there and whose labels are not, or are made anew."""
    for level in layout.levels:
        grid = layout.grid(level)
        masked = BlockSet(0) if anew else output.done(grid, f"{layout.label}/{level}")
        missing = [block for block in output.done(grid, str(level)) if block not in masked]
        if missing:
            yield level, missing


def anything_missing(output: Segmentation, layout: SegmentationLayout) -> bool:
    """Whether `make_masks`, `build_pyramid` or `Segmentation.create` would do anything."""
    return (
        next(missing_masks(output, layout), None) is not None
        or any(output.ready(layout, level) for level in layout.levels[1:])
        or output.lacks_metadata(layout)
    )


def make_masks(output: Segmentation, layout: SegmentationLayout, threshold: float) -> dict[int, Outcome]:
    """Make the masks, or label images of classes, that are missing; by level."""
    return {
        level: _on_cpus(output, partial(MaskWorker, output, layout, threshold, level), layout.grid(level), missing)
        for level, missing in missing_masks(output, layout)
    }


def build_pyramid(output: Segmentation, layout: SegmentationLayout, threshold: float) -> dict[int, Outcome]:
    """Make the blocks of every level above 0 that can be made, from the finest level on; by level."""
    found: dict[int, Outcome] = {}
    for level in layout.levels[1:]:
        if ready := output.ready(layout, level):
            make_worker = partial(PyramidWorker, output, layout, threshold, level)
            found[level] = _on_cpus(output, make_worker, layout.grid(level), ready)
    return found


def missing_above(
    output: Segmentation | None, layout: SegmentationLayout, done: BlockSet, todo: Iterable[int]
) -> dict[int, list[int]]:
    """Blocks of the levels above 0 that `build_pyramid` will make when more blocks of level 0 are there; by level.

    Args:
        output: None: it is a new one.
        layout: of it.
        done: blocks of level 0 that are there.
        todo: blocks that will be, made anew.
    """
    found: dict[int, list[int]] = {}
    changed = set(todo)
    there = BlockSet(done.num_blocks, [*done, *changed])
    for level in layout.levels[1:]:
        grid, below = layout.grid(level), layout.grid(level - 1)
        kept = BlockSet(grid.num_blocks)
        if output is not None:
            changed = layout.above(level, changed)
            kept = BlockSet(grid.num_blocks, (b for b in output.done(grid, str(level)) if b not in changed))
        missing = list(kept.missing())
        if len(there) < below.num_blocks:
            missing = [b for b in missing if all(c in there for c in below.blocks_touching(layout.source(level, b)))]
        if missing:
            found[level] = missing
        there = BlockSet(grid.num_blocks, [*kept, *missing])
    return found


def seconds_for(grid: BlockGrid, todo: list[int], workers: int) -> float:
    """What `build_pyramid` or `make_masks` takes for blocks of a level, about."""
    alone = _alone_seconds(len(todo), grid.voxels_of(todo))
    tasks = _tasks(len(todo), alone, workers)
    return TASK_SECONDS + alone / tasks if tasks else POOL_SECONDS + alone / workers


def _alone_seconds(blocks: int, voxels: int) -> float:
    return BLOCK_SECONDS * blocks + MVOXEL_SECONDS * voxels / 1e6


def _tasks(blocks: int, alone: float, workers: int) -> int:
    """Tasks that share blocks which one process makes in ``alone`` seconds; 0: a pool of actors does.

    >>> _tasks(100, 0.6, 8), _tasks(100, 5.0, 2), _tasks(100, 50.0, 2)
    (1, 2, 0)
    """
    tasks = max(1, min(workers, blocks, int(alone / TASK_SECONDS)))
    return tasks if alone / tasks <= LONGEST_TASK_SECONDS else 0


def _on_cpus(output: Segmentation, make_worker: Callable[[], BlockWorker], grid: BlockGrid, todo: list[int]) -> Outcome:
    """Do some blocks of a grid on all CPUs.

    Raises:
        TargetError: the output cannot be written any more.
    """

    def on_row(row: dict[str, Any]) -> None:
        if not row["ok"]:
            output.objects.require_writable()

    workers = pool_size(None, cpus_each=1)
    if tasks := _tasks(len(todo), _alone_seconds(len(todo), grid.voxels_of(todo)), workers):
        with contextlib.suppress(*KILLED):
            return run_few(make_worker, todo, tasks)
    wanted = set(todo)
    settled = BlockSet(grid.num_blocks, (block for block in range(grid.num_blocks) if block not in wanted))
    length = run_length(len(todo), workers)
    return run_blocks(
        make_worker, settled, workers=None, cpus_each=1, run_length=length, stage="pyramid", on_row=on_row
    )
