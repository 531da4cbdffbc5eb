"""What a finished training tells of itself: its summary and its curves, from the rows that it wrote."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from unet_ray.command import Summary
from unet_ray.config.train import TrainConfig
from unet_ray.engine.run_writer import read_rows
from unet_ray.engine.train_state import best_row, is_score
from unet_ray.engine.train_worker import MODEL
from unet_ray.engine.validation import Validated
from unet_ray.errors import TrainingDivergedError
from unet_ray.network.predict import Precision
from unet_ray.report.curves import curves_png
from unet_ray.storage.objects import Objects

CURVES = "curves.png"


def summarise_run(
    config: TrainConfig, precision: Precision, run: Objects, startup_seconds: float, began: float
) -> Summary:
    """Put a finished run's curves, and return its summary.

    Args:
        config: as it was carried out.
        precision: that it had.
        run: its directory.
        startup_seconds: until the first step.
        began: when the command did, seconds of the epoch.

    Raises:
        TrainingDivergedError: no validation gave a score that a model could be chosen by.
    """
    rows = read_rows(run)
    validations = [row for row in rows if row["event"] == "validation"]
    assert config.best_by is not None
    best = best_row(validations, config.best_by)
    if not is_score(best[config.best_by]):
        raise TrainingDivergedError(
            f"{config.best_by} was no finite number in any of {len(validations)} validations, so there is no model; "
            "begin a new --run with --precision bfloat16 or float32, or a lower learning rate"
        )
    run.put(CURVES, curves_png(rows, best_epoch=best["epoch"]))
    taken = [row for row in rows if row["event"] == "step"]
    spent = sum(_step_seconds(row) for row in taken)
    seconds = time.time() - began
    return {
        "status": "complete",
        "seconds": round(seconds, 2),
        "startup_seconds": round(startup_seconds, 2),
        "epochs": len(validations),
        "steps": len(taken),
        "samples_per_second": round(sum(r["samples"] for r in taken) / max(spent, 1e-9), 2),
        # Of the time between two steps: what the loader could not do beside the step before.
        "wait_share": round(sum(r.get("wait_seconds", 0.0) for r in taken) / max(spent, 1e-9), 4),
        "best_validation_loss": min((row["loss"] for row in validations if is_score(row["loss"])), default=None),
        "best_epoch": best["epoch"],
        "validation": {name: best[name] for name in Validated._fields},
        "precision": precision,
        "model": model_path(config),
        "seconds_of_all_runs": round(seconds + seconds_before(rows, began), 2),
    }


def model_path(config: TrainConfig) -> str:
    """Where the run's model is, as its directory is named now."""
    return f"{config.run.rstrip('/')}/{MODEL}"


def seconds_before(rows: Sequence[Mapping[str, Any]], began: float) -> float:
    """Seconds of the steps and validations that runs before this one took, and this one went on from.

    What such a run spent on starting, and on steps after its last checkpoint, is not known.
    """
    seconds, last = 0.0, 0.0
    for row in rows:
        if row["ended"] < began:
            seconds += _step_seconds(row) if row["event"] == "step" else row["ended"] - last
        last = row["ended"]
    return seconds


def _step_seconds(row: Mapping[str, Any]) -> float:
    """From the end of the step before to the end of this one; earlier versions did not tell of the wait."""
    seconds: float = row["seconds"] + row.get("wait_seconds", 0.0)
    return seconds
