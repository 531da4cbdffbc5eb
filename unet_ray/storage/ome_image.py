"""OME-Zarr 0.5 metadata of the images that we write."""

from typing import Any

AXES = ("z", "y", "x")
VERSION = "0.5"


def ome_image(name: str, levels: list[str], voxel_size_nm: tuple[float, float, float] | None) -> dict[str, Any]:
    """The ``ome`` attribute of an image group with axes z y x.

    Args:
        name: of the image.
        levels: path of each level of resolution, the highest first; each halves y and x.
        voxel_size_nm: (z, y, x) of the first level; None: unknown, then the unit is left out.

    Source: OME-NGFF 0.5, multiscales.
    """
    z, y, x = voxel_size_nm or (1.0, 1.0, 1.0)
    unit = {} if voxel_size_nm is None else {"unit": "nanometer"}
    datasets = [
        {"path": path, "coordinateTransformations": [{"type": "scale", "scale": [z, y * 2**level, x * 2**level]}]}
        for level, path in enumerate(levels)
    ]
    axes = [{"name": axis, "type": "space", **unit} for axis in AXES]
    return {"version": VERSION, "multiscales": [{"name": name, "axes": axes, "datasets": datasets}]}
