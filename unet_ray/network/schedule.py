"""Learning rates: constant, reduced on a plateau of the validation loss, or one cycle."""

import math
from typing import Any, Literal

from torch.optim import Optimizer

ScheduleName = Literal["constant", "plateau", "one_cycle"]


class Schedule:
    """Learning rate as a function of the step and of the validation losses so far.

    Args:
        name: "constant"; "plateau" (the notebook's: x ``factor`` after more than ``patience`` epochs
            without improvement); "one_cycle" (cosine from 1/25 of the rate up to it during the first
            ``warm_up`` of the steps, then down to 1/10,000 of it: a pure function of the step).
        learning_rate: the highest.
        total_steps: of the whole training; used by "one_cycle" alone.
        factor: what a plateau multiplies the rate by.
        patience: epochs without improvement that a plateau waits.
        warm_up: share of the steps of "one_cycle" in which the rate rises, 0 to 1.

    Source: ReduceLROnPlateau of Keras; Smith and Topin, "Super-convergence", 2018 (one cycle).

    >>> cycle = Schedule("one_cycle", 1.0, total_steps=101, warm_up=0.1)
    >>> [round(cycle.rate(step), 4) for step in (0, 5, 10, 55, 100)]
    [0.04, 0.52, 1.0, 0.5, 0.0001]
    """

    def __init__(
        self,
        name: ScheduleName,
        learning_rate: float,
        *,
        total_steps: int = 1,
        factor: float = 0.1,
        patience: int = 3,
        warm_up: float = 0.3,
    ) -> None:
        """Start before step 0."""
        self.name = name
        self.learning_rate = learning_rate
        self.total_steps = total_steps
        self.factor = factor
        self.patience = patience
        self.warm_up = warm_up
        self._scale = 1.0
        self._best = math.inf
        self._bad_epochs = 0

    def rate(self, step: int) -> float:
        """Learning rate of step number ``step``, counted from 0 over the whole training."""
        if self.name != "one_cycle":
            return self.learning_rate * self._scale
        last = max(self.total_steps - 1, 1)
        top = self.warm_up * last
        step = min(step, last)
        if step < top:
            return _cosine(self.learning_rate / 25, self.learning_rate, step / top)
        return _cosine(self.learning_rate, self.learning_rate / 1e4, (step - top) / max(last - top, 1))

    def apply(self, optimizer: Optimizer, step: int) -> float:
        """Set the rate of ``step`` in ``optimizer`` and return it."""
        rate = self.rate(step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        return rate

    def end_epoch(self, validation_loss: float) -> None:
        """Count an epoch; "plateau" lowers the rate when the loss has not improved for too long."""
        if validation_loss < self._best:
            self._best, self._bad_epochs = validation_loss, 0
            return
        self._bad_epochs += 1
        if self.name == "plateau" and self._bad_epochs > self.patience:
            self._scale *= self.factor
            self._bad_epochs = 0

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint has to keep: plain numbers."""
        return {"scale": self._scale, "best": self._best, "bad_epochs": self._bad_epochs}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        self._scale = float(state["scale"])
        self._best = float(state["best"])
        self._bad_epochs = int(state["bad_epochs"])


def _cosine(start: float, stop: float, share: float) -> float:
    return stop + (start - stop) * (1 + math.cos(math.pi * share)) / 2
