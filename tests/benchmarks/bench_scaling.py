"""Time the loop over blocks on one, two and three hosts, and what its driver does for very many blocks.

Run ``python tests/benchmarks/bench_scaling.py > record.json`` on Linux as root with nothing else to do: hosts are
namespaces of this machine (tests/cluster/hosts.py) with one CPU of Ray's each. Their network is a sleep, and everything
else is real: the storage, Ray Data over several nodes, the driver on the head. It prints as one JSON record:

- ``hosts``: for each number of hosts the seconds from the first block begun to the last one written.
- ``efficiency``: of n hosts, (seconds of one host) / (n x seconds of n hosts); asked for is 0.95.
- ``plan``: for few and for many blocks the seconds until the first block is begun, on an embedded Ray; their
  difference is the planning, and asked for is less than 10 s for a million blocks. ``choose_seconds`` is what a
  segmentation does before: choosing all blocks and counting their voxels three times.
- ``driver``: processor microseconds of the driver per block where blocks take no time, and blocks per second then.
"""

import argparse
import contextlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "cluster"))

from block_workers import IdleWorker, SleepingWorker, grid_of, make_volume
from hosts import Hosts, hosts_with_ray
from record import commit, machine, versions

from unet_ray.engine.blocks import run_blocks, run_length
from unet_ray.engine.cluster import cluster
from unet_ray.geometry.block_set import BlockSet
from unet_ray.geometry.box import Box
from unet_ray.geometry.tiles import BlockGrid, TileGrid

HERE = Path(__file__).resolve().parent
# Where Ray's workers find the modules beside this one.
PATHS = os.pathsep.join([str(HERE), str(HERE.parents[1])])
PACKAGES = ("ray", "numpy", "zarr")
Found = dict[str, Any]


class BegunError(Exception):
    """The first block is done."""


def on_hosts(config: argparse.Namespace) -> Found:
    """The driver, on the head: all blocks, on all hosts."""
    grid = grid_of(config.blocks, 8)
    with cluster():
        outcome = run_blocks(
            partial(SleepingWorker, config.input, config.output, grid, config.seconds),
            BlockSet(grid.num_blocks),
            workers=config.count,
            cpus_each=1,
            run_length=run_length(grid.num_blocks, config.count, config.seconds),
            stage="benchmark",
        )
    assert outcome.written == grid.num_blocks, outcome.failures
    return {"seconds": outcome.seconds, "blocks": outcome.written, "blocks_by_host": dict(outcome.counts)}


def at_once(hosts: Hosts, config: argparse.Namespace, count: int) -> Found:
    """One turn on so many hosts."""
    folder = Path(tempfile.mkdtemp(dir=hosts.folder))
    grid = grid_of(config.blocks, 8)
    make_volume(f"{folder}/in.zarr", grid)
    SleepingWorker(f"{folder}/in.zarr", f"{folder}/out", grid, 0).create()
    code, said = hosts.head.run(
        sys.executable, __file__, "--measure", "hosts", "--blocks", str(config.blocks),
        "--seconds", str(config.seconds),
        "--count", str(count), "--input", f"{folder}/in.zarr", "--output", f"{folder}/out",
        timeout=600, cwd=hosts.folder, RAY_ADDRESS=hosts.gcs, PYTHONPATH=PATHS,
    )  # fmt: skip
    if code != 0:
        raise SystemExit(said)
    found: Found = json.loads(said.splitlines()[-1])
    return found


def until_begun(blocks: int) -> Found:
    """Seconds until the first block is begun."""
    started = time.time()
    begun = []

    def first(row: Found) -> None:
        begun.append(row["started"])
        raise BegunError

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with contextlib.suppress(BegunError):
        run_blocks(
            IdleWorker, BlockSet(blocks), workers=1, cpus_each=1, run_length=run_length(blocks, 1), stage="benchmark",
            on_row=first,
        )  # fmt: skip
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {"blocks": blocks, "seconds": begun[0] - started, "driver_grew_bytes": grown * 1024}


def choose(blocks: int) -> Found:
    """What a segmentation does with its blocks before."""
    side = max(1, round(blocks ** (1 / 3)))
    grid = BlockGrid(TileGrid((side, side * 512, side * 512), (1, 512, 512), (0, 94, 94)), (1, 1, 1))
    start = time.perf_counter()
    chosen = BlockSet(grid.num_blocks)
    for run in grid.runs_touching(Box.of_shape(grid.tiles.volume)):
        chosen.add_run(*run)
    for _ in range(3):
        grid.voxels_of(chosen)
    return {"blocks": grid.num_blocks, "choose_seconds": time.perf_counter() - start}


def driver(blocks: int) -> Found:
    """What the driver does for a block that takes no time."""
    cpu = time.process_time()
    outcome = run_blocks(
        IdleWorker, BlockSet(blocks), workers=1, cpus_each=1, run_length=run_length(blocks, 1), stage="benchmark",
    )  # fmt: skip
    spent = time.process_time() - cpu
    return {
        "blocks": blocks,
        "run_length": run_length(blocks, 1),
        "cpu_microseconds_per_block": spent / blocks * 1e6,
        "cpu_milliseconds_per_run": spent / blocks * run_length(blocks, 1) * 1e3,
        "blocks_per_second": blocks / outcome.seconds,
    }


def alone(config: argparse.Namespace) -> Found:
    """What is measured of the driver on an embedded Ray."""
    with cluster():
        few, many = until_begun(1000), until_begun(config.plan_blocks)
        by_driver = driver(config.driver_blocks)
    plan = {"until_begun": [few, many], "seconds": many["seconds"] - few["seconds"], **choose(config.plan_blocks)}
    return {"plan": plan, "driver": by_driver}


def main(arguments: list[str]) -> Found:
    """Measure and return the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=240, help="at least; the grid is rounded up")
    parser.add_argument("--seconds", type=float, default=0.5, help="that a block's network sleeps")
    parser.add_argument("--hosts", type=int, nargs="*", default=[1, 2, 3])
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--plan-blocks", type=int, default=1_000_000)
    parser.add_argument("--driver-blocks", type=int, default=50_000)
    for hidden in ("--measure", "--input", "--output"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    parser.add_argument("--count", type=int, help=argparse.SUPPRESS)
    config = parser.parse_args(arguments)
    if config.measure:
        return on_hosts(config) if config.measure == "hosts" else alone(config)
    results: dict[int, list[Found]] = {}
    for count in config.hosts:
        with hosts_with_ray(count) as hosts:
            results[count] = [at_once(hosts, config, count) for _ in range(config.repeats)]
        print(f"{count} hosts: {results[count]}", file=sys.stderr)
    seconds = {count: statistics.median(turn["seconds"] for turn in turns) for count, turns in results.items()}
    kept = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    command = [sys.executable, __file__, *arguments, "--measure", "alone"]
    measured = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env={**kept, "PYTHONPATH": PATHS})
    return {
        "benchmark": "the loop over blocks on several hosts, and its driver",
        "commit": commit(),
        "config": vars(config),
        "machine": machine(),
        "versions": versions(PACKAGES),
        "hosts": results,
        "efficiency": {count: seconds[1] / (count * took) for count, took in seconds.items()},
        **json.loads(measured.stdout.splitlines()[-1]),
    }


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1:])))
