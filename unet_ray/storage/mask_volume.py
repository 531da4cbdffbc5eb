"""A mask volume: where a volume is segmented, at the volume's resolution or a lower one."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unet_ray.errors import VolumeError
from unet_ray.geometry.box import Box, Triple, triple
from unet_ray.geometry.pyramid_level import coarser_box, factors_between
from unet_ray.storage.volume import Volume, open_volume


@dataclass(frozen=True)
class MaskVolume:
    """A volume that is above 0 where another one is segmented; pickles as that volume does.

    Attributes:
        volume: the mask as it is stored.
        factor: voxel v of the segmented volume is in the mask's voxel v // factor, by axis (z, y, x).
    """

    volume: Volume
    factor: Triple

    def inside(self, box: Box) -> NDArray[np.bool_]:
        """Which voxels of ``box`` are segmented.

        Args:
            box: (z, y, x) voxels of the segmented volume, all inside it.

        Returns:
            Array of ``box.shape``.

        Raises:
            VolumeError: the mask cannot be read there.
        """
        coarse = coarser_box(box, self.factor)
        found = self.volume.read(coarse) > 0
        for axis, factor in enumerate(self.factor):
            if factor > 1:
                index = np.arange(box.start[axis], box.stop[axis]) // factor - coarse.start[axis]
                found = found.take(index, axis)
        return found

    def identity(self) -> dict[str, object]:
        """As `Volume.identity`."""
        return self.volume.identity()


def open_mask(path: str, volume: Volume) -> MaskVolume:
    """Opens the mask of ``volume``; anything that `open_volume` reads.

    Each side is the volume's, or ceil(side / factor) of a whole factor that can be told from the two shapes alone. A
    mask of one section holds for all sections.

    Raises:
        VolumeError: as `open_volume`; or no factor, or more than one, leads from the volume's shape to the mask's.
    """
    mask = open_volume(path)
    factors = [factors_between(side, coarser) for side, coarser in zip(volume.shape, mask.shape, strict=True)]
    if all(len(found) == 1 for found in factors):
        return MaskVolume(mask, triple([found[0] for found in factors]))
    shapes = f"mask {path} has shape {mask.shape} (z, y, x) and volume {volume.path} has {volume.shape}"
    for axis, found, coarser, side in zip("zyx", factors, mask.shape, volume.shape, strict=True):
        if not found:
            raise VolumeError(
                f"{shapes}: no whole factor makes {coarser} of {side} voxels along {axis}; give a mask of the volume's "
                "shape or of that divided by whole numbers and rounded up"
            )
    axis, found = next((axis, found) for axis, found in zip("zyx", factors, strict=True) if len(found) > 1)
    raise VolumeError(
        f"{shapes}: along {axis} that may be a factor of {found[0]} as well as of {found[-1]}; give a mask with more "
        "voxels along that axis, such as the volume's own number"
    )
