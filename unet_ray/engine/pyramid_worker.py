"""What actors make from stored probabilities: masks, and blocks of lower resolution."""

import numpy as np
import numpy.typing as npt

from unet_ray.numerics.downsample import downsample
from unet_ray.storage.segmentation import Segmentation, SegmentationLayout
from unet_ray.storage.shards import Encoded


class MaskWorker:
    """Makes the mask of a level's blocks whose probability is there: after a new threshold or a repair."""

    def __init__(self, output: Segmentation, layout: SegmentationLayout, threshold: float, level: int) -> None:
        self.output, self.layout, self.threshold, self.level = output, layout, threshold, level

    def is_done(self, block: int) -> bool:
        """Never: a mask costs less to write than to ask for."""
        return False

    def read(self, block: int) -> npt.NDArray[np.uint8]:
        """Stored probability."""
        return self.output.read_block(self.layout, block, self.level)

    def compute(self, block: int, data: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """The same; the mask is taken from it when it is encoded."""
        return data

    def encode(self, block: int, result: npt.NDArray[np.uint8]) -> Encoded:
        """The shard of the mask."""
        return self.output.encode_mask(self.layout, block, result, self.threshold, self.level)

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
        return self.output.is_done(self.layout.grid(self.level), block, str(self.level))

    def read(self, block: int) -> npt.NDArray[np.uint8]:
        """Stored probability of the level below."""
        return self.output.read_source(self.layout, self.level, block)

    def compute(self, block: int, data: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """The mean of each box of voxels."""
        return downsample(data, self.layout.factors[self.level - 1])

    def encode(self, block: int, result: npt.NDArray[np.uint8]) -> Encoded:
        """Shards of mask and probability."""
        return self.output.encode(self.layout, block, result, self.threshold, self.level)

    def write(self, block: int, encoded: Encoded) -> int:
        """Put them; returns the block's voxels."""
        self.output.put(encoded)
        return self.layout.grid(self.level).write_box(block).voxels
