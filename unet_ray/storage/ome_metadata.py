"""Which array of an OME-Zarr group is meant, its axes and its voxel size (OME-NGFF 0.1 to 0.5)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unet_ray.errors import VolumeError
from unet_ray.storage import voxel_size

# Versions 0.1 and 0.2 have these five axes and do not name them.
_UNNAMED_AXES = ("t", "c", "z", "y", "x")


@dataclass(frozen=True)
class Level:
    """One resolution of a multiscale image: the array's key, its axes in order, its voxel size."""

    array: str
    axes: tuple[str, ...]
    voxel_size_nm: tuple[float, float, float] | None
    pixel_size_nm: tuple[float, float] | None


def find_level(path: str, attributes: Mapping[str, Any], array: str | None = None) -> Level | None:
    """The highest resolution, or ``array``, of a group with these attributes.

    Returns:
        None where the attributes describe no multiscale image, or none with that array.

    Raises:
        VolumeError: the description is there and cannot be followed, or its space axes
            are not z y x.

    >>> find_level("a.zarr", {"multiscales": [{
    ...     "axes": [{"name": n, "type": "space", "unit": "micrometer"} for n in "zyx"],
    ...     "datasets": [{"path": "s0", "coordinateTransformations": [
    ...         {"type": "scale", "scale": [0.05, 0.004, 0.004]}]}]}]})
    Level(array='s0', axes=('z', 'y', 'x'), voxel_size_nm=(50.0, 4.0, 4.0), pixel_size_nm=(4.0, 4.0))

    Source: https://ngff.openmicroscopy.org/0.5/ (multiscales metadata).
    """
    ome = attributes.get("ome")
    holder = ome if isinstance(ome, Mapping) and "multiscales" in ome else attributes
    if not holder.get("multiscales"):
        return None
    try:
        multiscale = holder["multiscales"][0]
        datasets = multiscale["datasets"]
        chosen = datasets[0] if array is None else next((d for d in datasets if d["path"] == array), None)
        if chosen is None:
            return None
        names, units = _axes(multiscale.get("axes"))
        scale = _scale(chosen, len(names))
        common = _scale(multiscale, len(names))
        if scale and common:
            scale = [a * b for a, b in zip(scale, common, strict=True)]
        key = str(chosen["path"])
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise VolumeError(
            f"the multiscales metadata of {path} cannot be followed ({type(error).__name__}: {error}); "
            "mend it, or name an array"
        ) from error
    spatial = [name for name in names if name in ("z", "y", "x")]
    if names[-len(spatial) :] != tuple(spatial) or spatial not in (["z", "y", "x"], ["y", "x"]):
        raise VolumeError(f"{path} has axes {' '.join(names)}; only z y x in this order, after t and c, can be read")
    voxel, pixel = voxel_size.from_scale(
        scale[-len(spatial) :] if scale else [0.0] * len(spatial), units[-len(spatial) :]
    )
    return Level(key, names, voxel, pixel)


def level_scales(
    path: str, attributes: Mapping[str, Any]
) -> tuple[tuple[str, ...], dict[str, tuple[float, float, float]]] | None:
    """Axes of a multiscale image, and of each level's array the sides of its voxel in voxels of the first level.

    Returns:
        None where the attributes describe no multiscale image. Sides are (z, y, x); all 1 where no scale is told.

    Raises:
        VolumeError: as `find_level`.

    >>> level_scales("a.zarr", {"multiscales": [{
    ...     "axes": [{"name": n, "type": "space"} for n in "zyx"],
    ...     "datasets": [{"path": f"s{k}", "coordinateTransformations": [
    ...         {"type": "scale", "scale": [50, 4 * 2**k, 4 * 2**k]}]} for k in range(2)]}]})
    (('z', 'y', 'x'), {'s0': (1.0, 1.0, 1.0), 's1': (1.0, 2.0, 2.0)})
    """
    first = find_level(path, attributes)
    if first is None:
        return None
    ome = attributes.get("ome")
    holder = ome if isinstance(ome, Mapping) and "multiscales" in ome else attributes
    scales: dict[str, tuple[float, float, float]] = {}
    base: list[float] = []
    try:
        for dataset in holder["multiscales"][0]["datasets"]:
            scale = _scale(dataset, len(first.axes)) or [1.0] * len(first.axes)
            base = base or scale
            # A 2-D image is one section.
            sides = [1.0, *(a / b for a, b in zip(scale, base, strict=True))][-3:]
            scales[str(dataset["path"])] = (sides[0], sides[1], sides[2])
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        raise VolumeError(
            f"the levels of {path} cannot be followed ({type(error).__name__}: {error}); mend its multiscales metadata"
        ) from error
    return first.axes, scales


def _axes(axes: Sequence[Any] | None) -> tuple[tuple[str, ...], list[str | None]]:
    """Names and units; 0.3 has plain names, 0.4 and later objects."""
    if axes is None:
        return _UNNAMED_AXES, [None] * len(_UNNAMED_AXES)
    names = tuple(str(axis if isinstance(axis, str) else axis["name"]).lower() for axis in axes)
    return names, [None if isinstance(axis, str) else axis.get("unit") for axis in axes]


def _scale(holder: Mapping[str, Any], count: int) -> list[float]:
    """Factors of the scale transformation, one per axis; empty where there is none."""
    for transformation in holder.get("coordinateTransformations") or []:
        if transformation.get("type") == "scale" and "scale" in transformation:
            factors = [float(s) for s in transformation["scale"]]
            if len(factors) != count:
                raise ValueError(f"{len(factors)} scale factors for {count} axes")
            return factors
    return []
