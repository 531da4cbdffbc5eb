"""Ray Data over runs of block numbers: the loop that augment and segment share.

Numbers travel, voxels do not: an actor reads, computes and writes a block by
itself and returns one small status row.
"""

import json
import logging
import os
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import ray

from unet_ray.engine.block_metrics import BlockMetrics
from unet_ray.engine.cluster import fetched
from unet_ray.engine.machines import roomiest_node
from unet_ray.engine.process_memory import peak_rss_bytes
from unet_ray.engine.same_code import off_strangers, own_code, refusal, require_code
from unet_ray.errors import TargetError, UnetRayError
from unet_ray.geometry.block_set import BlockSet
from unet_ray.storage.objects import is_full
from unet_ray.storage.store_client import is_away

TRIES = 3
# What an actor does, partly at the same time, and what its computing waits for.
STAGES = ("read", "compute", "compress", "write", "wait_for_read", "wait_for_write")
# A hang ends the run instead of the night: no run of blocks may take longer than this, and than so many times what one
# takes on a quiet machine.
NO_PROGRESS_SECONDS, SLOWEST = 600, 20
# Actors in a row that may die while they are started, as they do on a node that joins with other code.
START_DEATHS = 20
# Rows of a run come together when it ends.
RUN_SECONDS = 20.0
# A Ray Data block costs a millisecond to plan: of a million blocks these take some seconds.
MANY_RUNS = 4096
# One column of text, so that all rows have the same columns whatever a worker counts.
NO_COUNTS = "{}"


class BlockWorker(Protocol):
    """What an actor does with a block, one block after the other at each stage.

    Reading has a thread of its own, computing the actor's, and compressing and writing share a third.
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


@dataclass
class Outcome:
    """What came of a run over blocks.

    Attributes:
        written: blocks written.
        units: voxels or patches written.
        failures: error of every block that failed, by block.
        seconds: first block started to last block written.
        stage_seconds: by each of `STAGES`, seconds that all workers spent there.
        peak_worker_rss_bytes: largest memory of a worker.
        counts: what workers counted in the blocks written; see `CountingWorker`.
    """

    written: int = 0
    units: int = 0
    failures: dict[int, str] = field(default_factory=dict)
    seconds: float = 0.0
    stage_seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    peak_worker_rss_bytes: int = 0
    counts: Counter[str] = field(default_factory=Counter)

    def take(self, row: Mapping[str, Any], done: BlockSet) -> None:
        """Count a block's row, and add the block to ``done`` where it is.

        Raises:
            TargetError: there is no room for the block, nor for any other.
        """
        if row["full"]:
            raise TargetError(row["error"])
        block = int(row["block"])
        self.peak_worker_rss_bytes = max(self.peak_worker_rss_bytes, int(row["rss"]))
        for stage in self.stage_seconds:
            self.stage_seconds[stage] += float(row[stage])
        if not row["ok"]:
            self.failures[block] = str(row["error"])
        elif block not in done:
            done.add(block)
            self.written += 1
            self.units += int(row["units"])
            self.counts.update(json.loads(row["counts"]))


class _NoProgressError(Exception):
    """Ray Data has heard of no actor for as long as it was told to wait."""


class _Actor:
    """A worker behind Ray Data: takes runs of block numbers, returns one row per block.

    It dies at its start where it would run other code than the driver.
    """

    def __init__(self, make_worker: Callable[[], BlockWorker], code: str) -> None:
        require_code(code)
        self.worker = make_worker()

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        rows = [
            row
            for start, stop in zip(batch["start"], batch["stop"], strict=True)
            for row in work_through(self.worker, range(int(start), int(stop)))
        ]
        return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def work_through(worker: BlockWorker, blocks: Iterable[int]) -> Iterator[dict[str, Any]]:
    """Do blocks in order, reading one ahead and writing one behind.

    A block that raises is tried again by itself, `TRIES` times in all, and then
    reported with its error; the others go on. Where a store does not answer any more,
    which takes minutes to find out, or is full, the block and those after it are reported at once.

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
        behind: tuple[int, float, dict[str, float], Future[tuple[int, float, float]]] | None = None
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
            yield _finish(worker, *behind)


def _finish(
    worker: BlockWorker, block: int, started: float, spent: dict[str, float], written: Future[tuple[int, float, float]]
) -> dict[str, Any]:
    try:
        (units, spent["compress"], spent["write"]), spent["wait_for_write"] = _timed(written.result)
    except Exception as error:
        return _alone(worker, block, started, error)
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


def run_length(blocks: int, workers: int, seconds_each: float = 0.0) -> int:
    """Blocks that one Ray Data block carries.

    Many, for it costs 10 ms, and at its ends reading and writing have nothing beside them; but so few that all
    workers end together, and that progress is heard of within `RUN_SECONDS`. Of very many blocks more, so that there
    are no more than `MANY_RUNS` of them, as far as that time allows.

    Args:
        blocks: to be done.
        workers: that share them.
        seconds_each: what one takes, about; 0 if that is not known.

    >>> run_length(100_000, 2), run_length(250, 1), run_length(250, 1, seconds_each=10.0)
    (64, 15, 2)
    >>> run_length(1_000_000, 100)
    245
    """
    most = max(64, -(-blocks // MANY_RUNS))
    in_time = int(RUN_SECONDS / seconds_each) if seconds_each else most
    return max(1, min(most, in_time, blocks // (workers * 16)))


def run_blocks(
    make_worker: Callable[[], BlockWorker],
    done: BlockSet,
    *,
    workers: int | None,
    cpus_each: int,
    gpus_each: float = 0,
    memory_each: int = 0,
    run_length: int,
    seconds_each: float = 0.0,
    stage: str,
    on_row: Callable[[dict[str, Any]], None] = lambda row: None,
) -> Outcome:
    """Do every block that is not in ``done`` on a pool of actors.

    Args:
        make_worker: makes a worker inside an actor; a picklable callable.
        done: blocks that are done; those that get done are added.
        workers: actors of the pool at most; None: as many as fit, also on nodes that join later.
        cpus_each: CPUs an actor asks for.
        gpus_each: GPUs an actor asks for.
        memory_each: bytes an actor asks for; 0: it does not ask.
        run_length: blocks that one Ray Data block carries; each costs Ray Data about 10 ms.
        seconds_each: what a block takes, about; 0 if that is not known.
        stage: name of it all, for `BlockMetrics`.
        on_row: called on the driver with each block's row.

    Returns:
        What was written and what failed. A killed actor's blocks are done again
        elsewhere; a block whose process dies each time is among the failures.

    Raises:
        ConfigError: no node has the driver's code any more.
        TargetError: the output is full.
        UnetRayError: no actor has finished anything for `NO_PROGRESS_SECONDS`, or longer where blocks take long.
    """
    outcome, begun, ended, metrics = Outcome(), float("inf"), 0.0, BlockMetrics(stage)
    # The second pass has runs of one block, and one at a time at an actor, so that a block that kills its process takes
    # no other with it: what waits at an actor that dies uses up its tries as well.
    for length, at_once in ((run_length, 2), (1, 1)):
        patience, stalls = max(NO_PROGRESS_SECONDS, SLOWEST * seconds_each * length), 0
        while runs := [{"start": start, "stop": stop} for start, stop in _todo(done, outcome, length)]:
            try:
                for row in _stream(make_worker, runs, workers, cpus_each, gpus_each, memory_each, at_once, patience):
                    begun, ended, stalls = min(begun, row["started"]), max(ended, row["ended"]), 0
                    outcome.take(row, done)
                    metrics.take(row)
                    on_row(row)
                break
            except _NoProgressError:
                stalls += _is_stalled(cpus_each, gpus_each)
                # A cluster's first node may have come just before the time was over.
                if stalls > bool(os.environ.get("RAY_ADDRESS")):
                    raise UnetRayError(
                        f"no worker has finished a block of {stage} for {patience / 60:.0f} minutes, far longer than "
                        "one takes; see what holds the workers up (storage, memory, other work on their machines) and "
                        "run the same command again; what is complete stays complete"
                    ) from None
    for start, stop in _todo(done, outcome, 1):
        outcome.failures |= dict.fromkeys(range(start, stop), "its worker process died each time it was tried")
    outcome.seconds = max(0.0, ended - begun)
    return outcome


def _is_stalled(cpus_each: int, gpus_each: float) -> bool:
    """Whether nothing was finished although a node was there; otherwise a sentence on stderr says what is waited for.

    The pool that is started next asks for a node, which a cluster that grows by itself needs to be asked.
    """
    _, fitting = roomiest_node(cpus_each, gpus_each)
    if not fitting:
        print(
            f"cluster: no node is there with {cpus_each} CPU and {gpus_each:g} GPU for a worker; waiting for one",
            file=sys.stderr,
            flush=True,
        )
    return fitting > 0


def run_few(make_worker: Callable[[], BlockWorker], blocks: list[int]) -> Outcome:
    """Do a few light blocks in one task, which takes a tenth of the time that a pool of actors needs to start.

    Raises:
        ray.exceptions.RayError: one of `cluster.KILLED`; `run_blocks` finds out at which block.
        TargetError: the output is full.
        ConfigError: a node that has just joined has other code than the driver.
    """
    task = ray.remote(num_cpus=1, max_retries=TRIES - 1)(_in_one_task)
    outcome, done = Outcome(), BlockSet(max(blocks) + 1)
    for row in fetched(task.options(**off_strangers()).remote(make_worker, own_code(), blocks)):
        outcome.take(row, done)
    return outcome


def _in_one_task(make_worker: Callable[[], BlockWorker], code: str, blocks: list[int]) -> list[dict[str, Any]]:
    require_code(code)
    return list(work_through(make_worker(), blocks))


def _todo(done: BlockSet, outcome: Outcome, longest: int) -> Iterator[tuple[int, int]]:
    if not outcome.failures:
        yield from done.missing_runs(longest)
        return
    settled = BlockSet(done.num_blocks, [*done, *outcome.failures])
    yield from settled.missing_runs(longest)


def _stream(
    make_worker: Callable[[], BlockWorker],
    runs: list[dict[str, int]],
    workers: int | None,
    cpus_each: int,
    gpus_each: float,
    memory_each: int,
    at_once: int,
    patience: float,
) -> Iterator[dict[str, Any]]:
    import ray.data  # loads pandas and more: a second, which who only names stages, or runs a task, does not pay
    from ray.data import ActorPoolStrategy, DataContext
    from ray.data.exceptions import ExecutionTimeoutError

    logging.getLogger("ray.data").setLevel(logging.ERROR)  # loading it has set another level
    context = DataContext.get_current()
    context.enable_progress_bars = False
    # A dropped block is only a log line in Ray Data; what is missing is found by comparison with the plan.
    context.max_errored_blocks = -1
    context.execution_no_progress_timeout_s = patience
    if os.environ.get("RAY_ADDRESS"):
        context.max_consecutive_actor_init_deaths = START_DEATHS
    actors = len(runs) if workers is None else min(workers, len(runs))
    # All at once where it is said how many, for the next one would only be started when the first one works.
    least = 1 if workers is None else actors
    with warnings.catch_warnings():
        # Ray 2.60 announces other names for the retry settings but has none yet.
        warnings.filterwarnings("ignore", message=".*ray_remote_args.*")
        dataset = ray.data.from_items(runs, override_num_blocks=len(runs)).map_batches(
            _Actor,
            fn_constructor_args=(make_worker, own_code()),
            batch_size=1,
            num_cpus=cpus_each,
            num_gpus=gpus_each,
            memory=memory_each or None,
            compute=ActorPoolStrategy(min_size=least, max_size=actors, max_tasks_in_flight_per_actor=at_once),
            ray_remote_args_fn=off_strangers,
            max_restarts=-1,
            max_task_retries=TRIES - 1,
        )
    try:
        yield from dataset.iter_rows()
    except ExecutionTimeoutError as error:
        raise _NoProgressError from error
    except Exception as error:
        if (sentence := refusal(error)) is not None:
            raise sentence from None
        raise
