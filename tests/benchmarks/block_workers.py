"""A worker over blocks whose computing is nothing, but which reads and writes through the storage that jobs use."""

import platform
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import zarr

from unet_ray.engine.block_work import BlockWorker
from unet_ray.geometry.box import Triple
from unet_ray.geometry.tiles import BlockGrid, TileGrid
from unet_ray.storage.array_spec import ArraySpec
from unet_ray.storage.open_objects import open_objects
from unet_ray.storage.shard_codec import ShardCodec
from unet_ray.storage.shards import Encoded, put_array, put_encoded, shard_key
from unet_ray.storage.volume import Volume, open_volume

ARRAY = "0"
AXES = ("z", "y", "x")


def grid_of(blocks: int, side: int) -> BlockGrid:
    """At least so many blocks of ``side`` voxels, in a volume about as broad as it is high, and a tenth as deep.

    >>> grid_of(1000, 8).counts, grid_of(1000, 8).num_blocks
    ((4, 16, 16), 1024)
    """
    deep = max(1, round((blocks / 16) ** (1 / 3)))
    broad = int(np.ceil((blocks / deep) ** 0.5))
    counts: Triple = (deep, -(-blocks // (deep * broad)), broad)
    shape = (counts[0] * side, counts[1] * side, counts[2] * side)
    return BlockGrid(TileGrid(shape, (side, side, side)), (1, 1, 1))


def make_volume(path: str, grid: BlockGrid) -> None:
    """A volume of noise for the grid, in chunks of a layer of blocks and 64 pixels, which cost little to decode."""
    shape = grid.tiles.volume
    chunks = (grid.shard[0], min(64, shape[1]), min(64, shape[2]))
    array = zarr.create_array(Path(path), shape=shape, chunks=chunks, dtype="uint8")
    rng = np.random.default_rng(0)
    for z in range(0, shape[0], grid.shard[0]):
        array[z : z + grid.shard[0]] = rng.integers(0, 256, (grid.shard[0], *shape[1:]), dtype=np.uint8)


class InvertWorker(BlockWorker):
    """Reads a block from a volume, inverts it, and puts it as a shard."""

    def __init__(self, volume: str, output: str, grid: BlockGrid) -> None:
        self.volume: Volume = open_volume(volume)
        self.root, self.grid = open_objects(output), grid
        # A shard is one chunk.
        self.codec = ShardCodec(ArraySpec(grid.tiles.volume, grid.shard, grid.shard, "uint8", AXES))

    def create(self) -> None:
        """Put the metadata of the output."""
        put_array(self.root, ARRAY, self.codec.spec)

    def key(self, block: int) -> str:
        """Key of a block's shard, its record."""
        return shard_key(ARRAY, self.grid.position(block))

    def is_done(self, block: int) -> bool:
        return bool(self.root.size(self.key(block)))

    def read(self, block: int) -> npt.NDArray[np.uint8]:
        return self.volume.read(self.grid.write_box(block))

    def compute(self, block: int, data: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        return ~data

    def encode(self, block: int, result: npt.NDArray[np.uint8]) -> Encoded:
        return {self.key(block): self.codec.encode(result)}

    def write(self, block: int, encoded: Encoded) -> int:
        put_encoded(self.root, encoded)
        return self.grid.write_box(block).voxels


class SleepingWorker(InvertWorker):
    """A worker whose computing is a sleep, so that a machine can stand for several hosts that compute."""

    def __init__(self, volume: str, output: str, grid: BlockGrid, seconds: float) -> None:
        super().__init__(volume, output, grid)
        self.seconds = seconds

    def compute(self, block: int, data: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        time.sleep(self.seconds)
        return super().compute(block, data)

    def counts(self, block: int) -> dict[str, int]:
        return {platform.node(): 1}


class IdleWorker(BlockWorker):
    """Does nothing with a block, so that what remains is what Ray and the driver do."""

    def is_done(self, block: int) -> bool:
        return False

    def read(self, block: int) -> None:
        return None

    def compute(self, block: int, data: None) -> None:
        return None

    def encode(self, block: int, result: None) -> None:
        return None

    def write(self, block: int, encoded: None) -> int:
        return 1
