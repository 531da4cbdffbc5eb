"""OME-Zarr 0.5 metadata of the images that we write."""

from collections.abc import Sequence
from typing import Any

from unet_ray.colours import class_colour

AXES = ("z", "y", "x")
CHANNEL = "c"
VERSION = "0.5"


def ome_image(
    name: str,
    levels: Sequence[tuple[int, int, int]],
    voxel_size_nm: tuple[float, float, float] | None,
    classes: int = 1,
    dtype: str = "uint8",
) -> dict[str, Any]:
    """The ``ome`` attribute of an image group with axes z y x, or c z y x for several classes, and arrays 0, 1, ...

    Args:
        name: of the image.
        levels: of each level of resolution, the highest first, its voxel's sides in voxels of the first level.
        voxel_size_nm: (z, y, x) of the first level; None: unknown, then the unit is left out.
        classes: with more than one each has a channel of its own, named and coloured.
        dtype: of the values; says what a channel's brightest is.

    Source: OME-NGFF 0.5, multiscales and omero.
    """
    first = voxel_size_nm or (1.0, 1.0, 1.0)
    unit = {} if voxel_size_nm is None else {"unit": "nanometer"}
    several = classes > 1
    datasets = []
    for level, sides in enumerate(levels):
        sizes = [size * side for size, side in zip(first, sides, strict=True)]
        scale = {"type": "scale", "scale": [1.0, *sizes] if several else sizes}
        # Coordinates are those of voxel centres, and that of a box of voxels lies in its middle.
        middle = [size * (side - 1) / 2 for size, side in zip(first, sides, strict=True)]
        moved = [{"type": "translation", "translation": [0.0, *middle] if several else middle}] if level else []
        datasets.append({"path": str(level), "coordinateTransformations": [scale, *moved]})
    axes: list[dict[str, str]] = [{"name": axis, "type": "space", **unit} for axis in AXES]
    if several:
        axes = [{"name": CHANNEL, "type": "channel"}, *axes]
    image = {"version": VERSION, "multiscales": [{"name": name, "axes": axes, "datasets": datasets}]}
    return image | ({"omero": {"channels": _channels(classes, dtype)}} if several else {})


def label_colours(classes: int) -> list[dict[str, Any]]:
    """``colors`` of an ``image-label``: of the membrane's mask where there is one class, else of every class."""
    values = (1,) if classes == 1 else range(classes)
    return [{"label-value": value, "rgba": [*class_colour(value), 255]} for value in values]


def _channels(classes: int, dtype: str) -> list[dict[str, Any]]:
    full = 255 if dtype == "uint8" else 1
    window = {"min": 0, "max": full, "start": 0, "end": full}
    return [
        {"label": f"class {index}", "color": "{:02X}{:02X}{:02X}".format(*class_colour(index)), "active": True}
        | {"window": window}
        for index in range(classes)
    ]
