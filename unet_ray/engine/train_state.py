"""All of a training that a checkpoint keeps: nothing else decides how it goes on."""

import io
import math
import pickle
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
from unet_ray.engine.validation import Validated
from unet_ray.errors import ModelFileError
from unet_ray.network.ema import WeightAverage
from unet_ray.network.schedule import Schedule
from unet_ray.network.unet import Network
from unet_ray.storage.failure import reason

STATE = "state.pt"
HIGHER_IS_BETTER = frozenset({"dice", "v_rand", "v_info"})


def best_row(validations: Sequence[Mapping[str, Any]], by: BestBy) -> Mapping[str, Any]:
    """The validation row that a run's model is kept from; the first of those that score alike."""
    sign = -1 if by in HIGHER_IS_BETTER else 1
    return min(validations, key=lambda row: math.inf if row[by] is None else sign * row[by])


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
        self.best_loss = min(self.best_loss, found.loss)
        better = score is not None and (
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

    def resume(self, device: torch.device) -> None:
        """Take over the newest registered checkpoint, if there is one.

        Raises:
            ModelFileError: it holds more than tensors and plain values, which is never loaded.
        """
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return
        with checkpoint.as_directory() as folder:
            try:
                state = torch.load(Path(folder) / STATE, map_location=device, weights_only=True)
            except pickle.UnpicklingError as error:
                raise ModelFileError(
                    f"checkpoint {checkpoint.path} is damaged or not one of ours ({reason(error)}); remove its "
                    "folder to go on from the one before, or choose a new --run"
                ) from error
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
