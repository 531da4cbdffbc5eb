"""A volume and a segmentation of it, small but with everything: several shards, a pyramid, an overhanging block."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from unet_ray.geometry.box import triple
from unet_ray.geometry.tiles import BlockGrid, TileGrid
from unet_ray.numerics.downsample import downsample
from unet_ray.storage.segmentation import Segmentation
from unet_ray.storage.segmentation_layout import SegmentationLayout

SHAPE = (5, 150, 200)
VOXEL_SIZE_NM = (50.0, 4.0, 4.0)


def raw_values() -> npt.NDArray[np.uint8]:
    """(z, y, x) uint8: every voxel tells its place, and sections differ in brightness."""
    z, y, x = np.indices(SHAPE)
    return ((40 * z + y + 2 * x) % 251).astype(np.uint8)


def probabilities(classes: int = 1) -> npt.NDArray[np.uint8]:
    """((k,) z, y, x) uint8; a band of high membrane probability that moves with the section."""
    z, y, x = np.indices(SHAPE)
    band = np.clip(255 - 8 * np.abs(x - 40 - 20 * z + y // 4), 0, 255).astype(np.uint8)
    if classes == 1:
        return band
    return np.stack([np.roll(band, 50 * k, axis=2) // (k + 1) for k in range(classes)])


def write_segmentation(
    path: Path | str,
    classes: int = 1,
    voxel_size_nm: tuple[float, float, float] | None = VOXEL_SIZE_NM,
    dtype: str = "uint8",
) -> Path | str:
    """The probabilities as the segment job writes them."""
    blocks = BlockGrid(TileGrid(SHAPE, (1, 32, 32)), (2, 2, 2))
    layout = SegmentationLayout(blocks, (1, 32, 32), voxel_size_nm, ((1, 2, 2),), classes, dtype)  # type: ignore[arg-type]
    output = Segmentation(str(path))
    output.create(layout, {"made_with": {}, "threshold": 0.5})
    values = probabilities(classes)
    if dtype == "float16":
        values = (values / 255).astype(np.float16)
    for level in layout.levels:
        if level:
            planes = values.reshape(-1, *values.shape[-3:])
            smaller = np.stack([downsample(plane, layout.factors[level - 1]) for plane in planes])
            values = smaller if classes > 1 else smaller[0]
        grid = layout.grid(level)
        for block in range(grid.num_blocks):
            box = grid.write_box(block)
            output.put(output.encode(layout, block, values[(..., *box.slices)], 0.5, level))
        assert triple(values.shape[-3:]) == grid.tiles.volume
    return path
