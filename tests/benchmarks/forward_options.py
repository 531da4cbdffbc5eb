"""The forward pass of segmentation with each option, on one resident batch."""

import argparse
from typing import Any

import numpy as np
import torch
from segment_inputs import threads
from segment_runs import passes_per_second

from unet_ray.config.network import layers, network_config
from unet_ray.engine.process_memory import keep_freed_memory, peak_rss_bytes
from unet_ray.geometry.receptive_field import halo_px, margin_px
from unet_ray.network.fuse import fuse
from unet_ray.network.predict import TORCH_DTYPE, hardware_precision
from unet_ray.network.unet import fold_batch_norm, network_input, new_network

# What each option changes. Plain is one tile of 512 px in float32, contiguous, eager, batch normalisation by itself,
# its whole window computed to the end, and memory given back as glibc does by itself.
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "kept_memory": {"keep_memory": True},
    "channels_last": {"channels_last": True},
    "folded": {"fold": True},
    "fused": {"fold": True, "fuse": True},
    "cropped": {"crop": True},
    "compile": {"compile": True},
    "two_tiles": {"tiles": 2},
    "tile_256": {"tile_px": 256},
    "tile_384": {"tile_px": 384},
    "tile_768": {"tile_px": 768},
    "tile_1024": {"tile_px": 1024},
    "tile_64": {"tile_px": 64},
    "bfloat16": {"precision": "bfloat16"},
}
# Options alone, and together: memory that is given back costs more the larger the tensors are.
CONTESTANTS = [
    *(name for name in OPTIONS if name != "tile_64"),
    "kept_memory+folded", "kept_memory+compile", "kept_memory+two_tiles", "kept_memory+tile_256",
    "kept_memory+tile_384", "kept_memory+tile_768", "kept_memory+tile_1024", "bfloat16+channels_last",
    "bfloat16+channels_last+folded", "bfloat16+channels_last+folded+tile_1024",
    "bfloat16+channels_last+folded+two_tiles", "channels_last+fused", "bfloat16+channels_last+fused",
    "bfloat16+channels_last+fused+tile_1024", "bfloat16+channels_last+fused+cropped",
    "bfloat16+channels_last+fused+cropped+tile_1024",
]  # fmt: skip


def contestant(name: str) -> str:
    """``name`` where it is options joined by +, as ``kept_memory+tile_1024``."""
    if unknown := [part for part in name.split("+") if part not in OPTIONS]:
        raise argparse.ArgumentTypeError(f"no option {unknown[0]}; there are {', '.join(OPTIONS)}")
    return name


def options_of(name: str) -> dict[str, Any]:
    """What the options of ``name`` change together."""
    return {key: value for part in name.split("+") for key, value in OPTIONS[part].items()}


def possible(name: str, device: str) -> bool:
    """Whether the device computes with the precision of ``name``."""
    return options_of(name).get("precision", "float32") in ("float32", hardware_precision(device))


def forward(config: argparse.Namespace, name: str) -> dict[str, Any]:
    """Written voxels per second of the network alone, seconds before the rate settled, and memory."""
    options, device = options_of(name), torch.device("cuda" if config.use_gpu else "cpu")
    torch.set_num_threads(config.workers * threads(config))
    if options.get("keep_memory"):
        keep_freed_memory()
    settings = network_config(config.preset, base_channels=config.base_channels, depth=config.depth)
    network = new_network(settings, 0).eval()
    if options.get("fold"):
        network = fold_batch_norm(network)
    form = torch.channels_last if options.get("channels_last") else torch.contiguous_format
    dtype = TORCH_DTYPE[options.get("precision", "float32")]
    network = network.to(device, dtype).to(memory_format=form)
    tile_px, tiles = options.get("tile_px", 512), options.get("tiles", 1)
    halo = halo_px(layers(settings))
    side, crop = tile_px + 2 * halo, halo - margin_px(layers(settings)) if options.get("crop") else 0
    grey = np.random.default_rng(0).integers(0, 256, (tiles, settings.in_channels, side, side), dtype=np.uint8)
    batch = network_input(torch.from_numpy(grey)).to(device, dtype, memory_format=form)
    if options.get("fuse"):
        fuse(network)
    called = torch.compile(network) if options.get("compile") else network
    with torch.inference_mode():
        rate, before = passes_per_second(lambda number: called(batch, crop), config.seconds, use_gpu=config.use_gpu)
    return {
        "voxels_per_second": rate * tiles * tile_px**2,
        "seconds_before": before,
        "peak_bytes": torch.cuda.max_memory_allocated() if config.use_gpu else peak_rss_bytes(),
    }
