"""Time the evaluate job on a whole stack, with everything it finds; prints a JSON record.

Run ``python tests/benchmarks/bench_evaluate.py``. Each repeat is a process of its own, as a user starts it; the
first, not counted, compiles. ``job_seconds`` are the job's own from its call to the written report, Ray's start
(``startup_seconds``) included. Beside them stands what the reference's Java code takes for 30 sections of 512 x 512
with everything: wall clock, on another machine with two shared cores, least and most.
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
import tifffile
from bench_metrics import a_section
from record import commit, machine, versions

JAVA_SECONDS = [390, 600]
JOB = Path(__file__).resolve().parents[2] / "jobs" / "evaluate.py"


def write_stack(folder: Path, sections: int, side: int, kind: str) -> list[str]:
    """Write labels and a prediction in the challenge's form, and return the flags that name them."""
    pairs = [a_section(side, kind, seed) for seed in range(sections)]
    labels, prediction = folder / "labels.tif", folder / "prediction.tif"
    tifffile.imwrite(labels, np.stack([truth for _, truth in pairs]) * np.uint8(255), photometric="minisblack")
    tifffile.imwrite(prediction, np.stack([cells for cells, _ in pairs]), photometric="minisblack")
    return ["--prediction", str(prediction), "--prediction-kind", "interior", "--labels", str(labels)]


def run_job(flags: list[str]) -> dict[str, Any]:
    """Return the summary, and the seconds of the whole process, imports included."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, str(JOB), *flags], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1]) | {"process_seconds": time.perf_counter() - start}


def measure(flags: list[str], repeats: int) -> dict[str, Any]:
    """Return the times of every repeat after the first, and the scores, which say what was measured."""
    run_job(flags)
    summaries = [run_job(flags) for _ in range(repeats)]
    return {
        "job_seconds": [summary["seconds"] for summary in summaries],
        "startup_seconds": [summary["startup_seconds"] for summary in summaries],
        "process_seconds": [summary["process_seconds"] for summary in summaries],
        "scores": {name: summaries[0][name] for name in ("v_rand", "v_info", "pixel_mismatch", "warping_error")},
        "sections": len(summaries[0]["sections"]),
    }


def main(arguments: list[str]) -> dict[str, Any]:
    """Measure and return the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", type=int, default=30, help="of the synthetic stack")
    parser.add_argument("--side", type=int, default=512, help="of a section, pixels")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--flags", nargs=argparse.REMAINDER, help="flags of the job, in place of the synthetic stacks")
    config = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        report = ["--report", f"{folder}/report"]
        if config.flags:
            results = {"given": measure([*config.flags, *report], config.repeats)}
        else:
            results = {}
            for kind in ("binary", "blurred"):
                (Path(folder) / kind).mkdir()
                flags = write_stack(Path(folder) / kind, config.sections, config.side, kind)
                results[kind] = measure([*flags, *report], config.repeats)
    return {
        "benchmark": "the evaluate job, everything, as a process",
        "commit": commit(),
        "config": vars(config),
        "machine": machine(),
        "versions": versions(["numpy", "scipy", "numba", "ray"]),
        "results": results,
        "java_seconds_30_sections_of_512_px": JAVA_SECONDS,
    }


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1:])))
