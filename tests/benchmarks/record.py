"""What every record of a benchmark holds: what was measured, where, and how long each repeat took."""

import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any


def commit() -> str | None:
    """Return the checkout's commit, with ``-dirty`` where files differ from it; None outside one."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--abbrev=40", "--dirty"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.strip() if found.returncode == 0 else None


def version(package: str) -> str | None:
    """Return a package's version, None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def versions(packages: Iterable[str]) -> dict[str, str | None]:
    """Return the versions of Python and of ``packages``."""
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def machine() -> dict[str, Any]:
    """Return processor, cores, memory and system, and how busy others kept the machine in the last minute."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        processor = platform.processor()
    return {
        "processor": processor,
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.platform(),
        "load_before": os.getloadavg()[0],
    }


def timed(work: Callable[[], object], repeats: int) -> dict[str, list[float]]:
    """Wall-clock and processor seconds of each repeat, after one run to warm up."""
    work()
    wall, cpu = [], []
    for _ in range(repeats):
        start = time.perf_counter(), time.process_time()
        work()
        wall.append(time.perf_counter() - start[0])
        cpu.append(time.process_time() - start[1])
    return {"seconds": wall, "cpu_seconds": cpu}


def median_ratio(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
    """Return ours / theirs, repeat by repeat and the median of these.

    The two were measured in turn, so that what slows the machine for a while slows both of a pair.
    """
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    return {"median": statistics.median(ratios), "repeats": ratios}
