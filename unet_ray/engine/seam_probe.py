"""Whether tile by tile equals one piece, on the real volume with the real model, before anything is written."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_ray.errors import SeamError
from unet_ray.geometry.box import Box
from unet_ray.geometry.tiles import BlockGrid, TileGrid
from unet_ray.network.predict import Precision

# In probability, float32: what different shapes may do to the order of sums.
LARGEST_SEAM = 1e-5
LARGEST_MASK_CHANGE = 1e-3

Predict = Callable[[Precision, npt.NDArray[np.uint8], int], npt.NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class SeamCertificate:
    """What the probe found.

    Attributes:
        seam_max_abs_diff: largest difference in probability between tiles and one piece, float32.
        mask_change_share: share of mask pixels that the chosen precision changes against float32; of several classes,
            share of pixels with another likeliest class.
        box: the region compared, (z, y, x) start and stop.
        precision: the precision that will be used.
        note: why it is not the one wanted; empty where it is.
    """

    seam_max_abs_diff: float
    mask_change_share: float
    box: tuple[tuple[int, int, int], tuple[int, int, int]]
    precision: Precision
    note: str = ""


def probe(
    predict: Predict,
    read: Callable[[Box], npt.NDArray[np.uint8]],
    tiles: TileGrid,
    box: Box,
    *,
    crop: int,
    threshold: float,
    precision: Precision,
    may_fall_back: bool,
) -> SeamCertificate:
    """Predict ``box`` in one piece and by the tiles that touch it, in float32 and in ``precision``.

    Args:
        predict: (precision, (1, c, h, w) window, crop) to (1, h', w') probabilities, or (1, k, h', w') of k classes,
            of which each side lacks ``crop`` pixels.
        read: grey values of a read box, mirrored outside the volume.
        tiles: the grid that will be used.
        box: region in one section, its sides on the pooling grid; what overhangs the volume is not compared.
        crop: pixels between an output's edge and its tile: halo - margin.
        threshold: of the mask; several classes have none.
        precision: the precision wanted.
        may_fall_back: use float32 where ``precision`` changes too much of the mask.

    Raises:
        SeamError: beyond tolerance.
    """
    window = read(box.grow(tiles.halo))[None]
    box = box.intersect(Box.of_shape(tiles.volume))
    # Nothing is spared in what the tiles, computed as the job computes them, are held against.
    whole = _inside(predict("float32", window, 0)[..., crop:, crop:], box)
    pieces = np.full(whole.shape, np.nan, np.float32)
    changed = pixels = 0
    for tile in BlockGrid(tiles, (1, 1, 1)).blocks_touching(box):
        write = tiles.write_box(tile)
        shared = write.intersect(box)
        window = read(tiles.read_box(tile))[None]
        exact = _inside(predict("float32", window, crop), write)
        there, here = shared.relative_to(box.start).slices[1:], shared.relative_to(write.start).slices[1:]
        pieces[(..., *there)] = exact[(..., *here)]
        if precision != "float32":
            lower = _inside(predict(precision, window, crop), write)
            changed += int((_label(lower, threshold) != _label(exact, threshold)).sum())
        pixels += write.voxels
    seam = float(np.abs(whole - pieces).max())
    if not seam <= LARGEST_SEAM:
        raise SeamError(
            f"tile by tile differs from one piece by {seam:.2g} in probability (at most {LARGEST_SEAM:g} is allowed) "
            f"at {box.start} to {box.stop}; do not use this model with this tile side, and report this as a bug"
        )
    share = changed / pixels
    if share > LARGEST_MASK_CHANGE:
        if not may_fall_back:
            raise SeamError(
                f"--precision {precision} changes {share:.2%} of the mask's pixels against float32 (at most "
                f"{LARGEST_MASK_CHANGE:.1%} is allowed); use --precision float32 or auto"
            )
        note = (
            f"{precision} would change {share:.2%} of the mask's pixels (at most {LARGEST_MASK_CHANGE:.1%} is "
            "allowed), so the run computes in float32"
        )
        return SeamCertificate(seam, 0.0, (box.start, box.stop), "float32", note)
    return SeamCertificate(seam, share, (box.start, box.stop), precision)


def _inside(output: npt.NDArray[np.float32], box: Box) -> npt.NDArray[np.float32]:
    """Probabilities of the pixels that belong to a box of one section, ((k,) y, x)."""
    _, height, width = box.shape
    return output[0, ..., :height, :width]


def _label(probability: npt.NDArray[np.float32], threshold: float) -> npt.NDArray[Any]:
    """Mask of ((y, x)) probabilities, or the likeliest class of (k, y, x)."""
    label: npt.NDArray[Any] = probability > threshold if probability.ndim == 2 else probability.argmax(axis=0)
    return label
