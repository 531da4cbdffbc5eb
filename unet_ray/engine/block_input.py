"""What a block's tiles read, and which of its voxels are segmented."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_ray.geometry.box import Box


@dataclass(frozen=True)
class BlockInput:
    """Input of one block.

    Attributes:
        grey: grey values of all that the block's tiles read; empty where nothing is segmented.
        inside: voxels of the block that are segmented, clipped to the volume; None: all.
    """

    grey: npt.NDArray[np.uint8]
    inside: npt.NDArray[np.bool_] | None = None

    def has_any(self, box: Box) -> bool:
        """Whether a voxel of ``box`` is segmented; the box is seen from the block's first voxel."""
        return self.inside is None or bool(self.inside[box.slices].any())

    def clear_outside(self, probability: npt.NDArray[Any]) -> None:
        """Set the block's probability to 0, in place, where it is not segmented."""
        if self.inside is not None:
            probability[..., ~self.inside] = 0
