"""Voxel sizes in nm, from what TIFF and OME-Zarr metadata say in other units."""

import math
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from typing import Any

_NM = {
    "pm": 1e-3, "picometer": 1e-3, "picometre": 1e-3,
    "a": 0.1, "å": 0.1, "angstrom": 0.1, "ångström": 0.1,
    "nm": 1.0, "nanometer": 1.0, "nanometre": 1.0,
    "um": 1e3, "µm": 1e3, "μm": 1e3, "\\u00b5m": 1e3,
    "micron": 1e3, "micrometer": 1e3, "micrometre": 1e3,
    "mm": 1e6, "millimeter": 1e6, "millimetre": 1e6,
    "cm": 1e7, "centimeter": 1e7, "centimetre": 1e7,
    "inch": 2.54e7, "in": 2.54e7,
    "m": 1e9, "meter": 1e9, "metre": 1e9,
}  # fmt: skip

# Coarser "sizes" in resolution tags are printing resolutions (300 dpi is 84667 nm).
_COARSEST_TAG_NM = 10_000.0

PixelSize = tuple[float, float]
VoxelSize = tuple[float, float, float]
Sizes = tuple[VoxelSize | None, PixelSize | None]


def unit_nm(unit: str) -> float | None:
    """Nanometres in one ``unit`` as ImageJ, OME-XML or OME-NGFF spell it; None if it is no length.

    >>> unit_nm("micrometer"), unit_nm("nm"), unit_nm("pixel")
    (1000.0, 1.0, None)
    """
    name = unit.strip().lower()
    return _NM.get(name, _NM.get(name.removesuffix("s")))


def from_ome_xml(xml: str) -> Sizes:
    """Sizes of the first image of an OME-XML text; its units default to micrometres."""
    try:
        root = ET.fromstring(xml)
    except ET.ParseError:
        return None, None
    pixels = next((e for e in root.iter() if e.tag.rsplit("}", 1)[-1] == "Pixels"), None)
    if pixels is None:
        return None, None
    sizes = []
    for axis in "ZYX":
        scale = unit_nm(pixels.get(f"PhysicalSize{axis}Unit", "um"))
        sizes.append(_length(pixels.get(f"PhysicalSize{axis}"), scale))
    return _complete(sizes)


def from_imagej(metadata: Mapping[str, Any], x_resolution: float, y_resolution: float) -> Sizes:
    """Sizes from ImageJ's description and the resolution tags (pixels per its unit)."""
    scale = unit_nm(str(metadata.get("unit", "")))
    if scale is None or x_resolution <= 0 or y_resolution <= 0:
        return None, None
    return _complete([_length(metadata.get("spacing"), scale), scale / y_resolution, scale / x_resolution])


def from_resolution(x_resolution: float, y_resolution: float, unit: int) -> PixelSize | None:
    """(y, x) from plain resolution tags; ``unit`` 2 is the inch, 3 the centimetre (TIFF 6.0, tag 296).

    >>> from_resolution(2_500_000, 2_500_000, 3)
    (4.0, 4.0)
    >>> from_resolution(300, 300, 2) is None  # for a printer, not a microscope
    True
    """
    scale = {2: _NM["inch"], 3: _NM["cm"]}.get(unit)
    if scale is None or x_resolution <= 0 or y_resolution <= 0:
        return None
    y, x = scale / y_resolution, scale / x_resolution
    return (y, x) if max(y, x) <= _COARSEST_TAG_NM else None


def from_scale(scale: Sequence[float], units: Sequence[str | None]) -> Sizes:
    """Sizes from the last two or three numbers of an OME-NGFF scale and their axes' units."""
    sizes = [_length(s, unit_nm(u) if u else None) for s, u in zip(scale, units, strict=True)][-3:]
    return _complete([None] * (3 - len(sizes)) + sizes)


def _length(value: Any, scale: float | None) -> float | None:
    try:
        size = float(value) * scale if scale is not None else None
    except (TypeError, ValueError):
        return None
    return size if size is not None and math.isfinite(size) and size > 0 else None


def _complete(sizes: Sequence[float | None]) -> Sizes:
    z, y, x = (None if s is None else float(f"{s:.12g}") for s in sizes)
    if y is None or x is None:
        return None, None
    return (None if z is None else (z, y, x)), (y, x)
