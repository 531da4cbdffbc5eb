"""The link that opens layers in neuroglancer."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import quote

Colour = tuple[int, int, int]

# Of a panel of the four, in a window of usual size.
_PANEL_PX = 500


@dataclass(frozen=True, slots=True)
class LinkedLayer:
    """A layer of the link.

    Attributes:
        name: shown on its tab.
        kind: image, or segmentation: whole numbers, each a segment with a colour.
        url: of an OME-Zarr group.
        zarr_format: 2 or 3.
        value_range: of an image, what is black and what is brightest.
        colour: of an image that lies over another, see-through where it is dark; None: grey.
        segments: numbers and colours that a segmentation shows.
        channel: which of several; None where there is no channel axis.
        visible: whether the viewer begins with it.
        voxel_size_nm: (z, y, x) where the group itself does not tell what is asked for; its axes are then z y x, with
            ``channel`` c z y x.
    """

    name: str
    kind: Literal["image", "segmentation"]
    url: str
    zarr_format: int = 3
    value_range: tuple[float, float] = (0, 255)
    colour: Colour | None = None
    segments: dict[int, Colour] = field(default_factory=dict)
    channel: int | None = None
    visible: bool = True
    voxel_size_nm: tuple[float, float, float] | None = None


def link(
    address: str,
    layers: Sequence[LinkedLayer],
    shape: tuple[int, int, int],
    voxel_size_nm: tuple[float, float, float] | None,
) -> str:
    """URL of neuroglancer at ``address``, its state behind ``#!``.

    Args:
        address: of the viewer.
        layers: from the lowest to the highest.
        shape: (z, y, x) of the volume; its middle is shown.
        voxel_size_nm: (z, y, x); None: unknown, lengths are then in voxels.

    Source: neuroglancer's viewer state as JSON; a data source ``zarr3://URL`` is understood by old and new versions.
    """
    return f"{address.rstrip('/')}/#!{quote(json.dumps(_state(layers, shape, voxel_size_nm), separators=(',', ':')))}"


def _state(
    layers: Sequence[LinkedLayer], shape: tuple[int, int, int], voxel_size_nm: tuple[float, float, float] | None
) -> dict[str, Any]:
    zoom = max(1.0, max(shape[1:]) / _PANEL_PX)
    return {
        "dimensions": _dimensions(voxel_size_nm),
        "displayDimensions": ["x", "y", "z"],  # the first panel shows sections
        "position": [side / 2 for side in shape],
        "crossSectionScale": zoom,
        "projectionScale": float(max(shape)),
        "layers": [_layer(layer) for layer in layers],
        "layout": "4panel",
    }


def _dimensions(voxel_size_nm: tuple[float, float, float] | None) -> dict[str, list[Any]]:
    """Names, sizes and units; the order is that of positions."""
    if voxel_size_nm is None:
        return {axis: [1, ""] for axis in "zyx"}
    # Twelve digits: 4 nm is 4e-09 m, not 4.000000000000001e-09.
    return {axis: [float(f"{size * 1e-9:.12g}"), "m"] for axis, size in zip("zyx", voxel_size_nm, strict=True)}


def _layer(layer: LinkedLayer) -> dict[str, Any]:
    # neuroglancer puts an apostrophe behind the name of a channel axis.
    channel: dict[str, list[Any]] = {} if layer.channel is None else {"c'": [1, ""]}
    source: dict[str, Any] = {"url": f"zarr{layer.zarr_format}://{layer.url}"}
    if layer.voxel_size_nm is not None:
        # The input's size is that of the stored voxels; with the output's alone they would keep the size they have.
        dimensions = channel | _dimensions(layer.voxel_size_nm)
        source["transform"] = {"outputDimensions": dimensions, "inputDimensions": dimensions}
    state: dict[str, Any] = {"type": layer.kind, "name": layer.name, "source": source}
    if layer.channel is not None:
        state |= {"localDimensions": channel, "localPosition": [layer.channel]}
    if not layer.visible:
        state["visible"] = False
    if layer.kind == "segmentation":
        colours = {str(number): _hex(colour) for number, colour in layer.segments.items()}
        return state | {"segments": list(colours), "segmentColors": colours, "selectedAlpha": 0.4}
    low, high = layer.value_range
    controls = f"#uicontrol invlerp normalized(range=[{low:g}, {high:g}])\n"
    if layer.colour is None:
        return state | {"opacity": 1, "shader": f"{controls}void main() {{ emitGrayscale(normalized()); }}\n"}
    controls += f'#uicontrol vec3 colour color(default="{_hex(layer.colour)}")\n'
    return state | {"opacity": 0.5, "shader": f"{controls}void main() {{ emitRGBA(vec4(colour, normalized())); }}\n"}


def _hex(colour: Colour) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)
