"""What actors make from stored probabilities: label images, and blocks of lower resolution."""

from typing import Any

import numpy as np
import numpy.typing as npt

from unet_ray.numerics.downsample import downsample
from unet_ray.storage.segmentation import Segmentation
from unet_ray.storage.segmentation_layout import SegmentationLayout
from unet_ray.storage.shards import Encoded


class MaskWorker:
    """Makes the label image of a level's blocks whose probability is there: after a new threshold or a repair."""

    def __init__(self, output: Segmentation, layout: SegmentationLayout, threshold: float, level: int) -> None:
        self.output, self.layout, self.threshold, self.level = output, layout, threshold, level

    def is_done(self, block: int) -> bool:
        """Never: a mask costs less to write than to ask for."""
        return False

    def read(self, block: int) -> npt.NDArray[Any]:
        """Stored probability."""
        return self.output.read_block(self.layout, block, self.level)

    def compute(self, block: int, data: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The same; the labels are taken from it when it is encoded."""
        return data

    def encode(self, block: int, result: npt.NDArray[Any]) -> Encoded:
        """The shard of the label image."""
        return self.output.encode_label(self.layout, block, result, self.threshold, self.level)

    def write(self, block: int, encoded: Encoded) -> int:
        """Put it; returns the block's voxels."""
        self.output.put(encoded)
        return self.layout.grid(self.level).write_box(block).voxels


class PyramidWorker:
    """Makes blocks of a level above 0 from those of the level below."""

    def __init__(self, output: Segmentation, layout: SegmentationLayout, threshold: float, level: int) -> None:
        self.output, self.layout, self.threshold, self.level = output, layout, threshold, level

    def is_done(self, block: int) -> bool:
        """Whether the block's record is there."""
        return self.output.is_done(self.layout, block, self.level)

    def read(self, block: int) -> npt.NDArray[Any]:
        """Stored probability of the level below."""
        return self.output.read_source(self.layout, self.level, block)

    def compute(self, block: int, data: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The mean of each box of voxels, class by class."""
        factors = self.layout.factors[self.level - 1]
        if self.layout.classes == 1:
            return downsample(data, factors)
        return np.stack([downsample(of_class, factors) for of_class in data])

    def encode(self, block: int, result: npt.NDArray[Any]) -> Encoded:
        """Shards of label image and probability."""
        return self.output.encode(self.layout, block, result, self.threshold, self.level)

    def write(self, block: int, encoded: Encoded) -> int:
        """Put them; returns the block's voxels."""
        self.output.put(encoded)
        return self.layout.grid(self.level).write_box(block).voxels
