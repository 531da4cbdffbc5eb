"""Time one training step with each option of training, one at a time, beside the plain step.

Run ``python tests/benchmarks/bench_step.py > record.json`` on a machine with nothing else to do. Plain is float32,
contiguous, eager, with memory given back as glibc does by itself, no average, no clipping, in one piece. Each
contestant is a process of its own; they take turns, repeat by repeat. ``--only plain bfloat16`` takes some of them.
"""

import argparse
import json
import subprocess
import sys
import time
from typing import Any

import numpy as np
import torch
from record import commit, machine, median_ratio, versions

from unet_ray.config.network import layers, network_config
from unet_ray.engine.process_memory import keep_freed_memory, peak_rss_bytes
from unet_ray.geometry.descriptor_grid import descriptor_sides
from unet_ray.geometry.receptive_field import margin_px
from unet_ray.network.ema import WeightAverage
from unet_ray.network.loss import Loss
from unet_ray.network.step import Batch, make_optimizer, make_scaler, train_step
from unet_ray.network.unet import add_descriptors, new_network
from unet_ray.numerics.shape_descriptors import shape_descriptors

PACKAGES = ("torch", "numpy")
SETTLED = 2
# What each option changes.
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "kept_memory": {"keep_memory": True},
    "channels_last": {"channels_last": True},
    "bfloat16": {"precision": "bfloat16"},
    "bfloat16_channels_last": {"precision": "bfloat16", "channels_last": True},
    "float16_channels_last": {"precision": "float16", "channels_last": True},
    "compile": {"compile": True},
    "average": {"ema_decay": 0.99},
    "clipping": {"max_gradient_norm": 1.0},
    "two_pieces": {"pieces": 2},
    "dice": {"dice": 1.0},
    "descriptors": {"descriptors": 5.0},
    "half_batch": {"batch_share": 2},
}


def measure(config: argparse.Namespace) -> dict[str, Any]:
    """Steps per second of one option, seconds before the rate settled, and memory."""
    options = OPTIONS[config.measure]
    torch.set_num_threads(config.threads)
    if options.get("keep_memory"):
        keep_freed_memory()
    device = torch.device("cuda" if config.use_gpu else "cpu")
    settings = network_config(config.preset, base_channels=config.base_channels, depth=config.depth)
    network = new_network(settings, 0)
    if options.get("descriptors"):
        add_descriptors(network, 0)
    network = network.to(device)
    if options.get("channels_last"):
        network = network.to(memory_format=torch.channels_last)
    patches = max(1, config.batch_size // options.get("batch_share", 1))
    rng = np.random.default_rng(0)
    window = config.patch_px + 2 * margin_px(layers(settings))
    label = rng.integers(0, 2, (patches, config.patch_px, config.patch_px), dtype=np.uint8)
    image = rng.integers(0, 256, (patches, settings.in_channels, window, window), dtype=np.uint8)
    batch = Batch(torch.from_numpy(image), torch.from_numpy(label), torch.ones(label.shape)).to(device)
    optimizer = make_optimizer(network, "adamw", 1e-3)
    average = WeightAverage(network, options["ema_decay"]) if "ema_decay" in options else None
    precision = options.get("precision", "float32")
    scaler = make_scaler(precision, device)
    wrapped = torch.compile(network) if options.get("compile") else network

    loss = Loss(1.0, options.get("dice", 0.0), descriptors=options.get("descriptors", 0.0))

    def step(number: int) -> None:
        given = batch
        if loss.descriptors:  # made in each step, as the loader's threads do
            described = np.empty((patches, *descriptor_sides(*label.shape[1:])), np.float32)
            for of_patch, out in zip(label, described, strict=True):
                shape_descriptors(of_patch, np.ones(of_patch.shape, bool), out)
            given = batch._replace(described=torch.from_numpy(described).to(device))
        train_step(
            wrapped, given, optimizer, step=number, loss=loss, precision=precision,
            pieces=options.get("pieces", 1), max_gradient_norm=options.get("max_gradient_norm"), scaler=scaler,
        )  # fmt: skip
        if average is not None:
            average.update()

    began = time.perf_counter()
    for number in range(SETTLED):
        step(number)
    start, taken = time.perf_counter(), 0
    while taken < 2 or time.perf_counter() - start < config.seconds:
        step(SETTLED + taken)
        taken += 1
    seconds = time.perf_counter() - start
    return {
        "steps_per_second": taken / seconds,
        "patches_per_second": taken * patches / seconds,
        "seconds_before": start - began,
        "peak_bytes": torch.cuda.max_memory_allocated() if config.use_gpu else peak_rss_bytes(),
    }


def main(arguments: list[str]) -> dict[str, Any]:
    """Measure and return the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="default")
    parser.add_argument("--base-channels", type=int)
    parser.add_argument("--depth", type=int)
    parser.add_argument("--patch-px", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--use-gpu", action="store_true")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement, at least")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=OPTIONS, help="contestants; plain always takes part")
    parser.add_argument("--measure", choices=OPTIONS, help=argparse.SUPPRESS)
    config = parser.parse_args(arguments)
    if config.measure:
        return measure(config)
    # float16 needs a GPU.
    chosen = [name for name in config.only or OPTIONS if name != "float16_channels_last" or config.use_gpu]
    chosen = ["plain", *(name for name in chosen if name != "plain")]
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in chosen}
    for _ in range(config.repeats):
        for name in chosen:
            command = [sys.executable, __file__, *arguments, "--measure", name]
            found = subprocess.run(command, capture_output=True, text=True, check=True)
            results[name].append(json.loads(found.stdout))
    rates = {name: [r["patches_per_second"] for r in repeats] for name, repeats in results.items()}
    return {
        "benchmark": "patches per second of a training step with one option, over the plain step's",
        "commit": commit(),
        "config": vars(config),
        "machine": machine(),
        "versions": versions(PACKAGES),
        "results": results,
        "medians": {name: float(np.median(values)) for name, values in rates.items()},
        "ratios": {name: median_ratio(rates[name], rates["plain"]) for name in chosen if name != "plain"},
    }


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1:]), indent=1))
