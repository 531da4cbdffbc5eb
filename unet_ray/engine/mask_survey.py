"""How much of some blocks lies inside a mask, and where there is something inside."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from unet_ray.geometry.box import Box, Triple, triple
from unet_ray.geometry.tiles import BlockGrid
from unet_ray.storage.mask_volume import MaskVolume

# Enough to tell a share to a few per cent; of a gigavoxel mask, half a minute of reading at most.
MOST_BLOCKS = 256


@dataclass(frozen=True, slots=True)
class MaskSurvey:
    """What was found in the blocks looked at.

    Attributes:
        inside: blocks with a voxel inside the mask, ascending.
        outside: the others.
        tiles: of all of them.
        tiles_inside: those with a voxel inside.
    """

    inside: tuple[int, ...]
    outside: tuple[int, ...]
    tiles: int
    tiles_inside: int

    @property
    def block_share(self) -> float:
        """Share of the blocks that are computed, 0 to 1."""
        return len(self.inside) / (len(self.inside) + len(self.outside))

    @property
    def tile_share(self) -> float:
        """Share of the tiles that are computed, 0 to 1."""
        return self.tiles_inside / self.tiles


def some_of(todo: Sequence[int]) -> list[int]:
    """At most `MOST_BLOCKS` of the blocks, ascending, the same at every call.

    Drawn, for every n-th block would often be the same column of each layer of blocks.
    """
    count = min(MOST_BLOCKS, len(todo))
    return [todo[place] for place in sorted(np.random.default_rng(0).choice(len(todo), count, replace=False).tolist())]


def survey(mask: MaskVolume, grid: BlockGrid, blocks: Sequence[int]) -> MaskSurvey:
    """Look some blocks of a grid up in a mask."""
    inside, outside = list[int](), list[int]()
    tiles = tiles_inside = 0
    for block in blocks:
        voxels = [count for _, count in _tiles(mask, grid, block)]
        found = sum(count > 0 for count in voxels)
        tiles, tiles_inside = tiles + len(voxels), tiles_inside + found
        (inside if found else outside).append(block)
    return MaskSurvey(tuple(inside), tuple(outside), tiles, tiles_inside)


def place_inside(mask: MaskVolume, grid: BlockGrid) -> Triple | None:
    """A voxel inside the mask, in the block nearest to the volume's centre that has one; None: none was found.

    Of a large volume only some blocks are looked at.
    """
    centre = [side / 2 for side in grid.tiles.volume]

    def distance(block: int) -> float:
        box = grid.write_box(block)
        return sum(((a + b) / 2 - c) ** 2 for a, b, c in zip(box.start, box.stop, centre, strict=True))

    for block in sorted(some_of(range(grid.num_blocks)), key=distance):
        box, voxels = max(_tiles(mask, grid, block), key=lambda found: found[1])
        if voxels:
            inside = mask.inside(box)
            place = np.unravel_index(np.flatnonzero(inside)[voxels // 2], inside.shape)
            return triple([int(a) + n for a, n in zip(place, box.start, strict=True)])
    return None


def _tiles(mask: MaskVolume, grid: BlockGrid, block: int) -> list[tuple[Box, int]]:
    """Write box of each tile of a block, and how many of its voxels are inside."""
    whole = grid.write_box(block)
    inside = mask.inside(whole)
    boxes = [grid.tiles.write_box(tile) for tile in grid.tiles_of(block)]
    return [(box, int(np.count_nonzero(inside[box.relative_to(whole.start).slices]))) for box in boxes]
