"""The layers of the viewer's page: what is shown, in which resolutions, and tiles of it."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from unet_ray.geometry.box import Box
from unet_ray.numerics.downsample import downsample
from unet_ray.report.tile_png import tile_png
from unet_ray.storage.image_levels import ImageLevels
from unet_ray.storage.volume import Volume

TILE_PX = 512
# What one tile reads at once, however coarse it is.
_BAND_BYTES = 32 << 20
_TILES_AT_ONCE = threading.BoundedSemaphore(4)
_SAMPLED_SECTIONS = 5
_SAMPLED_PX = 512

Kind = Literal["grey", "probability", "label"]


@dataclass(frozen=True)
class _Level:
    """One resolution: a volume, and how many of its pixels in y and x make one shown pixel."""

    volume: Volume
    scale: tuple[float, float, float]
    reduce: int = 1

    @property
    def shape(self) -> tuple[int, int, int]:
        """(z, y, x) as shown."""
        depth, height, width = self.volume.shape
        return depth, -(-height // self.reduce), -(-width // self.reduce)


@dataclass(frozen=True)
class ViewLayer:
    """A layer of the page.

    Attributes:
        name: as the page shows it.
        kind: grey levels, membrane probability, or numbers of a label image.
        image: its levels as stored.
        colours: of tile values 0..255, red, green, blue and opacity, (256, 4).
        value_range: stored values that become tile values 0 and 255; labels stay as they are.
        opacity: with which the page begins, as far as it begins with the layer at all.
        shown: whether it does.
        swatch: what the page shows beside the name, as CSS.
    """

    name: str
    kind: Kind
    image: ImageLevels
    colours: npt.NDArray[np.uint8]
    value_range: tuple[float, float]
    opacity: float
    swatch: str
    shown: bool = True
    levels: tuple[_Level, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "levels", tuple(_levels(self.image)))

    def describe(self) -> dict[str, Any]:
        """What the page must know, as JSON."""
        levels = [{"shape": level.shape, "scale": level.scale} for level in self.levels]
        return {
            "name": self.name,
            "kind": self.kind,
            "opacity": self.opacity,
            "shown": self.shown,
            "swatch": self.swatch,
            "levels": levels,
        }

    def tile(self, level: int, z: int, row: int, column: int) -> bytes | None:
        """PNG of a tile, clipped to the section; None where there is none.

        Args:
            level: 0 is the highest resolution.
            z: section of the highest resolution.
            row: of tiles of `TILE_PX`.
            column: of them.

        Raises:
            VolumeError: the voxels cannot be read.
        """
        if not 0 <= level < len(self.levels):
            return None
        shown = self.levels[level]
        depth, height, width = shown.shape
        top, left = row * TILE_PX, column * TILE_PX
        if not (0 <= z < self.levels[0].shape[0] and 0 <= top < height and 0 <= left < width):
            return None
        bottom, right = min(top + TILE_PX, height), min(left + TILE_PX, width)
        section = min(int(z / shown.scale[0]), depth - 1)
        with _TILES_AT_ONCE:
            return tile_png(self._values(shown, section, (top, bottom), (left, right)), self.colours)

    def value(self, z: int, y: int, x: int) -> float | int:
        """Stored value of a voxel of the highest resolution; probabilities as 0..1."""
        found = self.levels[0].volume.read(Box.of_shape((1, 1, 1), (z, y, x)))[0, 0, 0]
        if self.kind == "probability":
            return round(float(found) / self.value_range[1], 4)
        return float(found) if found.dtype.kind == "f" else int(found)

    def _values(self, level: _Level, z: int, rows: tuple[int, int], columns: tuple[int, int]) -> npt.NDArray[np.uint8]:
        """Tile values of shown pixels, read in bands of rows."""
        volume, reduce = level.volume, level.reduce
        _, height, width = volume.shape
        left, right = columns[0] * reduce, min(columns[1] * reduce, width)
        at_once = max(1, _BAND_BYTES // ((right - left) * reduce * volume.dtype.itemsize))
        bands = []
        for top in range(rows[0], rows[1], at_once):
            bottom = min(top + at_once, rows[1])
            box = Box((z, top * reduce, left), (z + 1, min(bottom * reduce, height), right))
            bands.append(self._reduced(volume.read(box), reduce))
        return np.concatenate(bands)

    def _reduced(self, voxels: npt.NDArray[Any], reduce: int) -> npt.NDArray[np.uint8]:
        """(y, x) tile values of one section's voxels; a label image is thinned out, others are averaged."""
        if self.kind == "label":
            return np.ascontiguousarray(voxels[0, ::reduce, ::reduce].astype(np.uint8))
        low, high = self.value_range
        if voxels.dtype != np.uint8 or (low, high) != (0, 255):
            scaled = (voxels.astype(np.float32) - low) * (255 / (high - low))
            voxels = np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
        means: npt.NDArray[np.uint8] = downsample(voxels, (1, reduce, reduce))[0]
        return means


def _levels(image: ImageLevels) -> list[_Level]:
    """Stored levels, and halved ones above them until a section is one tile."""
    levels = [_Level(volume, scale) for volume, scale in zip(image.volumes, image.scales, strict=True)]
    while max(levels[-1].shape[1:]) > TILE_PX:
        last = levels[-1]
        z, y, x = last.scale
        levels.append(_Level(last.volume, (z, y * 2, x * 2), last.reduce * 2))
    return levels


def grey_range(image: ImageLevels) -> tuple[float, float]:
    """Percentiles 0.5 and 99.5 of the middles of a few sections: what the page shows as black and white."""
    volume = image.volumes[0]
    depth, height, width = volume.shape
    top, left = (max(0, (side - _SAMPLED_PX) // 2) for side in (height, width))
    sample = [
        volume.read(Box((z, top, left), (z + 1, min(top + _SAMPLED_PX, height), min(left + _SAMPLED_PX, width))))
        for z in _spread(depth)
    ]
    low, high = (float(value) for value in np.percentile(np.concatenate(sample).astype(np.float32), (0.5, 99.5)))
    return (low, high) if high > low else (low, low + 1)


def _spread(depth: int) -> Sequence[int]:
    """Numbers of a few sections, evenly spread."""
    return sorted({int((k + 0.5) * depth / _SAMPLED_SECTIONS) for k in range(_SAMPLED_SECTIONS)})
