"""Time augmentation: the notebook's list by others and by us, in memory, and the whole job beside a plain loop.

Run ``python tests/benchmarks/bench_augment.py --peers --images I.tif --labels L.tif > record.json``. Without paths it
takes sections of the phantom. It measures, and prints as one JSON record:

- ``pairs``: image/label pairs per second in memory on one core, and on all of them with one process pinned to each.
  Every process has one thread. Contestants and what they do differently: `contestants`.
- ``breakdown``: seconds per patch of each part of ours, on one core.
- ``interpolation``: how far our values, and those of the peers' samplers, are from SciPy's in float64.
- ``cache``: patches per second of the job, and of plain loops without Ray that do all that it does (augmentation,
  weight map, encoding, writing), from the first patch begun to the last one written; start-up, the whole time and the
  memory of every process stand beside it.

Contestants take turns, repeat by repeat. It needs Linux: it pins processes to cores and reads /proc.
"""

import argparse
import contextlib
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any

from augment_parts import breakdown, interpolation
from cache_runs import WAYS, cache_runs
from contestants import CONTESTANTS, NOTES, PEERS, Sections, available
from pinned import start
from record import commit, machine, median_ratio, versions
from stacks import add_flags, read, stacks

PACKAGES = (
    "numpy", "scipy", "numba", "zarr", "ray", "torch", "albumentations", "opencv-python-headless", "monai",
    "batchgeneratorsv2",
)  # fmt: skip
PARTS = ("pairs", "breakdown", "interpolation", "cache")
# Read when the libraries are loaded, so they stand before a process is spawned.
ONE_THREAD = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
WARM_UP = 4  # pairs, twice
# The approximate one stands in the record, too, but makes less than the list asks for.
RIVALS = [name for name in PEERS if name != "albumentations_approximate"]


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Processes that are spawned within have one thread each."""
    before = dict(os.environ)
    os.environ.update(dict.fromkeys(ONE_THREAD, "1"))
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


class Contestant:
    """The processes of one contestant, one pinned to each core, waiting for their turn."""

    def __init__(self, name: str, images: Sections, labels: Sections, cores: Sequence[int]) -> None:
        self.name = name
        self._ends = [start(_serve, core, name, images, labels, n)[1] for n, core in enumerate(cores)]

    def settle(self, seconds: float) -> None:
        """Find how many pairs take about ``seconds``; the first turns also warm up."""
        for end in self._ends:
            end.recv()  # it is ready
        self.count = WARM_UP
        self.turn(len(self._ends))
        _, each = self.turn(len(self._ends))
        self.count = max(2, round(seconds / each))

    def turn(self, processes: int) -> tuple[float, float]:
        """Let the first ``processes`` make pairs at once; returns pairs per second, and processor seconds per pair."""
        ends = self._ends[:processes]
        for end in ends:
            end.send(self.count)
        times = [end.recv() for end in ends]
        wall = max(stop for _, stop, _ in times) - min(began for began, _, _ in times)
        pairs = self.count * len(ends)
        return pairs / wall, sum(cpu for _, _, cpu in times) / pairs

    def close(self) -> int:
        """End the processes; returns the largest memory of one, bytes."""
        for end in self._ends:
            end.send(0)
        return max(end.recv() for end in self._ends)


def _serve(end: Connection) -> None:
    name, images, labels, seed = end.recv()
    pair = CONTESTANTS[name](images, labels, seed)
    pair(0)  # compiles, or loads what was compiled
    end.send("ready")
    done = 0
    while count := end.recv():
        began, cpu = time.perf_counter(), time.process_time()
        for n in range(done, done + count):
            pair(n)
        end.send((began, time.perf_counter(), time.process_time() - cpu))
        done += count
    end.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def pairs(
    names: list[str], images: Sections, labels: Sections, cores: Sequence[int], *, repeats: int, seconds: float
) -> dict[str, Any]:
    """Return per contestant the rate of every repeat on one core and on all, and ratios to ours."""
    crews = [Contestant(name, images, labels, cores) for name in names]
    for crew in crews:
        crew.settle(seconds)
    widths = {"one_core": 1, "all_cores": len(cores)} if len(cores) > 1 else {"one_core": 1}
    found: dict[str, Any] = {name: {"notes": NOTES[name]} for name in names}
    for repeat in range(repeats):
        print(f"pairs: repeat {repeat + 1} of {repeats}", file=sys.stderr)
        for width, processes in widths.items():
            for crew in crews:
                rate, cpu = crew.turn(processes)
                entry = found[crew.name].setdefault(
                    width, {"pairs": crew.count * processes, "repeats": [], "cpu_seconds_per_pair": []}
                )
                entry["repeats"].append(rate)
                entry["cpu_seconds_per_pair"].append(cpu)
    for crew in crews:
        found[crew.name]["peak_memory_bytes_of_a_process"] = crew.close()
        for width in widths:
            entry = found[crew.name][width]
            entry["pairs_per_second"] = statistics.median(entry["repeats"])
            # What others took of the machine in the meantime does not show in this one.
            entry["pairs_per_processor_second"] = 1 / statistics.median(entry["cpu_seconds_per_pair"])
    rates = {name: {width: found[name][width]["repeats"] for width in widths} for name in names}
    for name in names:
        for width in widths:
            if name != "ours":
                found[name][width]["ours_is_faster"] = median_ratio(rates["ours"][width], rates[name][width])
    return found


def summary(record: dict[str, Any]) -> dict[str, Any]:
    """Return the figures that the targets are about, by width: medians, and medians of ratios."""
    found: dict[str, Any] = {}
    for width in ("one_core", "all_cores"):
        made = {name: entry[width] for name, entry in record.get("pairs", {}).items() if width in entry}
        chosen = found.setdefault(width, {"pairs_per_second": {n: e["pairs_per_second"] for n, e in made.items()}})
        if made:
            chosen["ours_over_notebook"] = made["notebook"]["ours_is_faster"]["median"]
        rivals = {name: made[name]["pairs_per_second"] for name in RIVALS if name in made}
        if rivals:
            fastest = max(rivals, key=lambda name: rivals[name])
            chosen["fastest_peer"] = fastest
            chosen["ours_over_fastest_peer"] = made[fastest]["ours_is_faster"]["median"]
        runs = record.get("cache", {}).get(width)
        if runs:
            chosen["patches_per_second"] = {way: runs[way]["patches_per_second"] for way in WAYS}
            chosen["job_over"] = {way: ratio["median"] for way, ratio in runs["job_over"].items()}
    return found


def _breakdown(end: Connection) -> None:
    images, labels, per_shard, repeats = end.recv()
    end.send(breakdown(images, labels, shards=2, per_shard=per_shard, repeats=repeats))


def whole_job(
    config: argparse.Namespace, paths: tuple[str, str], sections: int, side: int, cores: Sequence[int]
) -> dict[str, Any]:
    """Return rates of the job and of the plain loops, on all cores and on one."""
    found: dict[str, Any] = {}
    widths = {"all_cores": (cores, config.patches), "one_core": (cores[:1], config.patches_one_core)}
    for width, (chosen, patches) in widths.items():
        if patches and (width == "all_cores" or len(cores) > 1):
            variants = -(-patches // sections)
            runs = cache_runs(
                *paths, variants=variants, patch_px=side, per_shard=config.patches_per_shard, cores=chosen,
                repeats=config.cache_repeats, folder=config.folder,
            )  # fmt: skip
            rates = {way: [run["patches_per_second"] for run in runs[way]["repeats"]] for way in WAYS}
            found[width] = {"patches": variants * sections, "workers": len(chosen), **runs}
            found[width]["job_over"] = {way: median_ratio(rates["job"], rates[way]) for way in WAYS if way != "job"}
    return found


def main(arguments: list[str]) -> dict[str, Any]:
    """Measure and return the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser)
    parser.add_argument("--peers", action="store_true", help="measure the other libraries, too, as far as installed")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--cores", type=int, help="how many are all; None: every one this process may use")
    parser.add_argument("--repeats", type=int, default=7, help="of pairs and breakdown")
    parser.add_argument("--seconds", type=float, default=2.0, help="that a contestant's turn takes, about")
    parser.add_argument("--patches", type=int, default=10_000, help="of the job on all cores, at least; 0: none")
    parser.add_argument("--patches-one-core", type=int, default=2_000, help="of the job on one core, at least; 0: none")
    parser.add_argument("--cache-repeats", type=int, default=3, help="of the job and the plain loops")
    parser.add_argument("--patches-per-shard", type=int, default=16)
    parser.add_argument("--folder", help="where caches are made and removed again; None: the temporary folder")
    config = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=config.folder) as folder, one_thread():
        return measure(config, stacks(config, folder))


def measure(config: argparse.Namespace, paths: tuple[str, str]) -> dict[str, Any]:
    """Measure what the settings ask for on these sections."""
    cores = sorted(os.sched_getaffinity(0))[: config.cores]
    images, labels = read(paths)
    names = [name for name in CONTESTANTS if config.peers or name not in PEERS]
    record: dict[str, Any] = {
        "benchmark": "augmentation by the notebook's list",
        "commit": commit(),
        "config": vars(config),
        "machine": machine(),
        "versions": versions(PACKAGES),
        "section_px": images[0].shape,
        "not_installed": [name for name in names if name not in available(names)],
    }
    if "pairs" in config.parts:
        record["pairs"] = pairs(available(names), images, labels, cores, repeats=config.repeats, seconds=config.seconds)
    if "breakdown" in config.parts:
        _, end = start(_breakdown, cores[0], images, labels, config.patches_per_shard, config.repeats)
        record["breakdown"] = end.recv()
    if "interpolation" in config.parts:
        record["interpolation"] = interpolation(images, labels, patches=8)
    if "cache" in config.parts:
        record["cache"] = whole_job(config, paths, len(images), images[0].shape[0], cores)
    return {**record, "summary": summary(record)}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1:])))
