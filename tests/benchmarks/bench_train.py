"""Time training: the whole job beside the same step in a bare loop, and two workers beside one.

Run ``python tests/benchmarks/bench_train.py --cache cache.zarr > record.json`` on a machine with nothing else to do.
It prints steps per second, every repeat of them, as one JSON record:

- ``bare``: `unet_ray.network.step.train_step` in a plain loop on one batch that stays in memory; no loader, no Ray.
- ``job``: ``jobs/train.py`` with one worker on the whole cache: loading, rows, progress. From the end of its
  `SETTLED`-th step to the end of its last one, so start-up, validation and the last checkpoint stand apart.
- ``two``: the same with two workers, which share the threads.

Contestants take turns, repeat by repeat.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record import commit, machine, median_ratio, versions

from unet_ray.config.network import network_config
from unet_ray.engine.patch_loader import PatchLoader
from unet_ray.engine.train_worker import batch_of
from unet_ray.network.predict import fast_layout, hardware_precision
from unet_ray.network.step import make_optimizer, train_step
from unet_ray.network.unet import new_network
from unet_ray.storage.patch_cache import PatchCache

JOB = Path(__file__).resolve().parents[2] / "jobs" / "train.py"
SETTLED = 10
PACKAGES = ("torch", "ray", "numpy", "zarr")


def bare(config: argparse.Namespace) -> dict[str, Any]:
    """Steps per second of the step alone."""
    torch.set_num_threads(config.threads)
    device = torch.device("cuda" if config.use_gpu else "cpu")
    precision = hardware_precision(device) if config.precision == "auto" else config.precision
    loader = PatchLoader(
        PatchCache(config.cache), batch_size=config.batch_size, seed=0, rank=0, world_size=1, random_dihedral=False
    )
    batch = batch_of(next(loader.epoch(0)), weighted=False).to(device)
    settings = network_config(config.preset, base_channels=config.base_channels, depth=config.depth)
    network = new_network(settings, 0).to(device).to(memory_format=fast_layout(device, precision))
    optimizer = make_optimizer(network, "adamw", 1e-3)
    for step in range(SETTLED):
        train_step(network, batch, optimizer, step=step, precision=precision)
    start = time.perf_counter()
    for step in range(config.steps):
        train_step(network, batch, optimizer, step=step, precision=precision)
    return {"steps_per_second": config.steps / (time.perf_counter() - start), "precision": precision}


def job(config: argparse.Namespace, workers: int) -> dict[str, Any]:
    """Steps per second of the job, and its seconds before the first step and in all."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, str(JOB), "--cache", config.cache, "--run", f"{folder}/run", "--epochs", "1",
            "--batch-size", str(config.batch_size), "--workers", str(workers), "--threads",
            str(max(1, config.threads // workers)), "--precision", config.precision, "--preset", config.preset,
            "--use-gpu" if config.use_gpu else "--no-use-gpu",
        ]  # fmt: skip
        for flag, value in (("--base-channels", config.base_channels), ("--depth", config.depth)):
            command += [] if value is None else [flag, str(value)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stderr)
        rows = [json.loads(line) for line in Path(folder, "run", "metrics.jsonl").read_text().splitlines()]
        summary = json.loads(done.stdout.splitlines()[-1])
    ended = [row["ended"] for row in rows if row["event"] == "step"]
    return {
        "steps_per_second": (len(ended) - 1 - SETTLED) / (ended[-1] - ended[SETTLED]),
        "steps": len(ended),
        "in_steps_share": sum(r["seconds"] for r in rows[SETTLED + 1 :] if r["event"] == "step")
        / (ended[-1] - ended[SETTLED]),
        "startup_seconds": summary["startup_seconds"],
        "seconds": summary["seconds"],
    }


def main(arguments: list[str]) -> dict[str, Any]:
    """Measure and return the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", required=True, help="complete patch cache, of some hundred steps")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--preset", default="default")
    parser.add_argument("--base-channels", type=int)
    parser.add_argument("--depth", type=int)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--threads", type=int, default=2, help="of the bare loop, and of all workers together")
    parser.add_argument("--use-gpu", action="store_true")
    parser.add_argument("--steps", type=int, default=100, help="of the bare loop")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--bare", action="store_true", help=argparse.SUPPRESS)
    config = parser.parse_args(arguments)
    if config.bare:
        return bare(config)
    results: dict[str, list[dict[str, Any]]] = {"bare": [], **{f"job_{n}": [] for n in config.workers}}
    for _ in range(config.repeats):
        alone = [sys.executable, __file__, *arguments, "--bare"]
        results["bare"].append(json.loads(subprocess.run(alone, capture_output=True, text=True, check=True).stdout))
        for workers in config.workers:
            results[f"job_{workers}"].append(job(config, workers))
    rates = {name: [r["steps_per_second"] for r in repeats] for name, repeats in results.items()}
    first = f"job_{config.workers[0]}"
    return {
        "benchmark": "steps per second of training: the job beside a bare loop of the same step",
        "commit": commit(),
        "config": vars(config),
        "machine": machine(),
        "versions": versions(PACKAGES),
        "results": results,
        "medians": {name: float(np.median(values)) for name, values in rates.items()},
        "ratios": {
            f"{first}/bare": median_ratio(rates[first], rates["bare"]),
            **{f"job_{n}/{first}": median_ratio(rates[f"job_{n}"], rates[first]) for n in config.workers[1:]},
        },
    }


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1:]), indent=1))
