"""Time the networks on one GPU: training steps and forward passes, each over what the card's matrix units reach.

Run ``python tests/benchmarks/bench_gpu.py > record.json`` on a machine with a CUDA GPU and nothing else to do. One
process, a few seconds for each line. The ceiling is a bfloat16 matrix product of side 8192; operations of a forward
pass are counted by PyTorch, and a training step counts as three forward passes. A forward pass is timed as
segmentation does it: grey levels go to the GPU and probabilities come back.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from record import commit, machine, versions
from torch.utils.flop_counter import FlopCounterMode

from unet_ray.config.network import NetworkConfig, layers, network_config
from unet_ray.geometry.receptive_field import halo_px, margin_px
from unet_ray.network.ema import WeightAverage
from unet_ray.network.predict import Predictor
from unet_ray.network.step import Batch, make_optimizer, make_scaler, train_step
from unet_ray.network.unet import UNet, network_input, new_network

PACKAGES = ("torch", "numpy")
MATRIX = 8192
# (preset, side of a patch's label, patches): the paper's own tile, and the default recipe's batch and a large one.
STEPS = (("default", 256, 4), ("default", 256, 32), ("paper", 388, 1), ("paper", 388, 8))
OPTIONS: dict[str, dict[str, Any]] = {
    "float32": {},
    "float32_channels_last": {"channels_last": True},
    "bfloat16": {"precision": "bfloat16"},
    "bfloat16_channels_last": {"precision": "bfloat16", "channels_last": True},
    "float16_channels_last": {"precision": "float16", "channels_last": True},
    "bfloat16_channels_last_compiled": {"precision": "bfloat16", "channels_last": True, "compile": "default"},
    "bfloat16_channels_last_graphs": {"precision": "bfloat16", "channels_last": True, "compile": "reduce-overhead"},
}
# (preset, side of a tile, tiles): what segmentation computes at once.
TILES = (("default", 512, 1), ("default", 1024, 1), ("default", 512, 8), ("paper", 512, 1), ("paper", 1024, 1))


def seconds_each(work: Callable[[], object], at_least: float) -> float:
    """Seconds of one call, when calls follow one another; the first few are not counted."""
    for _ in range(4):
        work()
    torch.cuda.synchronize()
    taken, start = 0, time.perf_counter()
    while taken < 3 or time.perf_counter() - start < at_least:
        work()
        taken += 1
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / taken


def ceiling(seconds: float) -> float:
    """Operations per second of a bfloat16 matrix product."""
    left, right = (torch.randn(MATRIX, MATRIX, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return 2 * MATRIX**3 / seconds_each(lambda: left @ right, seconds)


def operations(network: UNet, shape: tuple[int, ...]) -> float:
    """Operations of a forward pass over windows of ``shape``."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(network_input(torch.zeros(shape, dtype=torch.uint8)).to(next(network.parameters()).device))
    return float(counter.get_total_flops())


def measure_step(preset: str, patch_px: int, patches: int, options: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Steps per second, operations per second and peak memory of one training step."""
    settings = network_config(preset)
    window = patch_px + 2 * margin_px(layers(settings))
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, (patches, patch_px, patch_px), dtype=np.uint8)
    image = rng.integers(0, 256, (patches, settings.in_channels, window, window), dtype=np.uint8)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    network = new_network(settings, 0).cuda()
    counted = operations(network.eval(), image.shape)
    if options.get("channels_last"):
        network = network.to(memory_format=torch.channels_last)
    wrapped = torch.compile(network, mode=options["compile"]) if "compile" in options else network
    batch = Batch(torch.from_numpy(image), torch.from_numpy(label), torch.ones(label.shape)).to("cuda")
    optimizer = make_optimizer(network, "adamw", 1e-4)
    average = WeightAverage(network, 0.99)
    precision = options.get("precision", "float32")
    scaler = make_scaler(precision, "cuda")
    number = 0

    def step() -> None:
        nonlocal number
        train_step(wrapped, batch, optimizer, step=number, precision=precision, scaler=scaler)
        average.update()
        number += 1

    began = time.perf_counter()
    step()
    first = time.perf_counter() - began
    took = seconds_each(step, seconds)
    return {
        "steps_per_second": 1 / took,
        "patches_per_second": patches / took,
        "operations_per_second": 3 * counted / took,
        "peak_bytes": torch.cuda.max_memory_allocated(),
        "first_step_seconds": first,
    }


def measure_tiles(preset: str, tile_px: int, tiles: int, precision: Any, seconds: float) -> dict[str, Any]:
    """Voxels per second of a forward pass over tiles, by itself and with both copies."""
    settings: NetworkConfig = network_config(preset)
    network = new_network(settings, 0).eval()
    side = tile_px + 2 * halo_px(layers(settings))
    windows = np.random.default_rng(0).integers(0, 256, (tiles, settings.in_channels, side, side), dtype=np.uint8)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    predictor = Predictor(settings, network.state_dict(), "cuda", precision)
    counted = operations(network.cuda(), windows.shape)
    voxels = tiles * tile_px**2
    alone = seconds_each(lambda: predictor.logits(windows), seconds)
    whole = seconds_each(lambda: predictor(windows), seconds)
    return {
        "voxels_per_second": voxels / whole,
        "voxels_per_second_without_copying_back": voxels / alone,
        "operations_per_second": counted / whole,
        "peak_bytes": torch.cuda.max_memory_allocated(),
    }


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure and return the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement, at least")
    parser.add_argument("--options", nargs="+", choices=OPTIONS, default=list(OPTIONS))
    parser.add_argument("--steps", type=int, nargs="+", default=list(range(len(STEPS))), help="which of STEPS")
    parser.add_argument("--precisions", nargs="*", default=["bfloat16", "float16", "float32"])
    config = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        raise SystemExit("bench_gpu.py needs a CUDA GPU; bench_step.py measures a CPU")
    most = ceiling(config.seconds)

    def told(name: str, found: dict[str, Any]) -> dict[str, Any]:
        found |= {"share_of_matrix_product": found["operations_per_second"] / most}
        print(name, {key: float(f"{value:.3g}") for key, value in found.items()}, file=sys.stderr)
        return found

    steps = {
        (line := f"{preset} {patches} x {patch_px} px, {name}"): told(
            line, measure_step(preset, patch_px, patches, OPTIONS[name], config.seconds)
        )
        for name in config.options
        for preset, patch_px, patches in (STEPS[number] for number in config.steps)
    }
    tiles = {
        (line := f"{preset} {count} x {tile_px} px, {precision}"): told(
            line, measure_tiles(preset, tile_px, count, precision, config.seconds)
        )
        for precision in config.precisions
        for preset, tile_px, count in TILES
    }
    return {
        "benchmark": "training steps and forward passes on one GPU, over its bfloat16 matrix product",
        "commit": commit(),
        "config": vars(config),
        "machine": machine() | {"gpu": torch.cuda.get_device_name()},
        "versions": versions(PACKAGES),
        "matrix_product_operations_per_second": most,
        "steps": steps,
        "tiles": tiles,
    }


if __name__ == "__main__":
    print(json.dumps(main(), indent=1))
