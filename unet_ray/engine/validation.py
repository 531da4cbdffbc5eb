"""Loss and pixel mismatch on whole held-out sections, predicted by the tiles that segmentation uses."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from unet_ray.geometry.box import Box, Triple, mirror_index
from unet_ray.geometry.tiles import TileGrid
from unet_ray.network.loss import cross_entropy
from unet_ray.network.step import Precision, Reduce
from unet_ray.network.unet import UNet, membrane_probability, network_input
from unet_ray.storage.patch_cache import PatchCache

# A multiple of every pooling factor up to 2^7; sections up to this side are one tile.
LARGEST_TILE_PX = 512


class Validated(NamedTuple):
    """Weighted mean loss and share of wrong pixels at probability 0.5, over all validation sections."""

    loss: float
    pixel_mismatch: float


def section_tiles(section_px: tuple[int, int], halo: int) -> TileGrid:
    """Tiles of a whole section, with the halo that makes them exact."""
    tile: Triple = (1, LARGEST_TILE_PX, LARGEST_TILE_PX)
    return TileGrid((1, *section_px), tile, (0, halo, halo))


def mirrored_window(section: npt.NDArray[np.uint8], box: Box) -> npt.NDArray[np.uint8]:
    """Pixels of ``box`` of a (c, y, x) section, mirrored at its border."""
    height, width = section.shape[1:]
    rows = [mirror_index(y, height) for y in range(box.start[1], box.stop[1])]
    columns = [mirror_index(x, width) for x in range(box.start[2], box.stop[2])]
    return section[:, rows][:, :, columns]


@torch.no_grad()
def validate(
    network: UNet,
    cache: PatchCache,
    *,
    halo: int,
    margin: int,
    weighted: bool,
    precision: Precision,
    rank: int,
    world_size: int,
    reduce: Reduce | None,
) -> Validated:
    """Predict every validation section exactly as segmentation would, and compare.

    Sections are shared among the ranks; the result is the same on all of them.
    """
    network.eval()
    like = next(network.parameters())
    plan = cache.plan()
    sums = torch.zeros(4, dtype=torch.float64, device=like.device)
    for number in range(rank, plan.validation, world_size):
        patch = cache.read("validation", number)
        for window, inside, write in _windows(patch.image, section_tiles(plan.section_px, halo), halo - margin):
            images = network_input(torch.from_numpy(window[None]).to(like.device)).to(like.dtype)
            with torch.autocast(like.device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16"):
                logits = network(images)[(..., *inside)]
            label = torch.from_numpy(patch.label[write][None]).to(like.device)
            weight = torch.from_numpy(patch.weight[write][None].astype(np.float32)).to(like.device)
            known = (weight > 0).to(weight.dtype)
            found = cross_entropy(logits, label, weight if weighted else known)
            wrong = ((membrane_probability(logits) > 0.5) != (label == 1)) & (weight > 0)
            sums += torch.stack([found.loss.double(), found.weight, wrong.sum().double(), known.sum().double()])
    loss, weight_sum, mismatches, pixels = (sums if reduce is None else reduce(sums)).tolist()
    network.train()
    return Validated(loss / max(weight_sum, 1e-30), mismatches / max(pixels, 1))


def _windows(
    image: npt.NDArray[np.uint8], tiles: TileGrid, offset: int
) -> Iterator[tuple[npt.NDArray[np.uint8], tuple[slice, slice], tuple[slice, slice]]]:
    """Per tile: its window, where its written pixels lie in the output, and where they lie in the section."""
    for tile in range(tiles.num_tiles):
        write = tiles.write_box(tile)
        _, height, width = write.shape
        inside = slice(offset, offset + height), slice(offset, offset + width)
        yield mirrored_window(image, tiles.read_box(tile)), inside, write.slices[1:]
