"""One training step as a function of a model and a batch: no process groups, no data loading."""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from unet_ray.errors import TrainingDivergedError
from unet_ray.network.loss import LossSum, cross_entropy
from unet_ray.network.unet import network_input

Precision = Literal["float32", "bfloat16"]
OptimizerName = Literal["adam", "adamw", "sgd"]
Reduce = Callable[[Tensor], Tensor]
"""Sum of a tensor over all ranks; called the same number of times on each of them."""


class Batch(NamedTuple):
    """Patches as the cache holds them, on the device of the model."""

    image: Tensor
    """(n, c, h + 2 margin, w + 2 margin) uint8."""
    label: Tensor
    """(n, h, w) uint8, 1 = membrane."""
    weight: Tensor | None = None
    """(n, h, w) float; None: 1 everywhere."""

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on ``device``."""
        weight = None if self.weight is None else self.weight.to(device, non_blocking=True)
        return Batch(self.image.to(device, non_blocking=True), self.label.to(device, non_blocking=True), weight)


class StepResult(NamedTuple):
    """Sums over the global batch of one training step or one validation batch."""

    loss_sum: float
    weight: float
    samples: int

    @property
    def loss(self) -> float:
        """Weighted mean loss of the global batch."""
        return self.loss_sum / self.weight if self.weight else 0.0


def train_step(
    model: nn.Module,
    batch: Batch,
    optimizer: Optimizer,
    *,
    step: int,
    precision: Precision = "float32",
    world_size: int = 1,
    reduce: Reduce | None = None,
) -> StepResult:
    """Take one optimiser step down the weighted mean loss of the global batch.

    The gradient is that of (sum over all ranks of the weighted loss) / (sum over all ranks of the
    weights). `DistributedDataParallel` averages gradients over ranks, so each rank's loss is its own
    weighted sum times ``world_size`` / global weight: ranks with unequal weight take the step that
    one process with the whole batch takes. A rank without patches passes a batch of weight 0.

    Args:
        model: a `UNet`, or one wrapped for averaging gradients; its dtype is that of the weights.
        batch: this rank's part of the global batch.
        optimizer: over the model's parameters.
        step: number of the step, for the message of a divergence.
        precision: of the forward pass (autocast); loss and weights stay float32.
        world_size: number of ranks whose gradients are averaged.
        reduce: sum over ranks; None for one rank. Called once, before the backward pass.

    Raises:
        TrainingDivergedError: the loss is not finite; raised on every rank before the weights change.
    """
    model.train()
    optimizer.zero_grad(set_to_none=True)
    local = _loss_sum(model, batch, precision)
    result = _over_ranks(local.loss, local.weight, batch, reduce)
    if not math.isfinite(result.loss_sum):
        raise TrainingDivergedError(
            f"training step {step}: the loss is {result.loss_sum}, not a finite number; "
            "the weights of the step before are kept: lower the learning rate and run again"
        )
    (local.loss * (world_size / result.weight if result.weight else 0.0)).backward()  # type: ignore[no-untyped-call]
    if result.weight:
        optimizer.step()
    return result


@torch.no_grad()
def validation_loss(
    model: nn.Module, batch: Batch, *, precision: Precision = "float32", reduce: Reduce | None = None
) -> StepResult:
    """Loss sums of one batch without a step, in evaluation mode (which it leaves switched on)."""
    model.eval()
    local = _loss_sum(model, batch, precision)
    return _over_ranks(local.loss, local.weight, batch, reduce)


def _loss_sum(model: nn.Module, batch: Batch, precision: Precision) -> LossSum:
    like = next(model.parameters())
    images = network_input(batch.image).to(like.dtype)
    with torch.autocast(like.device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16"):
        logits = model(images)
    return cross_entropy(logits, batch.label, batch.weight)


def _over_ranks(loss: Tensor, weight: Tensor, batch: Batch, reduce: Reduce | None) -> StepResult:
    samples = batch.image.shape[0]
    sums = torch.stack((loss.detach().double(), weight, weight.new_tensor(float(samples))))
    if reduce is not None:
        sums = reduce(sums)
    loss_sum, total, count = sums.tolist()
    return StepResult(loss_sum, total, int(count))


def make_optimizer(
    model: nn.Module,
    name: OptimizerName,
    learning_rate: float,
    *,
    weight_decay: float = 0.01,
    momentum: float = 0.99,
) -> Optimizer:
    """The optimiser of that name over the parameters of ``model``.

    Args:
        model: the network.
        name: "adam" (the notebook's, no decay), "adamw", or "sgd" (the paper's).
        learning_rate: the first one; a `Schedule` may change it.
        weight_decay: of "adamw", on convolution kernels only, not on biases and normalisation.
        momentum: of "sgd" (paper: 0.99).
    """
    kernels = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    if name == "adamw":
        groups = [{"params": kernels, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
        return AdamW(groups, lr=learning_rate)
    if name == "adam":
        return Adam(kernels + others, lr=learning_rate)
    return SGD(kernels + others, lr=learning_rate, momentum=momentum)
