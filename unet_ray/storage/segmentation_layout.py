"""How a segmentation is cut into arrays, levels, blocks and chunks: arithmetic, without a store."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_ray.geometry.box import Box, Triple, triple
from unet_ray.geometry.tiles import BlockGrid, TileGrid
from unet_ray.storage.array_spec import ArraySpec
from unet_ray.storage.ome_image import AXES, CHANNEL
from unet_ray.storage.probability import Dtype, likeliest_class, mask_of
from unet_ray.storage.shards import shard_key

MASK = "labels/membrane"
CLASSES = "labels/classes"


@dataclass(frozen=True, slots=True)
class SegmentationLayout:
    """Sides of a segmentation's arrays.

    Attributes:
        blocks: one shard of each array per block.
        chunk: sides of a chunk, dividing the shard.
        voxel_size_nm: (z, y, x), None where nobody knows it.
        factors: by which each further level of the pyramid divides the one before, (z, y, x).
        classes: probabilities of a voxel: 1 is the membrane's, more are one per class, on an axis before z.
        dtype: of the stored probabilities.
        padded: whether shards of coarse levels are as large as the volume's own, what is outside the level filled
            with 0, as in outputs of the first format.
    """

    blocks: BlockGrid
    chunk: Triple
    voxel_size_nm: tuple[float, float, float] | None
    factors: tuple[Triple, ...] = ()
    classes: int = 1
    dtype: Dtype = "uint8"
    padded: bool = False

    @property
    def label(self) -> str:
        """Group of the label image: the mask, or the likeliest classes."""
        return MASK if self.classes == 1 else CLASSES

    @property
    def channels(self) -> tuple[int, ...]:
        """Sides of a probability array before z y x: none, or the number of classes."""
        return () if self.classes == 1 else (self.classes,)

    @property
    def levels(self) -> range:
        """Numbers of the levels of resolution; 0 is the volume's own."""
        return range(1 + len(self.factors))

    def scale(self, level: int) -> Triple:
        """Sides of a voxel of ``level`` in voxels of the volume."""
        return triple([prod(factor[axis] for factor in self.factors[:level]) for axis in range(3)])

    def grid(self, level: int) -> BlockGrid:
        """Blocks of a level.

        All levels have shards of the same sides, but for an axis on which one chunk or a few are all there is.
        """
        if level == 0:
            return self.blocks
        shape = self.blocks.tiles.volume
        for factor in self.factors[:level]:
            shape = triple([-(-side // f) for side, f in zip(shape, factor, strict=True)])
        shard = self.blocks.shard
        if not self.padded:
            covered = (-(-side // chunk) * chunk for side, chunk in zip(shape, self.chunk, strict=True))
            shard = triple([min(pair) for pair in zip(shard, covered, strict=True)])
        return BlockGrid(TileGrid(shape, shard), (1, 1, 1))

    def source(self, level: int, block: int) -> Box:
        """What a block of a level above 0 is made from: voxels of the level below."""
        below, box = self.grid(level - 1).tiles.volume, self.grid(level).write_box(block)
        factor = self.factors[level - 1]
        start = triple([a * f for a, f in zip(box.start, factor, strict=True)])
        stop = triple([min(b * f, s) for b, f, s in zip(box.stop, factor, below, strict=True)])
        return Box(start, stop)

    def above(self, level: int, blocks: Iterable[int]) -> set[int]:
        """Blocks of a level above 0 that are made from these of the level below."""
        grid, factor = self.grid(level), self.factors[level - 1]
        places = map(self.grid(level - 1).position, blocks)
        return {grid.number(triple([p // f for p, f in zip(place, factor, strict=True)])) for place in places}

    def spec(self, level: int = 0) -> ArraySpec:
        """Sides of a level's probability; a shard holds all classes of a block, a chunk one class."""
        label = self.label_spec(level)
        if self.classes == 1:
            return replace(label, dtype=self.dtype)
        shape, shard = (*self.channels, *label.shape), (*self.channels, *label.shard)
        return ArraySpec(shape, shard, (1, *label.chunk), self.dtype, (CHANNEL, *AXES))

    def label_spec(self, level: int = 0) -> ArraySpec:
        """Sides of a level's label image."""
        grid = self.grid(level)
        return ArraySpec(grid.tiles.volume, grid.shard, self.chunk, "uint8", AXES)

    def place(self, level: int, block: int) -> tuple[int, ...]:
        """Place of a block's record in the grid of shards."""
        return (*(0 for _ in self.channels), *self.grid(level).position(block))

    def record(self, level: int, block: int) -> str:
        """Key of a block's record, the shard of its probability."""
        return shard_key(str(level), self.place(level, block))

    def label_of(self, probability: npt.NDArray[Any], threshold: float) -> npt.NDArray[np.uint8]:
        """Label image of stored probabilities: the mask above ``threshold``, or the likeliest classes."""
        return mask_of(probability, threshold) if self.classes == 1 else likeliest_class(probability)
