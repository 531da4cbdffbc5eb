"""OME-Zarr 0.5 metadata of the images that we write."""

from collections.abc import Sequence
from typing import Any

AXES = ("z", "y", "x")
VERSION = "0.5"


def ome_image(
    name: str, levels: Sequence[tuple[int, int, int]], voxel_size_nm: tuple[float, float, float] | None
) -> dict[str, Any]:
    """The ``ome`` attribute of an image group with axes z y x, whose arrays are called 0, 1, ...

    Args:
        name: of the image.
        levels: of each level of resolution, the highest first, its voxel's sides in voxels of the first level.
        voxel_size_nm: (z, y, x) of the first level; None: unknown, then the unit is left out.

    Source: OME-NGFF 0.5, multiscales.
    """
    first = voxel_size_nm or (1.0, 1.0, 1.0)
    unit = {} if voxel_size_nm is None else {"unit": "nanometer"}
    datasets = []
    for level, sides in enumerate(levels):
        scale = {"type": "scale", "scale": [size * side for size, side in zip(first, sides, strict=True)]}
        # Coordinates are those of voxel centres, and that of a box of voxels lies in its middle.
        middle = [size * (side - 1) / 2 for size, side in zip(first, sides, strict=True)]
        moved = [{"type": "translation", "translation": middle}] if level else []
        datasets.append({"path": str(level), "coordinateTransformations": [scale, *moved]})
    axes = [{"name": axis, "type": "space", **unit} for axis in AXES]
    return {"version": VERSION, "multiscales": [{"name": name, "axes": axes, "datasets": datasets}]}
