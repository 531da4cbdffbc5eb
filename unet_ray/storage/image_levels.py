"""An image in all its resolutions: an OME-Zarr pyramid, or a volume that has one only."""

from dataclasses import dataclass

from unet_ray.storage.objects import absolute
from unet_ray.storage.ome_metadata import level_scales
from unet_ray.storage.volume import Volume, open_volume
from unet_ray.storage.volume_zarr import ZarrVolume, group_attributes, open_zarr


@dataclass(frozen=True)
class ImageLevels:
    """Levels of resolution, the highest first.

    Attributes:
        volumes: one per level.
        scales: sides (z, y, x) of each level's voxel in voxels of the first.
        group: path or URL of the OME-Zarr group; None where the image is none.
        axes: of the group's arrays; empty where there is no group.
    """

    volumes: tuple[Volume, ...]
    scales: tuple[tuple[float, float, float], ...] = ((1.0, 1.0, 1.0),)
    group: str | None = None
    axes: tuple[str, ...] = ()


def open_levels(path: str, channel: int | None = None) -> ImageLevels:
    """All levels of the image at ``path``, without reading voxels.

    Args:
        path: as `open_volume` takes it.
        channel: which of several channels of an OME-Zarr image.

    Raises:
        VolumeError: nothing is there, or a level cannot be opened.
    """
    first = open_volume(path) if channel is None else open_zarr(path, absolute(path), None, channel)
    if not isinstance(first, ZarrVolume):
        return ImageLevels((first,))
    where = absolute(path)
    # bioformats2raw puts its first image into the group 0.
    for group in (where, f"{where}/0"):
        found = level_scales(path, group_attributes(group))
        if found is None:
            continue
        axes, scales = found
        others = (open_zarr(f"{path}/{key}", group, key, channel) for key in list(scales)[1:])
        return ImageLevels((first, *others), tuple(scales.values()), group, axes)
    return ImageLevels((first,))
