"""What one worker does with its blocks: reads one ahead, computes, writes one behind. It knows no Ray."""

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, runtime_checkable

from unet_ray.engine.process_memory import peak_rss_bytes
from unet_ray.storage.local_objects import is_full
from unet_ray.storage.store_client import is_away

TRIES = 3
# What a worker does, partly at the same time, and what its computing waits for.
STAGES = ("read", "compute", "compress", "write", "wait_for_read", "wait_for_write")
# One column of text, so that all rows have the same columns whatever a worker counts.
NO_COUNTS = "{}"


class BlockWorker(Protocol):
    """What is done with a block, one block after the other at each stage.

    Reading has a thread of its own, computing the caller's, and compressing and writing share a third. Where runs of
    blocks follow one another, the next one's first block is read, and the last one's written, while another computes.
    """

    def is_done(self, block: int) -> bool:
        """Whether the block's record is there."""

    def read(self, block: int) -> Any:
        """Input of the block."""

    def compute(self, block: int, data: Any) -> Any:
        """Output of the block."""

    def encode(self, block: int, result: Any) -> Any:
        """The output as it is stored, compressed."""

    def write(self, block: int, encoded: Any) -> int:
        """Put the output; returns the voxels or patches written."""


@runtime_checkable
class CountingWorker(Protocol):
    """A worker that tells more of a block than its voxels or patches."""

    def counts(self, block: int) -> Mapping[str, int]:
        """What was counted while the block was computed, under the summary's names; asked once, after it is written."""


def work_through(
    worker: BlockWorker, blocks: Iterable[int], turn: AbstractContextManager[object] | None = None
) -> Iterator[dict[str, Any]]:
    """Do blocks in order, reading one ahead and writing one behind.

    A block that raises is tried again by itself, `TRIES` times in all, and then
    reported with its error; the others go on. Where a store does not answer any more,
    which takes minutes to find out, or is full, the block and those after it are reported at once.

    Args:
        worker: that does them.
        blocks: their numbers.
        turn: held while blocks are computed, where several threads work through runs of blocks by one worker.

    Yields:
        One row per block: block, ok, error, away (a store does not answer), full (nothing can be put), units, counts
        (JSON), started, ended, seconds by `STAGES`, rss, pid.
    """
    numbers = list(blocks)
    lost: dict[str, Any] = {}  # what a store that stays away, or is full, ended a block with
    try:
        # Blocks of a run are done in order: without the first one's record nobody was here before.
        before = [n for n in numbers if worker.is_done(n)] if numbers and worker.is_done(numbers[0]) else []
    except Exception as error:
        if not is_away(error):
            raise
        before, lost = [], _failure(error)
    for block in before:
        numbers.remove(block)
        yield _row(block, units=0)
    with ThreadPoolExecutor(1, "reader") as reader, ThreadPoolExecutor(1, "writer") as writer:
        ahead: Future[Any] | None = None
        if numbers and not lost:
            ahead = reader.submit(_timed, worker.read, numbers[0])
        behind: tuple[int, float, dict[str, float], Future[tuple[int, float, float]]] | None = None
        with turn or nullcontext():
            for place, block in enumerate(numbers):
                if lost:
                    yield _row(block, units=0, **lost)
                    continue
                started, spent = time.time(), dict[str, float]()
                reading = ahead or reader.submit(_timed, worker.read, block)
                following = numbers[place + 1 : place + 2]
                try:
                    (data, spent["read"]), spent["wait_for_read"] = _timed(reading.result)
                    ahead = reader.submit(_timed, worker.read, following[0]) if following else None
                    result, spent["compute"] = _timed(worker.compute, block, data)
                except Exception as error:
                    if not _is_lost(error) and (ahead is reading or ahead is None):
                        ahead = reader.submit(_timed, worker.read, following[0]) if following else None
                    if behind is not None:
                        yield _finish(worker, *behind)
                        behind = None
                    row = _alone(worker, block, started, error)
                    lost = _lost(row)
                    yield row
                    continue
                if behind is not None:
                    row = _finish(worker, *behind)
                    behind, lost = None, _lost(row)
                    yield row
                    if lost:
                        yield _row(block, units=0, **lost)
                        continue
                behind = block, started, spent, writer.submit(_encode_and_write, worker, block, result)
        if behind is not None:
            yield _finish(worker, *behind, turn)


def _finish(
    worker: BlockWorker,
    block: int,
    started: float,
    spent: dict[str, float],
    written: Future[tuple[int, float, float]],
    turn: AbstractContextManager[object] | None = None,
) -> dict[str, Any]:
    try:
        (units, spent["compress"], spent["write"]), waited = _timed(written.result)
    except Exception as error:
        with turn or nullcontext():
            return _alone(worker, block, started, error)
    if turn is None:  # else the next run computes meanwhile
        spent["wait_for_write"] = waited
    return _row(block, units=units, started=started, spent=spent, counts=_counts(worker, block))


def _alone(worker: BlockWorker, block: int, started: float, error: Exception) -> dict[str, Any]:
    """Try a failed block again, one stage after the other; not where a store is full, or was asked often."""
    for _ in range(TRIES - 1):
        if _is_lost(error):
            break
        try:
            spent: dict[str, float] = {}
            data, spent["read"] = _timed(worker.read, block)
            result, spent["compute"] = _timed(worker.compute, block, data)
            units, spent["compress"], spent["write"] = _encode_and_write(worker, block, result)
        except Exception as again:
            error = again
        else:
            return _row(block, units=units, started=started, spent=spent, counts=_counts(worker, block))
    return _row(block, units=0, started=started, **_failure(error))


def _is_lost(error: Exception) -> bool:
    """Whether other blocks would end in the same way."""
    return is_away(error) or is_full(error)


def _failure(error: Exception) -> dict[str, Any]:
    return {"error": _describe(error), "away": is_away(error), "full": is_full(error)}


def _lost(row: Mapping[str, Any]) -> dict[str, Any]:
    """What the rows of further blocks say, nothing where they are worth trying."""
    return {name: row[name] for name in ("error", "away", "full")} if row["away"] or row["full"] else {}


def _counts(worker: BlockWorker, block: int) -> str:
    return json.dumps(dict(worker.counts(block))) if isinstance(worker, CountingWorker) else NO_COUNTS


def _describe(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if type(error).__module__.startswith("unet_ray") else f"{type(error).__name__}: {text}"


def _encode_and_write(worker: BlockWorker, block: int, result: Any) -> tuple[int, float, float]:
    """Units written, and seconds of both stages."""
    encoded, compressing = _timed(worker.encode, block, result)
    units, writing = _timed(worker.write, block, encoded)
    return units, compressing, writing


def _timed(stage: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    start = time.perf_counter()
    return stage(*arguments), time.perf_counter() - start


def _row(
    block: int,
    *,
    units: int,
    started: float = 0.0,
    error: str = "",
    away: bool = False,
    full: bool = False,
    spent: Mapping[str, float] | None = None,
    counts: str = NO_COUNTS,
) -> dict[str, Any]:
    ended, spent = time.time(), spent or {}
    return {
        "block": block,
        "ok": not error,
        "error": error,
        "away": away,
        "full": full,
        "units": units,
        "counts": counts,
        "started": started or ended,
        "ended": ended,
        **{stage: spent.get(stage, 0.0) for stage in STAGES},
        "rss": peak_rss_bytes(),
        "pid": os.getpid(),
    }
