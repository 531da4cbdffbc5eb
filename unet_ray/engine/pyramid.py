"""What is made from stored probabilities: label images that are missing, and levels of lower resolution."""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from unet_ray.engine.blocks import BlockWorker, Outcome, run_blocks, run_few, run_length
from unet_ray.engine.cluster import KILLED, pool_size
from unet_ray.engine.pyramid_worker import MaskWorker, PyramidWorker
from unet_ray.geometry.block_set import BlockSet
from unet_ray.geometry.box import Box
from unet_ray.geometry.tiles import BlockGrid
from unet_ray.storage.segmentation import Segmentation, SegmentationLayout

# What one process takes for a block and for a megavoxel that it makes, and a pool of them to start. Measured on two
# cores: 0.045 s per block, 0.005 s per megavoxel; in an object store a block's requests take longer.
BLOCK_SECONDS, MVOXEL_SECONDS, POOL_SECONDS = 0.06, 0.01, 5.0


def _missing_masks(output: Segmentation, layout: SegmentationLayout) -> Iterator[tuple[int, list[int]]]:
    """Levels, and their blocks whose probability is there and whose labels are not."""
    for level in layout.levels:
        grid = layout.grid(level)
        masked = output.done(grid, f"{layout.label}/{level}")
        missing = [block for block in output.done(grid, str(level)) if block not in masked]
        if missing:
            yield level, missing


def anything_missing(output: Segmentation, layout: SegmentationLayout) -> bool:
    """Whether `make_masks` or `build_pyramid` would do anything."""
    return next(_missing_masks(output, layout), None) is not None or any(
        output.ready(layout, level) for level in layout.levels[1:]
    )


def make_masks(output: Segmentation, layout: SegmentationLayout, threshold: float) -> dict[int, Outcome]:
    """Make the masks, or label images of classes, that are missing; by level."""
    return {
        level: _on_cpus(output, partial(MaskWorker, output, layout, threshold, level), layout.grid(level), missing)
        for level, missing in _missing_masks(output, layout)
    }


def build_pyramid(output: Segmentation, layout: SegmentationLayout, threshold: float) -> dict[int, Outcome]:
    """Make the blocks of every level above 0 that can be made, from the finest level on; by level."""
    found: dict[int, Outcome] = {}
    for level in layout.levels[1:]:
        if ready := output.ready(layout, level):
            make_worker = partial(PyramidWorker, output, layout, threshold, level)
            found[level] = _on_cpus(output, make_worker, layout.grid(level), ready)
    return found


def pyramid_seconds(layout: SegmentationLayout, share: float, workers: int) -> float:
    """What `build_pyramid` takes, about, above a share of the blocks of level 0."""
    seconds = 0.0
    for level in layout.levels[1:]:
        grid = layout.grid(level)
        alone = share * _alone_seconds(grid.num_blocks, Box.of_shape(grid.tiles.volume).voxels)
        seconds += min(alone, _in_pool_seconds(alone, workers))
    return seconds


def _alone_seconds(blocks: int, voxels: int = 0) -> float:
    return BLOCK_SECONDS * blocks + MVOXEL_SECONDS * voxels / 1e6


def _in_pool_seconds(alone: float, workers: int) -> float:
    return POOL_SECONDS + alone / workers


def _are_few(grid: BlockGrid, todo: list[int], workers: int) -> bool:
    """Whether one process makes these blocks sooner than a pool of so many starts and makes them."""
    seconds = _alone_seconds(len(todo))
    if seconds < _in_pool_seconds(seconds, workers):  # of millions of blocks nobody adds up the voxels
        seconds = _alone_seconds(len(todo), sum(grid.write_box(block).voxels for block in todo))
    return seconds < _in_pool_seconds(seconds, workers)


def _on_cpus(output: Segmentation, make_worker: Callable[[], BlockWorker], grid: BlockGrid, todo: list[int]) -> Outcome:
    """Do some blocks of a grid on all CPUs.

    Raises:
        TargetError: the output cannot be written any more.
    """

    def on_row(row: dict[str, Any]) -> None:
        if not row["ok"]:
            output.objects.require_writable()

    workers = pool_size(None, cpus_each=1)
    if _are_few(grid, todo, workers):
        with contextlib.suppress(*KILLED):
            return run_few(make_worker, todo)
    wanted = set(todo)
    settled = BlockSet(grid.num_blocks, (block for block in range(grid.num_blocks) if block not in wanted))
    length = run_length(len(todo), workers)
    return run_blocks(
        make_worker, settled, workers=None, cpus_each=1, run_length=length, stage="pyramid", on_row=on_row
    )
