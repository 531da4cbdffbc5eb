"""Tile grids, and blocks of whole tiles that own one shard each."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from math import prod

from unet_ray.errors import TileGridError
from unet_ray.geometry.box import Box, Triple, triple


def _position(number: int, counts: Triple, what: str) -> Triple:
    """(z, y, x) place of ``number`` in a grid of ``counts``, x fastest."""
    if not 0 <= number < prod(counts):
        raise IndexError(f"there is no {what} {number}; there are {prod(counts)}")
    rest, x = divmod(number, counts[2])
    z, y = divmod(rest, counts[1])
    return z, y, x


def _number(position: Triple, counts: Triple) -> int:
    z, y, x = position
    return (z * counts[1] + y) * counts[2] + x


def _ceil_div(volume: Triple, side: Triple) -> Triple:
    return triple([-(-v // s) for v, s in zip(volume, side, strict=True)])


def _positive(**shapes: Triple) -> None:
    for name, shape in shapes.items():
        if min(shape) < 1:
            raise TileGridError(f"{name} {shape} has a side below 1; every side (z, y, x) must be at least 1")


@dataclass(frozen=True, slots=True)
class TileGrid:
    """Tiles of one size that start at the volume's origin and cover it.

    Args:
        volume: sides of the volume, (z, y, x) voxels.
        tile: sides of a tile. The last tile of an axis may overhang the volume.
        halo: context read on both sides of a tile.

    Raises:
        TileGridError: a side below 1 or a negative halo.

    Source: overlap-tile strategy, Ronneberger et al. 2015, figure 2.
    """

    volume: Triple
    tile: Triple
    halo: Triple = (0, 0, 0)

    def __post_init__(self) -> None:
        _positive(volume=self.volume, tile=self.tile)
        if min(self.halo) < 0:
            raise TileGridError(f"halo {self.halo} is negative; use 0 or more")

    @property
    def counts(self) -> Triple:
        """Tiles along (z, y, x)."""
        return _ceil_div(self.volume, self.tile)

    @property
    def num_tiles(self) -> int:
        """Tiles in the whole grid."""
        return prod(self.counts)

    def position(self, tile: int) -> Triple:
        """(z, y, x) place of a tile in the grid, x fastest.

        Raises:
            IndexError: there is no such tile.
        """
        return _position(tile, self.counts, "tile")

    def number(self, position: Triple) -> int:
        """Tile number of a place in the grid; the inverse of `position`."""
        return _number(position, self.counts)

    def box(self, tile: int) -> Box:
        """The whole tile; it may overhang the volume."""
        start = triple([p * s for p, s in zip(self.position(tile), self.tile, strict=True)])
        return Box.of_shape(self.tile, start)

    def read_box(self, tile: int) -> Box:
        """The tile grown by the halo: what one forward pass reads, mirrored outside the volume."""
        return self.box(tile).grow(self.halo)

    def write_box(self, tile: int) -> Box:
        """Voxels that tile number ``tile`` alone may write.

        The write boxes of a grid cover the volume, each voxel once.

        Args:
            tile: 0 <= tile < num_tiles, counted in (z, y, x) order, x fastest.

        Returns:
            Box in (z, y, x) voxels, stop excluded, inside the volume.

        Raises:
            IndexError: there is no such tile.

        >>> grid = TileGrid(volume=(30, 512, 512), tile=(1, 384, 384), halo=(0, 94, 94))
        >>> grid.num_tiles, grid.read_box(1).shape
        (120, (1, 572, 572))
        >>> grid.write_box(1)
        Box(start=(0, 0, 384), stop=(1, 384, 512))

        Source: overlap-tile strategy, Ronneberger et al. 2015, figure 2. The halo
        is 94, not the least possible 92: 384 then stays on the pooling grid.
        """
        return self.box(tile).intersect(Box.of_shape(self.volume))


@dataclass(frozen=True, slots=True)
class BlockGrid:
    """Blocks of whole tiles; block b writes shard b and nobody else does.

    Args:
        tiles: the tile grid that is grouped.
        tiles_per_block: tiles along (z, y, x) of a block. Blocks at the far
            border may hold fewer.

    >>> tiles = TileGrid(volume=(30, 512, 512), tile=(1, 384, 384), halo=(0, 94, 94))
    >>> blocks = BlockGrid(tiles, tiles_per_block=(8, 1, 2))
    >>> blocks.num_blocks, blocks.shard, list(blocks.tiles_of(0))[:3]
    (8, (8, 384, 768), [0, 1, 4])
    """

    tiles: TileGrid
    tiles_per_block: Triple

    def __post_init__(self) -> None:
        _positive(tiles_per_block=self.tiles_per_block)

    @property
    def shard(self) -> Triple:
        """Sides of a shard, (z, y, x) voxels: whole tiles."""
        return triple([t * n for t, n in zip(self.tiles.tile, self.tiles_per_block, strict=True)])

    @property
    def counts(self) -> Triple:
        """Blocks along (z, y, x)."""
        return _ceil_div(self.tiles.volume, self.shard)

    @property
    def num_blocks(self) -> int:
        """Blocks in the whole grid."""
        return prod(self.counts)

    def position(self, block: int) -> Triple:
        """(z, y, x) place of a block, x fastest; also its shard's place."""
        return _position(block, self.counts, "block")

    def number(self, position: Triple) -> int:
        """Block number of a place; the inverse of `position`."""
        return _number(position, self.counts)

    def shard_box(self, block: int) -> Box:
        """The whole shard; it may overhang the volume."""
        start = triple([p * s for p, s in zip(self.position(block), self.shard, strict=True)])
        return Box.of_shape(self.shard, start)

    def write_box(self, block: int) -> Box:
        """Voxels of the volume that this block alone writes."""
        return self.shard_box(block).intersect(Box.of_shape(self.tiles.volume))

    def voxels_of(self, blocks: Iterable[int]) -> int:
        """Voxels that these blocks write: the sum over their write boxes, of a million in less than a second.

        >>> BlockGrid(TileGrid((4, 8, 9), (1, 4, 4)), (2, 1, 1)).voxels_of([0, 2])
        40
        """
        _, rows, columns = self.counts
        deep, high, wide = (
            [min(side, of - place * side) for place in range(count)]
            for side, of, count in zip(self.shard, self.tiles.volume, self.counts, strict=True)
        )
        voxels = 0
        for block in blocks:
            row, column = divmod(block, columns)
            voxels += deep[row // rows] * high[row % rows] * wide[column]
        return voxels

    def tiles_of(self, block: int) -> Iterator[int]:
        """Numbers of the block's tiles, ascending in (z, y, x) order."""
        first = [p * n for p, n in zip(self.position(block), self.tiles_per_block, strict=True)]
        stop = [min(f + n, c) for f, n, c in zip(first, self.tiles_per_block, self.tiles.counts, strict=True)]
        for place in product(*(range(a, b) for a, b in zip(first, stop, strict=True))):
            yield self.tiles.number(triple(place))

    def blocks_touching(self, box: Box) -> Iterator[int]:
        """Numbers of the blocks that share a voxel with ``box``, ascending.

        >>> blocks = BlockGrid(TileGrid((4, 8, 8), (1, 4, 4)), (2, 1, 1))
        >>> list(blocks.blocks_touching(Box((0, 3, 0), (1, 5, 2))))
        [0, 2]
        """
        for start, stop in self.runs_touching(box):
            yield from range(start, stop)

    def runs_touching(self, box: Box) -> Iterator[tuple[int, int]]:
        """The numbers of `blocks_touching` as runs (start, stop), stop excluded: one for each row of blocks."""
        inside = box.intersect(Box.of_shape(self.tiles.volume))
        if inside.voxels == 0:
            return
        first = [a // s for a, s in zip(inside.start, self.shard, strict=True)]
        stop = [-(-b // s) for b, s in zip(inside.stop, self.shard, strict=True)]
        for z, y in product(range(first[0], stop[0]), range(first[1], stop[1])):
            start = self.number((z, y, first[2]))
            yield start, start + stop[2] - first[2]
