"""Where and by what a run was made, in words that a report can show."""

import os
import platform
import shlex
import sys
from collections import Counter
from pathlib import Path

import ray

from unet_ray.engine.same_code import own_code, version_of

LIBRARIES = ("ray", "torch", "numpy", "scipy", "zarr")


def command_line() -> str:
    """The command of this process, as a shell takes it."""
    return shlex.join(["python", *sys.argv])


def versions() -> str:
    """Of Python, of this package's code, and of what else decides results and speed."""
    ours = f"unet_ray {version_of('unet_ray') or 'without a version'} (code {own_code()})"
    return ", ".join(
        [f"Python {platform.python_version()}", ours, *(f"{name} {version_of(name)}" for name in LIBRARIES)]
    )


def hardware() -> str:
    """Of the cluster that is joined, and the processor of this process."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    totals: Counter[str] = Counter()
    for node in nodes:
        totals.update({name: int(node.get(name, 0)) for name in ("CPU", "GPU", "memory")})
    kinds = sorted({name.partition(":")[2] for node in nodes for name in node if name.startswith("accelerator_type:")})
    gpus = f", {totals['GPU']} GPUs ({', '.join(kinds)})" if totals["GPU"] else ", no GPU"
    memory = f", {totals['memory'] / 1e9:.0f} GB of memory for Ray"
    return f"{_count(len(nodes), 'node')}: {_count(totals['CPU'], 'CPU')}{gpus}{memory}; driver on {_processor()}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _processor() -> str:
    """Name of this machine's processor, where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()} ({_count(os.cpu_count() or 1, 'CPU')})"
