"""What a benchmark of segmentation works on: a volume of a chosen size as zarr and as TIFF, and a model."""

import argparse
import math
import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile
import zarr

from unet_ray.config.network import layers, network_config
from unet_ray.config.segment import SegmentConfig
from unet_ray.engine.labelled_stacks import read_section, sample_volume
from unet_ray.engine.model_fit import grey_levels
from unet_ray.engine.segment_plan import layout_for, resolve_tile_px
from unet_ray.engine.segment_worker import Job
from unet_ray.geometry.box import Box
from unet_ray.geometry.receptive_field import halo_px, margin_px
from unet_ray.network.model_file import ModelMetadata, Normalisation, decode, encode
from unet_ray.network.predict import Precision, hardware_precision
from unet_ray.network.unet import new_network
from unet_ray.numerics.intensity import IntensityMap
from unet_ray.numerics.phantom import phantom_block
from unet_ray.storage.segmentation import Segmentation
from unet_ray.storage.volume import Volume, open_volume

ZARR, TIFF, MODEL, PART = "volume.zarr", "volume.tif", "model.safetensors", "part.npy"
CHUNK_PX = 512
# Offsets of a classic TIFF end at 4 GiB.
CLASSIC_BYTES = 2**32 - 2**25


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Flags that say which volume and model, and how they are computed."""
    parser.add_argument("--volume", help="a real stack, in place of the phantom")
    parser.add_argument("--mvoxels", type=float, default=100.0, help="repeat it in y and x to at least so many")
    parser.add_argument("--sections", type=int, default=30, help="of the phantom")
    parser.add_argument("--side", type=int, default=512, help="of a section of the phantom, pixels")
    parser.add_argument("--model", help="model file; None: initial weights of the preset")
    parser.add_argument("--preset", default="default")
    parser.add_argument("--base-channels", type=int)
    parser.add_argument("--depth", type=int)
    parser.add_argument("--tile-px", type=lambda said: said if said == "auto" else int(said), default="auto")
    parser.add_argument("--precision", choices=["auto", "float32", "bfloat16"], default="auto")
    parser.add_argument(
        "--threshold", type=float, default=0.5,
        help="of the mask. Initial weights put most probabilities near 0.5: with 0.001 bfloat16 passes the seam probe",
    )  # fmt: skip
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--threads", type=int, help="of each worker; None: an equal share of the cores")
    parser.add_argument("--use-gpu", action="store_true")


def threads(config: argparse.Namespace) -> int:
    """Threads of each worker."""
    return config.threads or max(1, len(os.sched_getaffinity(0)) // config.workers)


def precision(config: argparse.Namespace) -> Precision:
    """What "auto" stands for."""
    found: Precision = hardware_precision("cuda" if config.use_gpu else "cpu")
    return found if config.precision == "auto" else config.precision


def make_inputs(config: argparse.Namespace, folder: str) -> dict[str, Any]:
    """Put the volume in both formats, the part of it for peers, and the model into ``folder``; returns their sizes.

    The zarr array has chunks of one section and 512 pixels, compressed by zarr's default; the TIFF has a page per
    section, not compressed, as ImageJ saves it.
    """
    if config.volume is None:
        block = phantom_block(Box.of_shape((config.sections, config.side, config.side)))
        sections: list[npt.NDArray[Any]] = list(block.image)
    else:
        given = open_volume(config.volume)
        sections = [read_section(given, z) for z in range(given.shape[0])]
    height, width = sections[0].shape
    rows, columns = repeats_of(len(sections) * height * width, config.mvoxels * 1e6)
    shape = (len(sections), height * rows, width * columns)

    def repeated() -> Iterator[npt.NDArray[Any]]:
        return (np.tile(section, (rows, columns)) for section in sections)

    root, dtype = Path(folder), sections[0].dtype
    chunks = (1, min(CHUNK_PX, shape[1]), min(CHUNK_PX, shape[2]))
    array = zarr.create_array(root / ZARR, shape=shape, chunks=chunks, dtype=dtype)
    for z, section in enumerate(repeated()):
        array[z] = section
    tifffile.imwrite(
        root / TIFF, repeated(), shape=shape, dtype=dtype, photometric="minisblack", metadata=None,
        bigtiff=math.prod(shape) * dtype.itemsize > CLASSIC_BYTES,
    )  # fmt: skip
    (root / MODEL).write_bytes(model_bytes(config, open_volume(str(root / ZARR))))
    grey = job_of(config, folder).intensity.apply(part(open_volume(str(root / ZARR)), config.peer_mvoxels * 1e6))
    np.save(root / PART, grey)
    tiles = job_of(config, folder).layout.blocks.tiles
    return {
        "voxels_zyx": list(shape),
        "repeated_yx": [rows, columns],
        "tile_px": tiles.tile[2],
        "halo_px": tiles.halo[2],
        "tiles": tiles.num_tiles,
        "written_share_of_tiles": math.prod(shape) / (tiles.num_tiles * math.prod(tiles.tile)),
        "blocks": job_of(config, folder).layout.blocks.num_blocks,
        "part_for_peers_zyx": list(grey.shape),
    }


def repeats_of(voxels: int, at_least: float) -> tuple[int, int]:
    """How often sections are repeated in y and x; as square as can be.

    >>> repeats_of(10, 10), repeats_of(10, 11), repeats_of(10, 60)
    ((1, 1), (1, 2), (2, 3))
    """
    rows = max(1, math.isqrt(math.ceil(at_least / voxels)))
    return rows, max(1, math.ceil(at_least / (voxels * rows)))


def part(volume: Volume, at_most: float) -> npt.NDArray[Any]:
    """The first whole sections that fit, or a square of the first one."""
    depth, height, width = volume.shape
    if height * width <= at_most:
        return volume.read(Box.of_shape((min(depth, int(at_most // (height * width))), height, width)))
    side = int(math.sqrt(at_most))
    return volume.read(Box.of_shape((1, min(side, height), min(side, width))))


def model_bytes(config: argparse.Namespace, volume: Volume) -> bytes:
    """The model file that was given, or one of initial weights."""
    if config.model is not None:
        return Path(config.model).read_bytes()
    network = network_config(config.preset, base_channels=config.base_channels, depth=config.depth)
    grey = IntensityMap.of_sample(sample_volume(volume, range(volume.shape[0])))
    listed = layers(network)
    about = ModelMetadata(
        network=network,
        normalisation=Normalisation(low=grey.low, high=grey.high, dtype=grey.dtype),
        halo_px=halo_px(listed),
        margin_px=margin_px(listed),
        context_sections=(network.in_channels - 1) // 2,
    )
    return encode(new_network(network, 0), about)


def job_of(config: argparse.Namespace, folder: str) -> Job:
    """What an actor of the segmentation of the zarr volume would be given."""
    volume, model = open_volume(f"{folder}/{ZARR}"), Path(folder, MODEL).read_bytes()
    network, _, metadata = decode(model)
    layout = layout_for(volume.shape, resolve_tile_px(config.tile_px, volume.shape, network), network, None)
    asked = SegmentConfig(volume=volume.path, model=MODEL, output="none.zarr")
    return Job(
        volume, model, grey_levels(asked, volume, metadata), Segmentation("none.zarr"), layout, config.threshold,
        threads=threads(config), gpus_each=float(config.use_gpu),
    )  # fmt: skip


def limit_memory(config: argparse.Namespace) -> None:
    """Let what needs more memory than there is fail with an error of its own, not take others with it."""
    if not config.use_gpu:
        lines = Path("/proc/meminfo").read_text().splitlines()
        available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
        resource.setrlimit(resource.RLIMIT_DATA, (available * 9 // 10, resource.RLIM_INFINITY))
