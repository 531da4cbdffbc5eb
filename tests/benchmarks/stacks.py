"""The labelled sections that a benchmark of augmentation works on: given ones, or the phantom's."""

import argparse
from pathlib import Path

import numpy as np
import tifffile
from contestants import Sections

from unet_ray.geometry.box import Box
from unet_ray.numerics.phantom import phantom_block


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Flags that say which sections."""
    parser.add_argument("--images", help="TIFF stack of 8-bit sections, in place of the phantom")
    parser.add_argument("--labels", help="its labels, 0 = membrane")
    parser.add_argument("--sections", type=int, default=30, help="of the phantom")
    parser.add_argument("--side", type=int, default=512, help="of a section of the phantom, pixels, a multiple of 16")


def stacks(config: argparse.Namespace, folder: str) -> tuple[str, str]:
    """Return the paths of image and label stack; those of the phantom, 255 = inside a cell, are put into ``folder``."""
    if (config.images is None) != (config.labels is None):
        raise SystemExit("--images and --labels belong together: give both, or neither for the phantom")
    if config.images is not None:
        return config.images, config.labels
    block = phantom_block(Box.of_shape((config.sections, config.side, config.side)))
    paths = str(Path(folder) / "images.tif"), str(Path(folder) / "labels.tif")
    for path, values in zip(paths, (block.image, (1 - block.membrane) * np.uint8(255)), strict=True):
        tifffile.imwrite(path, values, photometric="minisblack")
    return paths


def read(paths: tuple[str, str]) -> tuple[Sections, Sections]:
    """Return images, and labels with 1 = membrane."""
    images, labels = (tifffile.imread(path) for path in paths)
    return list(images), [(label == 0).astype(np.uint8) for label in labels]
