"""OME-Zarr 0.5 metadata of the images that we write."""

from collections.abc import Sequence
from colorsys import hsv_to_rgb
from typing import Any

AXES = ("z", "y", "x")
CHANNEL = "c"
VERSION = "0.5"

Colour = tuple[int, int, int]
# Grey for class 0, which is mostly what surrounds the others, then the colours of Okabe and Ito, which colour-blind
# people tell apart, too; orange is also the membrane's.
_COLOURS: tuple[Colour, ...] = (
    (153, 153, 153), (230, 159, 0), (86, 180, 233), (0, 158, 115),
    (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167),
)  # fmt: skip
_GOLDEN_TURN = 0.618034


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


def class_colour(index: int) -> Colour:
    """Red, green and blue of a class, 0..255 each; no two classes share them.

    >>> class_colour(1), class_colour(8)
    ((230, 159, 0), (178, 0, 59))
    """
    if index < len(_COLOURS):
        return _COLOURS[index]
    # Golden angles never come back to a hue that was there.
    red, green, blue = hsv_to_rgb((index * _GOLDEN_TURN) % 1.0, 1.0, 0.7)
    return int(255 * red), int(255 * green), int(255 * blue)


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
