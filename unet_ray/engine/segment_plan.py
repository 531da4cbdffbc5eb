"""How a volume is cut for a network: tile side, halo, blocks, chunks."""

import itertools

from unet_ray.config.base import VoxelSize
from unet_ray.config.network import NetworkConfig, layers
from unet_ray.errors import TileGridError
from unet_ray.geometry.box import Box, Triple, triple
from unet_ray.geometry.receptive_field import halo_px, pooling_factor
from unet_ray.geometry.tiles import BlockGrid, TileGrid
from unet_ray.storage.probability import Dtype
from unet_ray.storage.segmentation_layout import SegmentationLayout

# Larger windows waste less halo but need more memory: 1024 px and 64 channels are about 2 GB in float32.
LARGEST_TILE_PX = 1024
# On CPUs, where memory holds such tiles of all workers: a section of 1416 px in one piece has 0.78 of the pixels to
# compute that four tiles of 720 px have, and each takes as long.
LARGEST_CPU_TILE_PX = 2048
LARGEST_CHUNK_PX = 256
# Of probability: with several classes a block holds so many fewer voxels, as far as one tile lets it.
BLOCK_VOXELS = 16 * 1024**2
SECTIONS_PER_BLOCK = 8
# Enough blocks to keep a small cluster busy and to lose little to a kill.
FEWEST_BLOCKS = 64
# How `layout_for` cuts; an output keeps the way that it was begun with.
CUT = 2
PROBE_PX = 128


def resolve_tile_px(asked: int | str, volume: Triple, network: NetworkConfig) -> int:
    """Tile side: the one asked for, or the one with the fewest pixels to compute.

    Raises:
        TileGridError: the side is not a multiple of the pooling factor, or has no divisor for chunks.
    """
    listed = layers(network)
    factor, halo = pooling_factor(listed), halo_px(listed)
    if not isinstance(asked, int):
        return min(tile_sides(volume, factor), key=lambda side: (computed_px(volume, side, halo), side))
    if asked % factor:
        why = (
            f"is not a multiple of the pooling factor {factor}, so tiles would not match a prediction made in one piece"
        )
    elif not _has_chunks(asked):
        why = (
            f"has no divisor between {chunk_px(asked)} and {LARGEST_CHUNK_PX}, so that the output would be cut into "
            f"chunks of {chunk_px(asked)} px, too many to store and to look at"
        )
    else:
        return asked
    below = next((side for side in range(asked // factor * factor, 0, -factor) if _has_chunks(side)), None)
    above = next(side for side in itertools.count(-(-asked // factor) * factor, factor) if _has_chunks(side))
    nearest = f"{below} and {above}" if below else str(above)
    raise TileGridError(f"tile side {asked} {why}; with halo {halo} the nearest sides are {nearest}")


def tile_sides(volume: Triple, factor: int, largest: int = LARGEST_TILE_PX) -> list[int]:
    """Sides of a tile that a volume can be cut into, ascending: multiples of the pooling factor that have chunks.

    The last is the first that takes a whole section, or the last that is no larger than ``largest``.
    """
    whole = next(side for side in itertools.count(-(-max(volume[1:]) // factor) * factor, factor) if _has_chunks(side))
    return [side for side in range(factor, min(largest, whole) + 1, factor) if _has_chunks(side)]


def chunk_px(tile_px: int) -> int:
    """Side of a chunk: the largest that divides a tile's.

    >>> chunk_px(200), chunk_px(768), chunk_px(514)
    (200, 256, 2)
    """
    return max(side for side in range(1, min(tile_px, LARGEST_CHUNK_PX) + 1) if tile_px % side == 0)


def _has_chunks(tile_px: int) -> bool:
    """Whether a tile is cut into chunks of at least a quarter of the largest side, or is one."""
    return 4 * chunk_px(tile_px) >= min(tile_px, LARGEST_CHUNK_PX)


def computed_px(volume: Triple, side: int, halo: int) -> int:
    """Pixels that the network takes in for one section, halos and overhang included."""
    _, height, width = volume
    return -(-height // side) * -(-width // side) * (side + 2 * halo) ** 2


def layout_for(
    volume: Triple,
    tile_px: int,
    network: NetworkConfig,
    voxel_size_nm: VoxelSize | None,
    factors: tuple[Triple, ...] | None = None,
    dtype: Dtype = "uint8",
    cut: int = CUT,
) -> SegmentationLayout:
    """Blocks, chunks and pyramid of a volume's segmentation, a function of the arguments alone.

    Args:
        volume: its sides, (z, y, x) voxels.
        tile_px: side of a tile.
        network: that predicts them.
        voxel_size_nm: (z, y, x); None: unknown.
        factors: of the pyramid, where an output has one already; None: `pyramid_factors`.
        dtype: of the stored probabilities.
        cut: 1: as deep for large tiles as for others, shards of coarse levels padded; 2: neither.
    """
    classes = network.classes if network.classes > 2 else 1
    halo = halo_px(layers(network))
    context = (network.in_channels - 1) // 2
    tiles = TileGrid(volume, (1, tile_px, tile_px), (context, halo, halo))
    depth = min(SECTIONS_PER_BLOCK, max(1, volume[0] // SECTIONS_PER_BLOCK))
    # A block of larger tiles has fewer sections instead: no more is lost to a kill, nor left for the last worker.
    if cut > 1:
        depth = min(depth, max(1, SECTIONS_PER_BLOCK * LARGEST_TILE_PX**2 // tile_px**2))
    blocks = BlockGrid(tiles, (depth, 1, 1))
    for side in range(2, max(tiles.counts[1:]) + 1):
        larger = BlockGrid(tiles, (depth, side, side))
        if classes * depth * (side * tile_px) ** 2 > BLOCK_VOXELS or larger.num_blocks < FEWEST_BLOCKS:
            break
        blocks = larger
    chunk = chunk_px(tile_px)
    levels = pyramid_factors(volume, voxel_size_nm) if factors is None else factors
    return SegmentationLayout(blocks, (1, chunk, chunk), voxel_size_nm, levels, classes, dtype, padded=cut < 2)


def pyramid_factors(volume: Triple, voxel_size_nm: VoxelSize | None) -> tuple[Triple, ...]:
    """Factors of the levels of lower resolution, until a section fits into one chunk of a viewer.

    y and x are halved at each level, z only where its voxels would be the finer ones otherwise.

    >>> pyramid_factors((30, 1000, 600), (30.0, 8.0, 8.0))
    ((1, 2, 2), (2, 2, 2))
    """
    depth, side = volume[0], max(volume[1:])
    across, along = (1.0, 0.0) if voxel_size_nm is None else (voxel_size_nm[0], voxel_size_nm[1])
    factors: list[Triple] = []
    while side > LARGEST_CHUNK_PX:
        z = 2 if depth > 1 and across < 2 * along else 1
        factors.append((z, 2, 2))
        depth, side, across, along = -(-depth // z), -(-side // 2), across * z, along * 2
    return tuple(factors)


def probe_box(tiles: TileGrid, factor: int, near: Triple | None = None) -> Box:
    """A region about the tile corner that is nearest to the volume's centre, or to a voxel ``near``.

    Its start and stop lie on the pooling grid, so that the network takes it in one piece; it may overhang the
    volume. Where a section is one tile, it lies about the section's centre, or about ``near``.
    """
    place = near or triple([side // 2 for side in tiles.volume])
    start, stop = [place[0]], [place[0] + 1]
    probe_px = max(PROBE_PX, 2 * factor)  # or a deep network's box would end where the next tile begins
    for at, side, tile, count in zip(place[1:], tiles.volume[1:], tiles.tile[1:], tiles.counts[1:], strict=True):
        nearest = round(count / 2) if near is None else min(round(at / tile), count - 1)
        corner = max(1, nearest) * tile if count > 1 else at
        first = max(0, (corner - probe_px // 2) // factor * factor)
        start.append(first)
        stop.append(min(-(-side // factor) * factor, first + probe_px))
    return Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))
