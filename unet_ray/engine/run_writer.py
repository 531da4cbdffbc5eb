"""The run directory as rank 0 of a training writes it: rows, TensorBoard events, pictures."""

import json
import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from unet_ray.engine.validation import Predicted
from unet_ray.errors import OutputMismatchError
from unet_ray.storage.objects import Objects

METRICS = "metrics.jsonl"
_REMEDY = "copy it again from where the run was made, or train again with --overwrite"
_SCALARS_ARE = (int, float)
# The rest of a row says when it was written, which is no curve.
_NO_CURVES = frozenset({"step", "epoch", "ended", "samples", "patches"})


class RunWriter:
    """Rows of steps and validations; what was taken after the checkpoint resumed from is dropped.

    Rows are kept in memory and put as a whole by `flush`, before each checkpoint: so a run's rows never end
    before its newest checkpoint.

    Args:
        run: the run directory.
        resumed_at: steps taken before; 0 for a new run.

    Raises:
        OutputMismatchError: the rows of steps taken before are not all there, so what the run tells would be wrong.
    """

    def __init__(self, run: Objects, resumed_at: int) -> None:
        from tensorboardX import SummaryWriter

        self._run = run
        # Of a run that begins anew no old row is kept, whatever became of them.
        self._rows = [row for row in read_rows(run) if row["step"] < resumed_at] if resumed_at else []
        there = sum(row["event"] == "step" for row in self._rows)
        if there != resumed_at:
            raise OutputMismatchError(
                f"{METRICS} of run {run.url} has {there} of the {resumed_at} steps that were taken; {_REMEDY}"
            )
        self._folder = tempfile.TemporaryDirectory(prefix="unet_ray-events-")
        self._events = SummaryWriter(self._folder.name, purge_step=resumed_at or None)

    def add(self, row: dict[str, Any]) -> None:
        """One row per step and per validation; a number that is not finite is null, for JSON has none such."""
        row = {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in row.items()}
        self._rows.append(row)
        for name, value in row.items():
            if isinstance(value, _SCALARS_ARE) and name not in _NO_CURVES:
                self._events.add_scalar(f"{row['event']}/{name}", value, row["step"])

    def add_pictures(self, predicted: Predicted, step: int) -> None:
        """Raw, truth and probability of a validation section, for TensorBoard."""
        truth = np.where(predicted.known, 255 * (predicted.label == 1), 128).astype(np.uint8)
        for name, picture in (("raw", predicted.raw), ("truth", truth), ("probability", predicted.probability)):
            self._events.add_image(f"validation/{name}", picture, step, dataformats="HW")

    def flush(self) -> None:
        """Put metrics.jsonl and the TensorBoard events."""
        self._events.flush()
        self._run.put(METRICS, "".join(json.dumps(row) + "\n" for row in self._rows).encode())
        for path in Path(self._folder.name).iterdir():
            self._run.put(f"tensorboard/{path.name}", path.read_bytes())

    def close(self) -> None:
        """Remove the temporary folder."""
        self._events.close()
        self._folder.cleanup()


def read_rows(run: Objects) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl, oldest first; none where there is no such file.

    Raises:
        OutputMismatchError: it is cut off or damaged.
    """
    try:
        return [json.loads(line) for line in (run.get(METRICS) or b"").splitlines()]
    except ValueError as error:
        raise OutputMismatchError(f"{METRICS} of run {run.url} is cut off or damaged; {_REMEDY}") from error
