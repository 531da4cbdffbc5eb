"""What a training keeps of itself, and what it tells."""

import json
import math
from pathlib import Path

import pytest

from unet_ray.config.train import BestBy, TrainSettings
from unet_ray.engine.run_writer import METRICS, RunWriter, read_rows
from unet_ray.engine.train_state import Progressed, best_row
from unet_ray.engine.train_worker import FORECAST_AFTER, _Clock, passes, require_model
from unet_ray.engine.validation import Validated
from unet_ray.errors import ModelFileError, OutputMismatchError
from unet_ray.storage.open_objects import open_objects


def validated(loss: float, v_info: float | None) -> Validated:
    return Validated(loss, 0.1, 0.9, 0.1, v_info, v_info)


@pytest.mark.parametrize(
    ("by", "values", "taken", "best"),
    [
        ("loss", [math.nan, 0.5, math.nan, 0.4, 0.4], [False, True, False, True, False], 3),
        ("loss", [math.inf, 0.5], [False, True], 1),
        ("v_info", [None, math.nan, 0.5, 0.4, 0.6], [False, False, True, False, True], 4),
    ],
)
def test_what_is_no_number_is_never_the_best(
    by: BestBy, values: list[float | None], taken: list[bool], best: int
) -> None:
    at = Progressed()
    found = [validated(value if by == "loss" else 1.0, value if by == "v_info" else 0.5) for value in values]  # type: ignore[arg-type]
    assert [at.take(each, by) for each in found] == taken
    assert (at.best, at.best_epoch, at.epoch) == (values[best], best, len(values))
    assert best_row([each._asdict() | {"epoch": n} for n, each in enumerate(found)], by)["epoch"] == best
    assert math.isfinite(at.best_loss)


def test_rows_are_json_that_anybody_reads(tmp_path: Path) -> None:
    writer = RunWriter(open_objects(str(tmp_path)), 0)
    writer.add({"event": "step", "step": 0, "loss": 0.5, "gradient_norm": math.inf, "learning_rate": math.nan})
    writer.flush()
    writer.close()
    line = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(line, parse_constant=pytest.fail) == read_rows(open_objects(str(tmp_path)))[0]
    assert json.loads(line)["gradient_norm"] is json.loads(line)["learning_rate"] is None


@pytest.mark.parametrize(
    ("kept", "said"),
    [
        (slice(None, -8), "metrics.jsonl of run .* is cut off or damaged; copy it again .*--overwrite"),
        (slice(0), "metrics.jsonl of run .* has 0 of the 3 steps that were taken; copy it again"),
        (slice(29, None), "has 2 of the 3 steps"),
    ],
    ids=["cut", "empty", "begun later"],
)
def test_a_run_does_not_go_on_without_its_rows(kept: slice, said: str, tmp_path: Path) -> None:
    """Its summary and curves would be those of a part, and the best epoch another than the model's."""
    run, rows = open_objects(str(tmp_path)), [{"event": "step", "step": step} for step in range(4)]
    whole = "".join(json.dumps(row) + "\n" for row in rows).encode()
    assert whole[28:29] == b"\n"
    run.put(METRICS, whole)
    RunWriter(run, 3).close()
    run.put(METRICS, whole[kept])
    with pytest.raises(OutputMismatchError, match=said):
        RunWriter(run, 3)
    assert run.get(METRICS) == whole[kept]
    RunWriter(run, 0).close()


def test_a_run_does_not_go_on_without_its_model(tmp_path: Path) -> None:
    """No later epoch need be better, and the run would be complete without any."""
    run, at = open_objects(str(tmp_path)), Progressed()
    require_model(run, at)
    at.take(validated(0.5, 0.5), "loss")
    with pytest.raises(
        ModelFileError, match=r"the best model until then, its model.safetensors, is not there any more"
    ):
        require_model(run, at)
    run.put("model.safetensors", b"whatever")
    require_model(run, at)


def test_the_forecast_counts_steps_alone() -> None:
    """Neither the first steps, which compile and fill caches, nor what validations in between took."""
    clock, (first, last) = _Clock(), FORECAST_AFTER
    told = [clock.tick(9.0 if step < first else 2.0) for step in range(last + 5)]
    assert [(step, usual) for step, usual in enumerate(told) if usual is not None] == [(last - 1, 2.0)]


@pytest.mark.parametrize(("workers", "micro_batch", "expected"), [(1, None, 1), (1, 3, 3), (2, 3, 2), (3, 3, 1)])
def test_passes(workers: int, micro_batch: int | None, expected: int) -> None:
    assert passes(TrainSettings(batch_size=8, micro_batch=micro_batch), workers) == expected
