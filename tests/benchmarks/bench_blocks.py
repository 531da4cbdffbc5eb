"""Time what Ray adds to a block: the loop that the jobs share, beside a plain loop with the same reads and writes.

Run ``python tests/benchmarks/bench_blocks.py > record.json`` on a machine with nothing else to do, with some free
inodes: every block becomes a file, which is removed again. Blocks are 8 x 8 x 8 voxels, read from a zarr volume,
inverted, encoded as a shard and put, by the classes of storage that the jobs use. It prints as one JSON record:

- ``plain``: as many processes as workers, each with an equal share of the blocks, one stage after the other, no Ray.
- ``job``: `unet_ray.engine.blocks.run_blocks` on an embedded Ray, from the first block begun to the last one written
  (``seconds``), and the whole call (``call_seconds``, with the start of the actors; Ray's own start apart).
- ``overhead_ms_per_block``: (job - plain) / blocks, repeat by repeat; asked for is less than 2 ms.
- ``driver_peak_bytes``: memory of the driver with a tenth of the blocks and with all of them.

Contestants are processes of their own and take turns, repeat by repeat. It needs Linux.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from block_workers import InvertWorker, grid_of, make_volume
from process_memory import MemoryWatch
from record import commit, machine, versions

from unet_ray.engine.blocks import run_blocks, run_length
from unet_ray.engine.cluster import cluster, pool_size
from unet_ray.engine.process_memory import peak_rss_bytes
from unet_ray.geometry.block_set import BlockSet

HERE = Path(__file__).resolve().parent
PACKAGES = ("ray", "numpy", "zarr", "pyarrow")
SIZES = ("tenth", "all")
KEYS = ("seconds", "call_seconds")
Found = dict[str, Any]


def plain(config: argparse.Namespace) -> Found:
    """One process's share of the blocks, in a plain loop."""
    grid = grid_of(config.blocks, config.side)
    worker = InvertWorker(config.input, config.output, grid)
    blocks = range(config.share, grid.num_blocks, config.workers)
    print("ready", flush=True)
    sys.stdin.readline()  # the others are ready, too
    start = time.time()
    for block in blocks:
        worker.write(block, worker.encode(block, worker.compute(block, worker.read(block))))
    return {"started": start, "ended": time.time(), "peak_bytes": peak_rss_bytes()}


def job(config: argparse.Namespace) -> Found:
    """All blocks by `run_blocks`, in this process as the driver."""
    grid = grid_of(config.blocks, config.side)
    began, rows = time.perf_counter(), 0

    def on_row(row: Found) -> None:
        nonlocal rows
        rows += 1

    with cluster():
        workers = pool_size(config.workers, cpus_each=1)
        if workers < config.workers:
            raise SystemExit(f"--workers {config.workers} do not fit; the machine has {workers} CPUs")
        before, start = peak_rss_bytes(), time.perf_counter()
        outcome = run_blocks(
            partial(InvertWorker, config.input, config.output, grid),
            BlockSet(grid.num_blocks),
            workers=workers,
            cpus_each=1,
            run_length=run_length(grid.num_blocks, workers),
            stage="benchmark",
            on_row=on_row,
        )
        call = time.perf_counter() - start
        peak = peak_rss_bytes()
    if outcome.failures or outcome.written != grid.num_blocks or rows != grid.num_blocks:
        raise SystemExit(f"{outcome.written} of {grid.num_blocks} blocks were written, {rows} rows came back")
    return {
        "seconds": outcome.seconds,
        "call_seconds": call,
        "ray_start_seconds": start - began,
        "stage_seconds": outcome.stage_seconds,
        "peak_bytes": peak,
        "peak_bytes_before": before,
        "peak_worker_bytes": outcome.peak_worker_rss_bytes,
        "run_length": run_length(grid.num_blocks, workers),
    }


def turn(config: argparse.Namespace, arguments: list[str], name: str, blocks: int) -> Found:
    """One turn of a contestant; its output is removed again.

    Raises:
        SystemExit: it failed, or wrote less than all.
    """
    grid = grid_of(blocks, config.side)
    output = tempfile.mkdtemp(prefix="output-", dir=config.inputs)
    try:
        InvertWorker(f"{config.inputs}/{blocks}.zarr", output, grid).create()
        os.sync()  # what the last one wrote must not be written out in this one's time
        command = [
            sys.executable, __file__, *arguments, "--measure", name, "--blocks", str(blocks),
            "--input", f"{config.inputs}/{blocks}.zarr", "--output", output,
        ]  # fmt: skip
        found = (job_process if name == "job" else plain_processes)(command, config.workers)
        files = sum(len(names) for _, _, names in os.walk(f"{output}/0/c"))
        if files != grid.num_blocks:
            raise SystemExit(f"{name} wrote {files} of {grid.num_blocks} shards")
    finally:
        shutil.rmtree(output)
    return found | {"blocks": grid.num_blocks, "ms_per_block": found["seconds"] * 1000 / grid.num_blocks}


def plain_processes(command: list[str], workers: int) -> Found:
    """The plain loop in as many processes as there are workers."""
    shares = [
        subprocess.Popen([*command, "--share", str(n)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for n in range(workers)
    ]
    for process in shares:
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            raise SystemExit(f"{' '.join(command)} failed")
    for process in shares:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    found = [json.loads(process.communicate()[0]) for process in shares]
    seconds = max(each["ended"] for each in found) - min(each["started"] for each in found)
    return {"seconds": seconds, "peak_bytes": max(each["peak_bytes"] for each in found)}


def job_process(command: list[str], workers: int) -> Found:
    """`job` in a process whose memory is watched; Ray's workers find the module of theirs beside this one."""
    kept = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    paths = os.pathsep.join([str(HERE), str(HERE.parents[1])])
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**kept, "PYTHONPATH": paths})
    with MemoryWatch(lambda pid, said: "driver" if pid == process.pid else None) as watch:
        watch.add(process.pid)
        out, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed")
    found: Found = json.loads(out.splitlines()[-1])
    return found | {"driver_memory": watch.summary().get("driver")}


def main(arguments: list[str]) -> Found:
    """Measure and return the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=100_000, help="at least; the grid is rounded up")
    parser.add_argument("--side", type=int, default=8, help="of a block, voxels")
    parser.add_argument("--workers", type=int, default=2, help="of one CPU each")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", help="where volume and shards are made and removed again")
    for hidden in ("--measure", "--input", "--output"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    parser.add_argument("--share", type=int, help=argparse.SUPPRESS)
    config = parser.parse_args(arguments)
    if config.measure:
        return job(config) if config.measure == "job" else plain(config)
    blocks = dict(zip(SIZES, (max(1, config.blocks // 10), config.blocks), strict=True))
    results: dict[str, list[Found]] = {f"{name}_{size}": [] for size in SIZES for name in ("plain", "job")}
    with tempfile.TemporaryDirectory(dir=config.folder) as config.inputs:
        for count in set(blocks.values()):
            make_volume(f"{config.inputs}/{count}.zarr", grid_of(count, config.side))
        for repeat in range(config.repeats):
            for size in SIZES:
                for name in ("plain", "job"):
                    found = turn(config, arguments, name, blocks[size])
                    results[f"{name}_{size}"].append(found)
                    told = f"{found['blocks']} blocks, {found['ms_per_block']:.3g} ms each"
                    print(f"repeat {repeat + 1} of {config.repeats}: {name}: {told}", file=sys.stderr)
    memory = {size: [found["peak_bytes"] for found in results[f"job_{size}"]] for size in SIZES}
    return {
        "benchmark": "what Ray adds to a block, over a plain loop with the same reads, computing and writes",
        "commit": commit(),
        "config": vars(config),
        "machine": machine(),
        "versions": versions(PACKAGES),
        "results": results,
        "ms_per_block": {
            name: statistics.median(found["ms_per_block"] for found in each) for name, each in results.items()
        },
        "overhead_ms_per_block": {
            size: {key: overhead(results[f"job_{size}"], results[f"plain_{size}"], key) for key in KEYS}
            for size in SIZES
        },
        "driver_peak_bytes": memory,
        "driver_peak_all/tenth": statistics.median(memory["all"]) / statistics.median(memory["tenth"]),
    }


def overhead(ours: list[Found], theirs: list[Found], key: str) -> Found:
    """(job - plain) / blocks in ms, repeat by repeat, and the median of these."""
    repeats = [(a[key] - b["seconds"]) * 1000 / a["blocks"] for a, b in zip(ours, theirs, strict=True)]
    return {"median": statistics.median(repeats), "repeats": repeats}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1:])))
