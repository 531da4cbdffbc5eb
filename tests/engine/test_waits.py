"""For how long a training waits for its patches, and that this counts in what it tells."""

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray import cloudpickle

from tests.engine.training import config, rows
from unet_ray.config.network import network_config
from unet_ray.engine import train_worker
from unet_ray.engine.train_board import Board
from unet_ray.engine.train_request import settings_of
from unet_ray.engine.train_summary import seconds_before
from unet_ray.engine.train_worker import TrainPlan, _Rank, _with_wait

# Workers get the function below by value: pytest's name of this module is none that they could import.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


def test_the_loaders_time_is_measured_and_the_steps_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    now, pauses = 0.0, (2.0, 0.0, 3.0)
    monkeypatch.setattr(train_worker, "time", SimpleNamespace(perf_counter=lambda: now))

    def loader() -> Iterator[Any]:
        nonlocal now
        for pause in pauses:
            now += pause
            yield pause

    found = []
    for loaded, waited in _with_wait(loader()):
        found.append((loaded, waited))
        now += 100.0
    assert found == [(pause, pause) for pause in pauses]


def test_rows_and_the_summary_tell_of_it(finished: tuple[Path, dict[str, Any]]) -> None:
    run, summary = finished
    steps = [row for row in rows(run) if row["event"] == "step"]
    assert all(row["wait_seconds"] > 0 for row in steps[::3]), "an epoch's first batch is not read beside a step"
    waited = sum(row["wait_seconds"] for row in steps)
    spent = sum(row["seconds"] + row["wait_seconds"] for row in steps)
    assert 0 < summary["wait_share"] == round(waited / spent, 4) < 1
    assert summary["samples_per_second"] == round(21 / spent, 2)
    # No more is counted than there was between the first step's end and the last one's.
    later = sum(row["wait_seconds"] + row["seconds"] for row in steps[1:])
    assert later < steps[-1]["ended"] - steps[0]["ended"] + 0.01


def test_a_run_that_is_continued_counts_it() -> None:
    """Rows of earlier versions do not tell of it."""
    earlier = {"event": "step", "seconds": 2.0, "ended": 10.0}
    told = [earlier, earlier | {"wait_seconds": 5.0, "ended": 17.0}, earlier | {"wait_seconds": 5.0, "ended": 30.0}]
    assert seconds_before(told, began=20.0) == 2 + 7


def steps_that_waited(plan: TrainPlan, board: Any, seconds: float) -> tuple[dict[str, Any], list[str]]:
    """What an epoch of a rank tells that Ray Train knows nothing of, as if each batch had come late."""
    ray.train.get_checkpoint = lambda: None
    train_worker.FORECAST_AFTER = (1, 3)
    rank = _Rank(plan, board, 0, 1)
    for loaded in rank.loader.epoch(0):
        rank._step(loaded, seconds)
    told: tuple[dict[str, Any], list[str]] = ray.get(board.read.remote())
    return told


def test_the_rate_and_the_forecast_count_it(cache: str, ray_cluster: None, tmp_path: Path) -> None:
    settings = settings_of(config(cache, tmp_path / "run", epochs=1))
    network = network_config("default", base_channels=2, depth=2)
    plan = TrainPlan(cache, str(tmp_path / "run"), settings, network, "float32", 1, use_gpu=False, initial_model=None)
    board = Board.remote()  # type: ignore[attr-defined]
    asked = ray.remote(num_cpus=1, max_calls=1)(steps_that_waited).remote(plan, board, 1e6)
    row, (forecast,) = ray.get(asked)
    assert row["note"].endswith(" 1e-06 samples/s")  # the last step's one patch
    assert forecast.startswith("forecast: 34 d 17 h per epoch of 3 steps ")
