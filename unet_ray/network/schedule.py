"""Learning rates: constant, reduced on a plateau of the validation loss, cosine, or one cycle."""

import math
from typing import Any, Literal

from torch.optim import Optimizer

ScheduleName = Literal["constant", "plateau", "cosine", "one_cycle"]
WARM_UP = {"cosine": 0.05, "one_cycle": 0.3}


class Schedule:
    """Learning rate as a function of the step and of the validation losses so far.

    Args:
        name: "constant"; "plateau" (the notebook's: x ``factor`` after ``patience`` epochs without
            improvement); "cosine" (a straight line from near 0 up to the rate during the first
            ``warm_up`` of the steps, then half a cosine down to 0 after the last step); "one_cycle"
            (cosine from 1/25 of the rate up to it during the first ``warm_up`` of the steps, then down to
            1/10,000 of it). The last two are pure functions of the step.
        learning_rate: the highest.
        total_steps: of the whole training; used by "cosine" and "one_cycle" alone.
        factor: what a plateau multiplies the rate by.
        patience: epochs without improvement that a plateau waits.
        warm_up: share of the steps in which the rate of "cosine" and "one_cycle" rises, 0 to 1; None: 0.05
            and 0.3.

    Source: ReduceLROnPlateau of Keras; Loshchilov and Hutter, "SGDR", 2017 (cosine); Smith and Topin,
    "Super-convergence", 2018 (one cycle).

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
        warm_up: float | None = None,
    ) -> None:
        """Start before step 0."""
        self.name = name
        self.learning_rate = learning_rate
        self.total_steps = total_steps
        self.factor = factor
        self.patience = patience
        self.warm_up = WARM_UP.get(name, 0.0) if warm_up is None else warm_up
        self._scale = 1.0
        self._best = math.inf
        self._bad_epochs = 0

    def rate(self, step: int) -> float:
        """Learning rate of step number ``step``, counted from 0 over the whole training."""
        if self.name == "cosine":
            top = self.warm_up * self.total_steps
            if step < top:
                return self.learning_rate * (step + 1) / (top + 1)
            return _cosine(self.learning_rate, 0.0, min((step - top) / (self.total_steps - top or 1), 1))
        if self.name != "one_cycle":
            return self.learning_rate * self._scale
        last = max(self.total_steps - 1, 1)
        top = self.warm_up * last
        step = min(step, last)
        if step < top:
            return _cosine(self.learning_rate / 25, self.learning_rate, step / top)
        return _cosine(self.learning_rate, self.learning_rate / 1e4, (step - top) / (last - top or 1))

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
        if self.name == "plateau" and self._bad_epochs >= self.patience:
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
