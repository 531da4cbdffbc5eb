"""All of a training that a checkpoint keeps: nothing else decides how it goes on."""

import io
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.train
import torch
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from unet_ray.config.train import BestBy
from unet_ray.engine.checkpoints import STATE, loaded_state
from unet_ray.engine.validation import Validated
from unet_ray.network.ema import WeightAverage
from unet_ray.network.schedule import Schedule
from unet_ray.network.unet import Network

HIGHER_IS_BETTER = frozenset({"dice", "v_rand", "v_info"})


def best_row(validations: Sequence[Mapping[str, Any]], by: BestBy) -> Mapping[str, Any]:
    """The validation row that a run's model is kept from; the first of those that score alike."""
    sign = -1 if by in HIGHER_IS_BETTER else 1
    return min(validations, key=lambda row: sign * row[by] if is_score(row[by]) else math.inf)


def is_score(value: float | None) -> bool:
    """Whether a score is one to choose a model by: there may be none, and a float16 forward pass may overflow."""
    return value is not None and math.isfinite(value)


@dataclass
class Progressed:
    """How far a training is.

    Attributes:
        epoch: epochs that are over, their validation included.
        step: steps taken.
        best: the best validation score so far, in its own polarity; None before the first.
        best_loss: the lowest validation loss so far.
        best_epoch: of ``best``, from 0; -1 before the first.
    """

    epoch: int = 0
    step: int = 0
    best: float | None = None
    best_loss: float = math.inf
    best_epoch: int = -1

    def take(self, found: Validated, by: BestBy) -> bool:
        """Count an epoch as over; whether its model is the best so far."""
        score = getattr(found, by)
        if is_score(found.loss):
            self.best_loss = min(self.best_loss, found.loss)
        better = is_score(score) and (
            self.best is None or (score > self.best if by in HIGHER_IS_BETTER else score < self.best)
        )
        if better:
            self.best, self.best_epoch = score, self.epoch
        self.epoch += 1
        return better


@dataclass
class TrainState:
    """A training between two steps.

    Attributes:
        network: with the weights that are trained.
        optimizer: over its parameters.
        schedule: of the learning rate.
        average: moving average of the weights, if any.
        scaler: of the loss, for float16.
        at: how far it is.
    """

    network: Network
    optimizer: Optimizer
    schedule: Schedule
    average: WeightAverage | None
    scaler: GradScaler | None
    at: Progressed

    def resume(self) -> None:
        """Take over the newest registered checkpoint, if there is one.

        Raises:
            ModelFileError: it cannot be read any more, or holds more than tensors and plain values.
        """
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return
        with checkpoint.as_directory() as folder:
            path = Path(folder) / STATE
            # On the CPU, also for a GPU: there an optimiser's count of steps stays where it is made, or each step waits
            # for the GPU to tell it.
            state = loaded_state(path.read_bytes() if path.exists() else None, checkpoint.path)
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        if self.scaler is not None:
            self.scaler.load_state_dict(state["scaler"])
        self.at = Progressed(**state["at"])

    def report(self, rank: int) -> None:
        """Register a checkpoint; every rank takes part, rank 0 brings the state.

        Ray Train registers it when it is whole in its place: one that was interrupted is never resumed from.
        """
        metrics = {"validation_loss": self.at.best_loss, "epoch": self.at.epoch, "step": self.at.step}
        with tempfile.TemporaryDirectory(prefix="unet_ray-checkpoint-") as folder:
            checkpoint = None
            if rank == 0:
                data = io.BytesIO()
                torch.save(self._state(), data)
                (Path(folder) / STATE).write_bytes(data.getvalue())
                checkpoint = ray.train.Checkpoint.from_directory(folder)
            ray.train.report(metrics, checkpoint=checkpoint)

    def _state(self) -> dict[str, Any]:
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
            "at": vars(self.at),
        }

    @contextmanager
    def judged(self) -> Iterator[Network]:
        """The network with the weights that are validated and saved: the average's, if there is one."""
        if self.average is None:
            yield self.network
            return
        with self.average.applied():
            yield self.network
