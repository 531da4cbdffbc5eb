"""Ray Data over runs of block numbers: the loop that augment and segment share.

Numbers travel, voxels do not: an actor reads, computes and writes a block by
itself and returns one small status row.
"""

import json
import logging
import os
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import ray

from unet_ray.engine.block_metrics import BlockMetrics
from unet_ray.engine.block_work import STAGES, TRIES, BlockWorker, work_through
from unet_ray.engine.cluster import fetched
from unet_ray.engine.machines import roomiest_node
from unet_ray.engine.same_code import off_strangers, own_code, refusal, require_code
from unet_ray.errors import TargetError, UnetRayError
from unet_ray.geometry.block_set import BlockSet

# A hang ends the run instead of the night: no run of blocks may take longer than this, and than so many times what one
# takes on a quiet machine.
NO_PROGRESS_SECONDS, SLOWEST = 600, 20
# Actors in a row that may die while they are started, as they do on a node that joins with other code.
START_DEATHS = 20
# Rows of a run come together when it ends.
RUN_SECONDS = 20.0
# A Ray Data block costs a millisecond to plan: of a million blocks these take some seconds.
MANY_RUNS = 4096


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
        counts: what workers counted in the blocks written; see `block_work.CountingWorker`.
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
        self.turn = threading.Lock()

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        rows = [
            row
            for start, stop in zip(batch["start"], batch["stop"], strict=True)
            for row in work_through(self.worker, range(int(start), int(stop)), self.turn)
        ]
        return {name: np.array([row[name] for row in rows]) for name in rows[0]}


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
                _, fitting = roomiest_node(cpus_each, gpus_each)
                stalls += fitting > 0
                if not fitting:
                    # The pool that is started next asks for a node, which a cluster that grows by itself needs.
                    print(
                        f"cluster: no node is there with {cpus_each} CPU and {gpus_each:g} GPU for a worker; "
                        "waiting for one",
                        file=sys.stderr,
                        flush=True,
                    )
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


def run_few(make_worker: Callable[[], BlockWorker], blocks: list[int], tasks: int = 1) -> Outcome:
    """Do light blocks in a task or a few, which take a tenth of the time that a pool of actors needs to start.

    Args:
        make_worker: makes a worker inside a task; a picklable callable.
        blocks: in order; each task does some that follow one another.
        tasks: that share them, at most.

    Raises:
        ray.exceptions.RayError: one of `cluster.KILLED`; `run_blocks` finds out at which block.
        TargetError: the output is full.
        ConfigError: a node that has just joined has other code than the driver.
    """
    task = ray.remote(num_cpus=1, max_retries=TRIES - 1)(_in_one_task).options(**off_strangers())
    parts = np.array_split(blocks, min(tasks, len(blocks)))
    references = [task.remote(make_worker, own_code(), part.tolist()) for part in parts]
    # Whatever becomes of one, none goes on behind the back of what is done next.
    ray.wait(references, num_returns=len(references))
    outcome, done = Outcome(), BlockSet(max(blocks) + 1)
    for reference in references:
        for row in fetched(reference):
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
    # Of calls that run, for each that may: Ray's 1.75 and 0.5 are of actors that run one and have another waiting.
    context.autoscaling_config.actor_pool_util_upscaling_threshold = 0.875
    context.autoscaling_config.actor_pool_util_downscaling_threshold = 0.25
    if os.environ.get("RAY_ADDRESS"):
        context.max_consecutive_actor_init_deaths = START_DEATHS
    actors = len(runs) if workers is None else min(workers, len(runs))
    # All at once where it is said how many, for the next one would only be started when the first one works.
    least = 1 if workers is None else actors
    with warnings.catch_warnings():
        # Ray 2.60 announces other names for these settings, which it has not for all, and older ones have for none.
        warnings.filterwarnings("ignore", message=".*ray_remote_args.*")
        dataset = ray.data.from_items(runs, override_num_blocks=len(runs)).map_batches(
            _Actor,
            fn_constructor_args=(make_worker, own_code()),
            batch_size=1,
            num_cpus=cpus_each,
            num_gpus=gpus_each,
            memory=memory_each or None,
            # Runs are done at the same time but for computing: between them nothing waits for a read or a write.
            compute=ActorPoolStrategy(
                min_size=least,
                max_size=actors,
                max_tasks_in_flight_per_actor=at_once,
                enable_true_multi_threading=True,
            ),
            ray_remote_args_fn=off_strangers,
            max_concurrency=at_once,
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
