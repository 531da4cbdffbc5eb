"""What runs took is kept in their output, by those that were interrupted, too."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from unet_ray.engine.block_work import STAGES
from unet_ray.engine.past_runs import RUNS, PastRuns, RunRecord, past_runs
from unet_ray.engine.train_summary import seconds_before
from unet_ray.errors import TargetError
from unet_ray.storage.local_objects import LocalObjects
from unet_ray.storage.objects import Objects
from unet_ray.storage.open_objects import open_objects


@pytest.fixture
def output(tmp_path: Path) -> Objects:
    return open_objects(str(tmp_path))


def row(started: float, ended: float, compute: float = 1.0, **changed: Any) -> dict[str, Any]:
    spent = dict.fromkeys(STAGES, 0.0) | {"compute": compute}
    return {"block": 0, "ok": True, "units": 100, "rss": 5, "started": started, "ended": ended} | spent | changed


def test_runs_add_up(output: Objects) -> None:
    assert past_runs(output) == PastRuns()
    first, second = RunRecord(output, time.time() - 20), RunRecord(output, time.time() - 5)
    first.workers = 2
    for taken in (row(10, 12), row(11, 14, compute=2.5), row(11, 30, ok=False, units=0)):
        first.take(taken)
    first.note()
    second.take(row(100, 101, rss=9))
    second.note()
    second.note()  # of what is noted nothing is left
    found = past_runs(output)
    assert (found.runs, found.blocks, found.units, found.peak_worker_rss_bytes) == (2, 3, 300, 9)
    assert (found.busy_seconds, found.worker_seconds) == (4 + 1, 2 * 4 + 1)
    assert (found.stage_seconds["compute"], found.stage_seconds["read"]) == (4.5, 0)
    assert found.seconds == pytest.approx(25, abs=2)


def test_a_run_that_did_nothing_leaves_nothing(output: Objects) -> None:
    record = RunRecord(output, time.time())
    record.take(row(0, 1, ok=False))
    with record:
        pass
    record.note()
    assert output.get(RUNS) is None


@pytest.mark.parametrize("error", [KeyboardInterrupt, TargetError])
def test_an_interrupted_run_is_noted(output: Objects, error: type[BaseException]) -> None:
    record = RunRecord(output, time.time() - 3)
    record.take(row(10, 12))
    with pytest.raises(error), record:
        raise error
    assert (past_runs(output).runs, past_runs(output).blocks) == (1, 1)


def test_a_full_disk_is_told_of_as_such(output: Objects, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise TargetError("no room for the note")

    monkeypatch.setattr(LocalObjects, "put", full)
    record = RunRecord(output, time.time())
    record.take(row(10, 12))
    with pytest.raises(TargetError, match="the disk is full"), record:
        raise TargetError("the disk is full")


def test_rows_of_a_long_run_take_no_room(output: Objects) -> None:
    record = RunRecord(output, time.time())
    for block in range(1000):
        record.take(row(block, block + 1))
    record.note()
    stored = output.get(RUNS)
    assert stored is not None
    assert len(stored) < 1000
    assert json.loads(stored)["blocks"] == 1000


def test_a_training_that_was_resumed_counts_the_steps_before() -> None:
    steps = [{"event": "step", "seconds": 2.0, "ended": at} for at in (102.0, 105.0)]
    validation = {"event": "validation", "ended": 112.0}
    now = [{"event": "step", "seconds": 2.0, "ended": 1002.0}, {"event": "validation", "ended": 1009.0}]
    assert seconds_before([*steps, validation, *now], began=1000.0) == 2 + 2 + 7
    assert seconds_before([*steps, validation, *now], began=0.0) == 0
