"""How a volume is cut: sides that fit the network, shards of whole tiles, and a probe that crosses a seam."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from unet_ray.config.network import layers, network_config
from unet_ray.engine.segment_plan import (
    BLOCK_VOXELS,
    LARGEST_CHUNK_PX,
    LARGEST_TILE_PX,
    SECTIONS_PER_BLOCK,
    layout_for,
    probe_box,
    resolve_tile_px,
    tile_sides,
)
from unet_ray.errors import TileGridError
from unet_ray.geometry.box import Box
from unet_ray.geometry.receptive_field import halo_px, is_legal, pooling_factor
from unet_ray.geometry.tiles import TileGrid

PAPER = network_config("paper")
volumes = st.tuples(st.integers(1, 300), st.integers(1, 5000), st.integers(1, 5000))
networks = st.builds(
    network_config,
    st.sampled_from(["default", "paper", "keras"]),
    depth=st.integers(2, 6),
    in_channels=st.sampled_from([1, 3, 5]),
)


def test_the_papers_tile_side_is_refused_with_the_nearest_two():
    """388 mod 16 = 4: what the architecture's contract says of it."""
    said = (
        r"^tile side 388 is not a multiple of the pooling factor 16, .* with halo 94 the nearest sides are 384 and 400$"
    )
    with pytest.raises(TileGridError, match=said):
        resolve_tile_px(388, (30, 512, 512), PAPER)
    with pytest.raises(TileGridError, match=r"the nearest sides are 16$"):
        resolve_tile_px(5, (30, 512, 512), PAPER)
    assert resolve_tile_px(384, (30, 512, 512), PAPER) == 384


def test_a_side_without_a_divisor_for_chunks_is_refused_and_never_chosen():
    """514 = 2 x 257: chunks of 2 px, half a million in a shard of 8 sections of 4 such tiles."""
    shallow = network_config("default", depth=2)
    assert pooling_factor(layers(shallow)) == 2
    said = r"^tile side 514 has no divisor between 2 and 256, .* chunks of 2 px.* the nearest sides are 512 and 516$"
    with pytest.raises(TileGridError, match=said):
        resolve_tile_px(514, (30, 2000, 2000), shallow)
    with pytest.raises(TileGridError, match=r"515 is not a multiple .* the nearest sides are 512 and 516$"):
        resolve_tile_px(515, (30, 2000, 2000), shallow)
    assert resolve_tile_px(250, (30, 2000, 2000), shallow) == 250
    sides = tile_sides((30, 2000, 2000), 2)
    assert (sides[0], sides[-1], 512 in sides, 514 in sides) == (2, 1024, True, False)
    assert min(layout_for((30, 2000, 2000), side, shallow, None).chunk[1] for side in sides if side > 256) >= 64
    # The paper's networks lose none.
    assert tile_sides((30, 2000, 2000), 16) == list(range(16, 1025, 16))
    assert resolve_tile_px("auto", (1, 514, 514), shallow) != 514


@settings(max_examples=60, deadline=None)
@given(volumes, networks)
@example((1, 1, 1), PAPER)
@example((1, 521, 637), network_config("default", depth=2))
def test_auto_computes_the_fewest_pixels(volume, network):
    factor, halo = pooling_factor(layers(network)), halo_px(layers(network))

    def computed(side):
        return -(-volume[1] // side) * -(-volume[2] // side) * (side + 2 * halo) ** 2

    side = resolve_tile_px("auto", volume, network)
    assert side % factor == 0
    assert side <= LARGEST_TILE_PX
    assert is_legal(layers(network), side + 2 * halo)
    every = tile_sides((1, LARGEST_TILE_PX, LARGEST_TILE_PX), factor)
    assert computed(side) == min(computed(other) for other in every)


@settings(max_examples=60, deadline=None)
@given(volumes, networks, st.integers(1, 16))
@example((30, 512, 512), PAPER, 16)
def test_the_layout_fits_the_network_and_zarr(volume, network, factors):
    tile = pooling_factor(layers(network)) * factors
    layout = layout_for(volume, tile, network, None)
    tiles, shard = layout.blocks.tiles, layout.blocks.shard
    halo = halo_px(layers(network))
    assert (tiles.volume, tiles.tile) == (volume, (1, tile, tile))
    assert tiles.halo == ((network.in_channels - 1) // 2, halo, halo)
    assert all(s % t == 0 for s, t in zip(shard, tiles.tile, strict=True))
    assert all(s % c == 0 and t % c == 0 for s, t, c in zip(shard, tiles.tile, layout.chunk, strict=True))
    assert max(layout.chunk) <= LARGEST_CHUNK_PX
    assert shard[0] <= SECTIONS_PER_BLOCK
    assert shard[0] * shard[1] * shard[2] <= max(BLOCK_VOXELS, shard[0] * tile * tile)
    assert layout.spec().counts == layout.blocks.counts
    assert layout == layout_for(volume, tile, network, None)


def test_large_volumes_get_large_blocks_and_small_ones_many():
    large = layout_for((1000, 20_000, 20_000), 512, network_config("default"), None)
    assert large.blocks.shard == (8, 1024, 1024)
    small = layout_for((30, 512, 512), 256, network_config("default"), (50.0, 4.0, 4.0))
    assert (small.blocks.shard, small.blocks.num_blocks, small.voxel_size_nm) == ((3, 256, 256), 40, (50, 4, 4))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.sampled_from([16, 720, 1024, 1040, 1424, 2048, 4096]))
@example(500, 1424)
def test_blocks_of_larger_tiles_are_less_deep(sections, tile):
    """So that they hold no more than those of usual ones; of an output that was begun otherwise they stay."""
    volume = (sections, 5000, 5000)
    depth, before = (
        layout_for(volume, tile, network_config("default"), None, cut=cut).blocks.shard[0] for cut in (2, 1)
    )
    assert before == min(SECTIONS_PER_BLOCK, max(1, sections // SECTIONS_PER_BLOCK))
    most = max(1, SECTIONS_PER_BLOCK * LARGEST_TILE_PX**2 // tile**2)
    assert depth == min(before, most)
    assert depth == before or tile > LARGEST_TILE_PX


@settings(max_examples=200, deadline=None)
@given(volumes, st.integers(0, 7), st.integers(1, 40))
@example((1, 300, 300), 7, 1)
def test_the_probe_crosses_a_seam_wherever_there_is_one(volume, level, factors):
    factor = 2**level
    tiles = TileGrid(volume, (1, factor * factors, factor * factors))
    box = probe_box(tiles, factor)
    assert 0 <= box.start[0] < box.stop[0] <= volume[0]
    assert (box.shape[0], min(box.intersect(Box.of_shape(volume)).shape) > 0) == (1, True)
    assert max(box.shape[1:]) <= max(128, 2 * factor)
    for start, stop, side, tile in zip(box.start[1:], box.stop[1:], volume[1:], tiles.tile[1:], strict=True):
        # The network takes it in one piece, and no more of it overhangs than that needs.
        assert start % factor == stop % factor == 0
        assert 0 <= start < side
        assert stop < side + factor
        assert side <= tile or any(start < seam < stop for seam in range(tile, side, tile))
