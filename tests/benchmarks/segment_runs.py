"""The segment job as a real process, and what it is held against: the network alone, and a loop of whole sections."""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from process_memory import MemoryWatch
from segment_inputs import MODEL, TIFF, ZARR, job_of, limit_memory, precision, threads

from unet_ray.config.network import layers
from unet_ray.engine.process_memory import keep_freed_memory, peak_rss_bytes
from unet_ray.geometry.box import Box
from unet_ray.geometry.receptive_field import legal_output_sides, margin_px
from unet_ray.network.model_file import decode
from unet_ray.network.unet import network_input

ROOT = Path(__file__).resolve().parents[2]
SETTLED = 2


def passes_per_second(work: Callable[[int], object], seconds: float, *, use_gpu: bool) -> tuple[float, float]:
    """Calls per second of ``work(number)`` for at least ``seconds``, and the seconds before the rate settled."""

    def settle() -> float:
        if use_gpu:
            torch.cuda.synchronize()
        return time.perf_counter()

    began = settle()
    for number in range(SETTLED):
        work(number)
    start, taken = settle(), 0
    while taken < 2 or time.perf_counter() - start < seconds:
        work(taken)
        taken += 1
    return taken / (settle() - start), start - began


def limit(config: argparse.Namespace, folder: str, *, keep_memory: bool, cropped: bool) -> dict[str, Any]:
    """Voxels per second of the network alone, over tiles of the job's plan that lie in memory as it takes them.

    Cropped: to the tile, by layers that do not compute all of the rest.
    A pass counts as the voxels that the job writes per tile: what tiles overhang the volume is charged to both.
    """
    if keep_memory:
        keep_freed_memory()
    job, chosen = job_of(config, folder), precision(config)
    predictor = job.predictor(chosen)
    dtype, crop = next(predictor.network.parameters()).dtype, job.crop if cropped else 0
    tiles = job.layout.blocks.tiles
    step = max(1, tiles.num_tiles // config.limit_tiles)
    windows = [
        network_input(torch.from_numpy(job.read(tiles.read_box(tile))[None])).to(predictor.device, dtype)
        for tile in range(0, tiles.num_tiles, step)
    ]
    print("ready", flush=True)
    sys.stdin.readline()  # the others are ready, too
    with torch.inference_mode():
        rate, before = passes_per_second(
            lambda number: predictor.network(windows[number % len(windows)], crop), config.seconds,
            use_gpu=config.use_gpu,
        )  # fmt: skip
    written = Box.of_shape(tiles.volume).voxels / tiles.num_tiles
    return {
        "voxels_per_second": rate * written,
        "seconds_before": before,
        "tile_px": tiles.tile[2],
        "precision": chosen,
        "peak_bytes": torch.cuda.max_memory_allocated() if config.use_gpu else peak_rss_bytes(),
    }


def whole_sections(config: argparse.Namespace, folder: str) -> dict[str, Any]:
    """Voxels per second of a plain loop: read a section, one forward pass over it, write it to a zarr array.

    As anybody would write it: a network with zero padding gets no halo, which is less to compute, but then within a
    halo of the section's edge it tells something else than the job. The first section warms up where there are more.
    """
    limit_memory(config)
    job = job_of(config, folder)
    predictor = job.predictor(precision(config))
    network = decode(job.model)[0]
    margin, context = margin_px(layers(network)), (network.in_channels - 1) // 2
    depth, height, width = job.volume.shape
    bottom, right = (next(legal_output_sides(layers(network), at_least=side)) + margin for side in (height, width))
    shape, chunks = (depth, height, width), (1, min(256, height), min(256, width))
    arrays = [
        zarr.create_array(f"{folder}/whole-{name}.zarr", shape=shape, chunks=chunks, dtype="uint8", overwrite=True)
        for name in ("probability", "mask")
    ]
    marks = []
    for z in range(min(depth, config.whole_sections)):
        marks.append(time.perf_counter())
        window = job.read(Box((z - context, -margin, -margin), (z + context + 1, bottom, right)))
        found = np.rint(predictor(window[None])[0, :height, :width] * 255).astype(np.uint8)
        for array, values in zip(arrays, (found, found > config.threshold * 255), strict=True):
            array[z] = values
    marks.append(time.perf_counter())
    first = 1 if len(marks) > 2 else 0
    seconds = marks[-1] - marks[first]
    return {
        "voxels_per_second": (len(marks) - 1 - first) * height * width / seconds,
        "sections": len(marks) - 1,
        "peak_bytes": torch.cuda.max_memory_allocated() if config.use_gpu else peak_rss_bytes(),
    }


def job_run(config: argparse.Namespace, folder: str, output: str, *, tiff: bool) -> dict[str, Any]:
    """``jobs/segment.py`` from zarr to OME-Zarr, or from TIFF to TIFF (and the OME-Zarr that it takes it from).

    Returns:
        ``voxels_per_second`` from the first block begun to the last one written, and ``whole_voxels_per_second`` of
        the whole command; ``wall_seconds`` = ``import_seconds`` (until the engine begins, and after it ends) +
        ``startup_seconds`` (Ray, actors, seam probe) + ``block_seconds`` + ``after_seconds`` (pyramid, TIFF, Ray's
        end).

    Raises:
        SystemExit: it did not end well; says what it printed.
    """
    command = [
        sys.executable, str(ROOT / "jobs" / "segment.py"), "--volume", f"{folder}/{TIFF if tiff else ZARR}",
        "--model", f"{folder}/{MODEL}", "--output", output, "--tile-px", str(config.tile_px),
        "--precision", config.precision, "--threshold", str(config.threshold), "--workers", str(config.workers),
        "--threads", str(threads(config)), "--use-gpu" if config.use_gpu else "--no-use-gpu",
        *(["--tiff", f"{output}.mask.tif"] if tiff else []),
    ]  # fmt: skip
    kept = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    os.sync()  # what the last one wrote must not be written out in this one's time
    began = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        env={**kept, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip

    def role(pid: int, said: str) -> str:
        if pid == process.pid:
            return "driver"
        return "worker" if said.startswith("ray::MapWorker") else "other_ray_processes"

    with MemoryWatch(role) as watch:
        watch.add(process.pid)
        out, errors = process.communicate()
    wall = time.perf_counter() - began
    if process.returncode:
        raise SystemExit(f"jobs/segment.py ended with {process.returncode}: {errors[-2000:]}")
    summary = json.loads(out.splitlines()[-1])
    blocks = summary["voxels"] / summary["voxels_per_second"]
    return {
        "voxels_per_second": summary["voxels_per_second"],
        "whole_voxels_per_second": summary["voxels"] / wall,
        "wall_seconds": wall,
        "import_seconds": wall - summary["seconds"],
        "startup_seconds": summary["startup_seconds"],
        "block_seconds": blocks,
        "after_seconds": summary["seconds"] - summary["startup_seconds"] - blocks,
        "summary": summary,
        "memory": watch.summary(),
    }
