"""What the runs that made an output took, kept in the output: a run that finds it done can still tell."""

import contextlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from unet_ray.engine.block_work import STAGES
from unet_ray.engine.blocks import Outcome
from unet_ray.errors import InputError
from unet_ray.storage.objects import Objects

RUNS = "runs.jsonl"
"""Beside the root's metadata, one row per run that did a block. Nothing reads it to decide anything."""


@dataclass(frozen=True)
class PastRuns:
    """What runs over blocks took, added up.

    Runs that were killed before they could tell are not among them, so there may be fewer blocks than are done.

    Attributes:
        runs: that are known.
        seconds: from their starts to their ends, the starting of Ray included.
        blocks: they did.
        units: voxels or patches they wrote.
        busy_seconds: from the first block's start to the last one's end, run by run.
        worker_seconds: the same, times the workers of each run.
        stage_seconds: by each of `STAGES`, seconds that all workers spent there.
        peak_worker_rss_bytes: largest memory of a worker.
    """

    runs: int = 0
    seconds: float = 0.0
    blocks: int = 0
    units: int = 0
    busy_seconds: float = 0.0
    worker_seconds: float = 0.0
    stage_seconds: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    peak_worker_rss_bytes: int = 0


class RunRecord:
    """What a run does to an output; noted there when the run ends, by an error or Ctrl-C, too.

    Args:
        output: where it is noted.
        began: when the run started, seconds of the epoch.
    """

    def __init__(self, output: Objects, began: float) -> None:
        self.workers = 1
        self._output, self._began = output, began
        self._first, self._last, self._done = math.inf, 0.0, Outcome()

    def take(self, row: Mapping[str, Any]) -> None:
        """Count a block's row, as `unet_ray.engine.blocks.run_blocks` hands it to ``on_row``."""
        if not row["ok"]:
            return
        self._first, self._last = min(self._first, row["started"]), max(self._last, row["ended"])
        done = self._done
        done.written += 1
        done.units += int(row["units"])
        done.peak_worker_rss_bytes = max(done.peak_worker_rss_bytes, int(row["rss"]))
        for stage in STAGES:
            done.stage_seconds[stage] += float(row[stage])

    def note(self) -> None:
        """Put the run beside those before it; nothing where it did no block, or is noted already."""
        done, self._done = self._done, Outcome()
        if not done.written:
            return
        busy = self._last - self._first
        row = {
            "ended": time.time(),
            "seconds": time.time() - self._began,
            "blocks": done.written,
            "units": done.units,
            "busy_seconds": busy,
            "worker_seconds": self.workers * busy,
            "stage_seconds": done.stage_seconds,
            "peak_worker_rss_bytes": done.peak_worker_rss_bytes,
        }
        self._output.put(RUNS, (self._output.get(RUNS) or b"") + json.dumps(row).encode() + b"\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            # What ended the run is what the user has to hear of, and where a disk is full this fails as well.
            with contextlib.suppress(InputError, OSError):
                self.note()


def past_runs(output: Objects) -> PastRuns:
    """What is noted in an output; no runs where nothing is."""
    rows: Sequence[Mapping[str, Any]] = [json.loads(line) for line in (output.get(RUNS) or b"").splitlines()]

    def total(name: str) -> Any:
        return sum(row[name] for row in rows)

    return PastRuns(
        runs=len(rows),
        seconds=total("seconds"),
        blocks=total("blocks"),
        units=total("units"),
        busy_seconds=total("busy_seconds"),
        worker_seconds=total("worker_seconds"),
        stage_seconds={stage: sum(row["stage_seconds"].get(stage, 0.0) for row in rows) for stage in STAGES},
        peak_worker_rss_bytes=max((row["peak_worker_rss_bytes"] for row in rows), default=0),
    )
