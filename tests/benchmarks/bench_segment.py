"""Time segmentation: the job beside the network alone, a loop of whole sections, and MONAI's inferers.

Run ``python tests/benchmarks/bench_segment.py --volume stack.tif > record.json`` on a machine with nothing else to do;
without a volume it takes the phantom. Weights, volume, tile plan and precision are the same for all; the rates are
written voxels per second. It measures, and prints as one JSON record:

- ``limit``, ``limit_kept_memory`` and ``limit_cropped``: the network in a bare loop over tiles of the job's plan that
  lie in memory as the network takes them; the second keeps freed memory in the process, as the job may do, and the
  third also spares what a tile does not need of its window, as the job does. As many processes side by side as the job
  has workers.
- ``whole_sections``: a plain loop that reads a section, computes it in one piece and writes it to zarr; with its error
  where the memory does not suffice.
- ``job_zarr`` and ``job_tiff``: ``jobs/segment.py``, a real process, from zarr to OME-Zarr, and from TIFF to TIFF: from
  the first block begun to the last one written, and the whole command; memory of driver and workers.
- ``--peers``: MONAI's SlidingWindowInferer and PatchInferer on ``--peer-mvoxels`` of the volume (`segment_peers`). They
  run under ``--peer-python``, an interpreter of an environment with torch, monai, zarr, pydantic and safetensors.
- ``forward``: the forward pass alone with each option (`forward_options`), over the plain one.

Each contestant is a process of its own; they take turns, repeat by repeat. It needs Linux: it reads /proc.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from forward_options import CONTESTANTS, contestant, forward, possible
from record import commit, machine, median_ratio, versions
from segment_inputs import MODEL, PART, add_flags, make_inputs, threads
from segment_peers import NOTES, PEERS
from segment_runs import ROOT, job_run, limit, whole_sections

PACKAGES = ("torch", "ray", "numpy", "zarr", "tifffile")
PARTS = ("job", "forward")
LIMITS = ("limit", "limit_kept_memory", "limit_cropped")
JOBS = ("job_zarr", "job_tiff")
Found = dict[str, Any]


def measure(config: argparse.Namespace) -> Found:
    """What a process of a contestant's own does."""
    name = config.measure
    if name in LIMITS:
        return limit(config, config.inputs, keep_memory=name != "limit", cropped=name == "limit_cropped")
    if name == "whole_sections":
        return whole_sections(config, config.inputs)
    return forward(config, name)


def child(command: list[str], environment: dict[str, str] | None = None) -> Found:
    """What a process prints as JSON, or its error."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["nothing on stderr"]
        return {"error": f"ended with {done.returncode}: {said[-1][:500]}"}
    found: Found = json.loads(done.stdout.splitlines()[-1])
    return found


def side_by_side(command: list[str], processes: int) -> Found:
    """Several processes that begin together when all are ready; rate of all together.

    Raises:
        SystemExit: one of them failed.
    """
    started = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(processes)
    ]
    for process in started:
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            raise SystemExit(f"{' '.join(command)} failed")
    for process in started:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    found = [json.loads(process.communicate()[0]) for process in started]
    return found[0] | {"voxels_per_second": sum(each["voxels_per_second"] for each in found)}


def peer(config: argparse.Namespace, folder: str, name: str) -> Found:
    """One turn of a peer."""
    command = [
        config.peer_python, str(Path(__file__).with_name("segment_peers.py")), name, "--model", f"{folder}/{MODEL}",
        "--grey", f"{folder}/{PART}", "--threads", str(config.workers * threads(config)), "--roi",
        str(config.peer_roi), "--device", "cuda" if config.use_gpu else "cpu",
    ]  # fmt: skip
    return child(command, {**os.environ, "PYTHONPATH": str(ROOT)})


def job(config: argparse.Namespace, folder: str, name: str, expected: Found) -> Found:
    """One turn of the job; its output is removed again.

    Raises:
        SystemExit: it computed otherwise than the limit that it is held against.
    """
    output = tempfile.mkdtemp(prefix="output-", dir=folder)
    try:
        found = job_run(config, folder, f"{output}/out.zarr", tiff=name == "job_tiff")
    finally:
        shutil.rmtree(output)
    for key in ("precision", "tile_px"):
        if found["summary"][key] != expected[key]:
            raise SystemExit(
                f"the job took {key} {found['summary'][key]}, the limit {expected[key]}; pass --{key.replace('_', '-')}"
            )
    return found


def turns(makers: dict[str, Callable[[], Found]], repeats: int) -> dict[str, list[Found]]:
    """All contestants in turn, repeat by repeat; one that fails takes no further turn."""
    results: dict[str, list[Found]] = {name: [] for name in makers}
    for repeat in range(repeats):
        for name, make in makers.items():
            if not any("error" in found for found in results[name]):
                results[name].append(make())
                told = results[name][-1]
                rate = told.get("error") or f"{told['voxels_per_second'] / 1e6:.3g} Mvox/s"
                print(f"repeat {repeat + 1} of {repeats}: {name}: {rate}", file=sys.stderr)
    return results


def rates_of(results: dict[str, list[Found]]) -> dict[str, list[float]]:
    """Rate of every repeat of the contestants that did not fail; jobs have two."""
    rates = {
        name: [found["voxels_per_second"] for found in each]
        for name, each in results.items()
        if not any("error" in found for found in each)
    }
    return rates | {
        f"{name}_whole_command": [found["whole_voxels_per_second"] for found in results[name]]
        for name in JOBS
        if name in results
    }


def ratios_of(rates: dict[str, list[float]]) -> Found:
    """The job over each of the others, in its steady state and as a whole command."""
    jobs = [name for name in rates if name.startswith("job_")]
    return {
        f"{ours}/{theirs}": median_ratio(rates[ours], rates[theirs])
        for theirs in rates
        if theirs not in jobs
        for ours in jobs
    }


def summary(record: Found) -> Found:
    """The figures that the targets are about: medians of ratios, start-up, and memory."""
    results = record["results"]
    ratios = {name: each["median"] for name, each in record["ratios"].items()}
    monai = [name for name in record["medians"] if name.startswith("monai")]
    found: Found = {name: ratio for name, ratio in ratios.items() if "/monai" not in name}
    if monai:
        fastest = max(monai, key=lambda name: record["medians"][name])
        found |= {"fastest_peer": fastest, "job_zarr/fastest_peer": ratios[f"job_zarr/{fastest}"]}
    for name in JOBS:
        for key in ("startup_seconds", "import_seconds", "after_seconds"):
            found[f"{name}_{key}"] = float(np.median([each[key] for each in results[name]]))
        for role in ("driver", "worker"):
            peaks = [one["peak_bytes"] for each in results[name] for one in each["memory"].get(role, [])]
            found[f"{name}_peak_{role}_bytes"] = max(peaks, default=None)
    return found


def main(arguments: list[str]) -> Found:
    """Measure and return the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="job: it and what it is held against")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each turn of a limit or a forward pass")
    parser.add_argument("--limit-tiles", type=int, default=16, help="that the bare loop holds in memory")
    parser.add_argument("--whole-sections", type=int, default=3, help="of the plain loop; 0: none")
    parser.add_argument("--peers", action="store_true", help="measure MONAI, too")
    parser.add_argument("--peer-python", default=sys.executable, help="interpreter that has MONAI")
    parser.add_argument("--peer-mvoxels", type=float, default=8.0)
    parser.add_argument("--peer-roi", type=int, default=512, help="side of their window, pixels")
    parser.add_argument(
        "--only", nargs="+", type=contestant, default=CONTESTANTS,
        help="forward passes, options joined by +; plain always takes part",
    )  # fmt: skip
    parser.add_argument("--folder", help="where volume and outputs are made and removed again")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--inputs", help=argparse.SUPPRESS)
    config = parser.parse_args(arguments)
    if config.measure:
        return measure(config)
    record: Found = {
        "benchmark": "written voxels per second of segmentation",
        "commit": commit(),
        "config": vars(config),
        "machine": machine(),
        "versions": versions(PACKAGES),
    }

    def alone(name: str, folder: str = "") -> list[str]:
        return [sys.executable, __file__, *arguments, "--measure", name, "--inputs", folder]

    if "job" in config.parts:
        with tempfile.TemporaryDirectory(dir=config.folder) as folder:
            record["plan"] = make_inputs(config, folder)
            record |= against_the_job(config, folder, lambda name: alone(name, folder))
            record["summary"] = summary(record)
    if "forward" in config.parts:
        device = "cuda" if config.use_gpu else "cpu"
        chosen = ["plain", *(name for name in config.only if name != "plain" and possible(name, device))]
        results = turns({name: partial(child, alone(name)) for name in chosen}, config.repeats)
        rates = rates_of(results)
        record["forward"] = {
            "results": results,
            "medians": {name: float(np.median(values)) for name, values in rates.items()},
            "ratios": {name: median_ratio(rates[name], rates["plain"]) for name in rates if name != "plain"},
        }
    return record


def against_the_job(config: argparse.Namespace, folder: str, alone: Callable[[str], list[str]]) -> Found:
    """Results, medians and ratios of the job and all that it is held against."""
    expected: Found = {}

    def limited(name: str) -> Found:
        expected.update(found := side_by_side(alone(name), config.workers))
        return found

    makers: dict[str, Callable[[], Found]] = {name: partial(limited, name) for name in LIMITS}
    if config.whole_sections:
        makers["whole_sections"] = partial(child, alone("whole_sections"))
    if config.peers:
        makers |= {name: partial(peer, config, folder, name) for name in PEERS}
    makers |= {name: partial(job, config, folder, name, expected) for name in JOBS}
    results = turns(makers, config.repeats)
    rates = rates_of(results)
    return {
        "results": results,
        "medians": {name: float(np.median(values)) for name, values in rates.items()},
        "ratios": ratios_of(rates),
        **({"notes": NOTES} if config.peers else {}),
    }


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1:])))
