"""Tile and block grids against plain loops, and a volume in which every voxel knows its place."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unet_ray.errors import TileGridError
from unet_ray.geometry.box import Box, mirror_index
from unet_ray.geometry.tiles import BlockGrid, TileGrid


def sides(least, most):
    return st.tuples(*[st.integers(least, most)] * 3)


grids = st.builds(TileGrid, volume=sides(1, 9), tile=sides(1, 5), halo=sides(0, 4))
block_grids = st.builds(BlockGrid, tiles=grids, tiles_per_block=sides(1, 3))


def touched(grid, boxes):
    """How often each voxel of the volume lies in one of ``boxes``."""
    count = np.zeros(grid.volume, int)
    for box in boxes:
        assert Box.of_shape(grid.volume).contains(box)
        count[box.slices] += 1
    return count


@settings(deadline=None)
@given(grids)
def test_write_boxes_cover_each_voxel_once(grid):
    assert (touched(grid, map(grid.write_box, range(grid.num_tiles))) == 1).all()


@settings(deadline=None)
@given(grids)
def test_read_box_is_the_tile_and_its_halo(grid):
    for tile in range(grid.num_tiles):
        read, whole = grid.read_box(tile), grid.box(tile)
        assert whole.shape == grid.tile
        assert read == Box(
            tuple(a - h for a, h in zip(whole.start, grid.halo, strict=True)),
            tuple(b + h for b, h in zip(whole.stop, grid.halo, strict=True)),
        )
        assert all(a % t == 0 for a, t in zip(whole.start, grid.tile, strict=True))
        assert grid.write_box(tile).start == whole.start
        assert grid.write_box(tile).voxels > 0


@settings(deadline=None)
@given(grids)
def test_numbers_count_positions_x_fastest(grid):
    positions = [grid.position(tile) for tile in range(grid.num_tiles)]
    assert positions == list(np.ndindex(*grid.counts))
    assert [grid.number(place) for place in positions] == list(range(grid.num_tiles))


@settings(deadline=None)
@given(block_grids)
def test_blocks_share_out_the_tiles_in_order(blocks):
    members = [list(blocks.tiles_of(block)) for block in range(blocks.num_blocks)]
    assert sorted(tile for tiles in members for tile in tiles) == list(range(blocks.tiles.num_tiles))
    assert all(m == sorted(m) and m for m in members)


@settings(deadline=None)
@given(block_grids)
def test_a_block_owns_its_shard(blocks):
    """No voxel of the volume lies in two shards, and a block's tiles write inside its own."""
    numbers = range(blocks.num_blocks)
    assert (touched(blocks.tiles, map(blocks.write_box, numbers)) == 1).all()
    assert len({blocks.position(block) for block in numbers}) == blocks.num_blocks
    for block in numbers:
        assert blocks.number(blocks.position(block)) == block
        expected = tuple(p * s for p, s in zip(blocks.position(block), blocks.shard, strict=True))
        assert blocks.shard_box(block).start == expected
        for tile in blocks.tiles_of(block):
            assert blocks.shard_box(block).contains(blocks.tiles.box(tile))
            assert blocks.write_box(block).contains(blocks.tiles.write_box(tile))


@settings(deadline=None)
@given(block_grids, st.data())
def test_voxels_are_those_of_the_write_boxes(blocks, data):
    some = data.draw(st.lists(st.integers(0, blocks.num_blocks - 1), max_size=20))
    assert blocks.voxels_of(some) == sum(blocks.write_box(block).voxels for block in some)


@settings(deadline=None)
@given(block_grids, st.tuples(*[st.integers(-4, 11)] * 3), sides(0, 9))
def test_blocks_touching_is_the_brute_force_search(blocks, start, shape):
    box = Box.of_shape(shape, start)
    searched = [b for b in range(blocks.num_blocks) if blocks.write_box(b).intersect(box).voxels]
    assert list(blocks.blocks_touching(box)) == searched


@settings(deadline=None)
@given(block_grids)
def test_a_volume_that_knows_its_place_comes_back(blocks):
    """Read each tile's read box, keep its write box, put it into its block's shard, cut the shards together."""
    grid = blocks.tiles
    volume = np.arange(np.prod(grid.volume)).reshape(grid.volume) + 1
    result = np.zeros_like(volume)
    for block in range(blocks.num_blocks):
        shard_box = blocks.shard_box(block)
        shard = np.zeros(blocks.shard, int)
        for tile in blocks.tiles_of(block):
            read, write = grid.read_box(tile), grid.write_box(tile)
            axes = [
                [mirror_index(i, side) for i in range(a, b)]
                for a, b, side in zip(read.start, read.stop, grid.volume, strict=True)
            ]
            window = volume[np.ix_(*axes)]
            assert window.shape == read.shape
            shard[write.relative_to(shard_box.start).slices] = window[write.relative_to(read.start).slices]
        mine = blocks.write_box(block)
        result[mine.slices] = shard[mine.relative_to(shard_box.start).slices]
    np.testing.assert_array_equal(result, volume)


def test_isbi_stack_through_the_papers_network():
    """512 x 512 x 30 in 384-pixel tiles: 120 windows of 572 pixels (Ronneberger et al. 2015, figure 1)."""
    grid = TileGrid(volume=(30, 512, 512), tile=(1, 384, 384), halo=(0, 94, 94))
    assert {grid.read_box(tile).shape for tile in range(grid.num_tiles)} == {(1, 572, 572)}
    assert grid.num_tiles == 120


@pytest.mark.parametrize("number", [-1, 4])
def test_a_tile_or_block_that_does_not_exist(number):
    grid = TileGrid((1, 8, 8), (1, 4, 4))
    with pytest.raises(IndexError, match=f"there is no tile {number}; there are 4"):
        grid.write_box(number)
    with pytest.raises(IndexError, match=f"there is no block {number}; there are 4"):
        BlockGrid(grid, (1, 1, 1)).shard_box(number)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: TileGrid((0, 8, 8), (1, 4, 4)), r"volume \(0, 8, 8\) has a side below 1"),
        (lambda: TileGrid((1, 8, 8), (1, 0, 4)), r"tile \(1, 0, 4\) has a side below 1"),
        (lambda: TileGrid((1, 8, 8), (1, 4, 4), (0, -1, 0)), r"halo \(0, -1, 0\) is negative"),
        (lambda: BlockGrid(TileGrid((1, 8, 8), (1, 4, 4)), (1, 1, 0)), r"tiles_per_block .* below 1"),
    ],
)
def test_sides_that_make_no_grid(make, said):
    with pytest.raises(TileGridError, match=said):
        make()
