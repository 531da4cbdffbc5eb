"""One training step as a function of a model and a batch: no process groups, no data loading."""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import SGD, Adam, AdamW, Optimizer

from unet_ray.errors import TrainingDivergedError
from unet_ray.network.dropout import dropout_masks
from unet_ray.network.loss import Loss
from unet_ray.network.unet import by_member, network_input

Precision = Literal["float32", "bfloat16", "float16"]
OptimizerName = Literal["adam", "adamw", "sgd"]
Reduce = Callable[[Tensor], Tensor]
"""Sum of a tensor over all ranks; called the same number of times on each of them."""

_CROSS_ENTROPY = Loss()
_AUTOCAST = {"bfloat16": torch.bfloat16, "float16": torch.float16}
# From its 2^16 a scaler halves 17 times before it is below 1: no overflow of float16 lasts that long.
_LEAST_SCALE = 1.0
_ADVICE = "begin a new --run with a lower learning rate"


class Batch(NamedTuple):
    """Patches as the cache holds them, on the device of the model."""

    image: Tensor
    """(n, c, h + 2 margin, w + 2 margin) uint8."""
    label: Tensor
    """(n, h, w) uint8, 1 = membrane."""
    weight: Tensor | None = None
    """(n, h, w) float; None: 1 everywhere."""
    position: Tensor | None = None
    """(n,) whole numbers: position of each patch in the global batch, which decides its dropout; None: 0 to n - 1
    for one rank, unknown for several."""
    number: Tensor | None = None
    """(n,) whole numbers: each patch's in its cache, for the message of a divergence."""
    described: Tensor | None = None
    """(n, d, h', w') float32, shape descriptors of the labels, where the loss has a term of them."""

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on ``device``."""
        return Batch(*(None if value is None else value.to(device, non_blocking=True) for value in self))  # type: ignore[arg-type]

    def split(self, pieces: int) -> "Iterator[Batch]":
        """``pieces`` parts in order, whose sizes differ by one at most; some are empty where patches are few."""
        parts = [[None] * pieces if value is None else value.tensor_split(pieces) for value in self]
        return (Batch(*of_piece) for of_piece in zip(*parts, strict=True))


class StepResult(NamedTuple):
    """What one training step found, over the global batch; the same on every rank."""

    loss: float
    """Sum of the loss's terms with their coefficients; of an ensemble the mean over its members."""
    terms: dict[str, float]
    """Mean of each term, by name."""
    samples: int
    """Patches of the global batch."""
    gradient_norm: float
    """Euclidean norm of the gradient before clipping."""
    stepped: bool
    """Whether the weights changed: not without weight, nor where float16 overflowed."""


def make_scaler(precision: Precision, device: torch.device | str) -> GradScaler | None:
    """Loss scaling, which float16 needs (its gradients would vanish) and nothing else.

    Its ``state_dict()``, plain numbers, belongs into a checkpoint.

    Source: Micikevicius et al., "Mixed Precision Training", ICLR 2018.
    """
    return GradScaler(torch.device(device).type) if precision == "float16" else None


def train_step(
    model: nn.Module,
    batch: Batch,
    optimizer: Optimizer,
    *,
    step: int,
    seed: int = 0,
    loss: Loss = _CROSS_ENTROPY,
    precision: Precision = "float32",
    pieces: int = 1,
    max_gradient_norm: float | None = None,
    scaler: GradScaler | None = None,
    world_size: int = 1,
    reduce: Reduce | None = None,
) -> StepResult:
    """Take one optimiser step down the loss of the global batch.

    The gradient is that of (sum of a term over all samples of all ranks) / (its denominator over all
    ranks). `DistributedDataParallel` averages gradients over ranks, so each rank's loss is its own
    sum times ``world_size`` / global denominator: ranks with unequal weight take the step that
    one process with the whole batch takes. A rank without patches passes an empty batch.

    Args:
        model: a `Network`, or one wrapped for averaging gradients; its dtype is that of the weights.
        batch: this rank's part of the global batch.
        optimizer: over the model's parameters.
        step: number of the step: of its dropout masks, and for the message of a divergence.
        seed: of the dropout masks.
        loss: what to go down.
        precision: of the forward pass (autocast); loss and weights stay float32.
        pieces: forward and backward passes into which this rank's part is split, one after the other, for
            less memory; the same number on each rank. The step is that of one piece to rounding, but for batch
            normalisation: its statistics are those of the pieces of that number on all ranks.
        max_gradient_norm: a gradient of a larger norm is scaled down to it; None: never.
        scaler: from `make_scaler`; needed for float16.
        world_size: number of ranks whose gradients are averaged.
        reduce: sum over ranks; None for one rank.

    Raises:
        TrainingDivergedError: the loss or the gradient is not finite; raised on every rank before the
            weights change. The message names the patches.
    """
    assert (scaler is not None) == (precision == "float16"), "float16 goes with a scaler"
    samples = len(batch.image)
    assert samples or world_size > 1, "a step of one rank needs a patch"
    if batch.position is None and world_size == 1:
        batch = batch._replace(position=torch.arange(samples, device=batch.image.device))
    model.train()
    optimizer.zero_grad(set_to_none=True)
    reduced: Reduce = (lambda sums: sums) if reduce is None else reduce
    counts = reduced(_counts(loss, batch))
    shares = loss.shares(counts[:-1])
    found = []
    parts = [part for part in batch.split(pieces) if len(part.image) or world_size > 1]
    for number, part in enumerate(parts):
        # Gradients pile up on this rank; the last piece's backward pass averages them over the ranks.
        with _no_sync(model) if number < len(parts) - 1 else nullcontext():
            sums = _forward(model, part, loss, precision, step=step, seed=seed)
            # The sum over an ensemble's members: each takes the step that it would take alone.
            mine = sums.sum((0, 1)) @ (shares * world_size).to(sums.dtype)
            (mine if scaler is None else scaler.scale(mine)).backward()  # type: ignore[no-untyped-call]
        found.append(sums.detach().double().mean(0))
    per_sample = torch.cat(found)
    if scaler is not None:
        scaler.unscale_(optimizer)
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    # One launch for all of them: a GPU's small steps are as long as their launches.
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    # Of a GPU only here are numbers asked for.
    result = _result(loss, reduced(per_sample.sum(0)), counts, norm)
    if not math.isfinite(result.loss):
        bad = ~per_sample.isfinite().all(1)
        raise _diverged(f"the loss is {result.loss}", step, batch, bad, result, reduced)
    if not math.isfinite(result.gradient_norm) and (scaler is None or scaler.get_scale() < _LEAST_SCALE):
        bad = torch.ones(len(per_sample), dtype=torch.bool, device=per_sample.device)
        raise _diverged(f"the norm of the gradient is {result.gradient_norm}", step, batch, bad, result, reduced)
    if max_gradient_norm is not None and max_gradient_norm < result.gradient_norm:
        torch._foreach_mul_(gradients, max_gradient_norm / result.gradient_norm)
    if result.stepped:
        optimizer.step() if scaler is None else scaler.step(optimizer)
    if scaler is not None:
        scaler.update()
    return result


def _counts(loss: Loss, batch: Batch) -> Tensor:
    """Denominators of this rank's part, and its samples."""
    denominators = loss.denominators(batch.label, batch.weight, batch.described)
    return torch.cat((denominators, denominators.new_tensor([len(batch.image)])))


def _forward(model: nn.Module, part: Batch, loss: Loss, precision: Precision, *, step: int, seed: int) -> Tensor:
    """Loss sums of each member (one, but in training of an ensemble) and sample, (members, n, terms)."""
    like = next(model.parameters())
    images = network_input(part.image).to(like.dtype)
    masks: AbstractContextManager[Any] = nullcontext()
    if part.position is not None:
        masks = dropout_masks(model, seed=seed, step=step, samples=part.position)
    with torch.autocast(like.device.type, dtype=_AUTOCAST.get(precision), enabled=precision in _AUTOCAST), masks:
        logits = model(images)
    given = part.label, part.weight, part.described
    return torch.stack([loss.per_sample(of_member, *given) for of_member in by_member(logits)])


def _no_sync(model: nn.Module) -> AbstractContextManager[Any]:
    """`DistributedDataParallel.no_sync` of a wrapped model."""
    found: AbstractContextManager[Any] = getattr(model, "no_sync", nullcontext)()
    return found


def _result(loss: Loss, sums: Tensor, counts: Tensor, norm: Tensor) -> StepResult:
    """The numbers of a step, brought to the host at once."""
    denominators = counts[:-1]
    means = torch.where(denominators == 0, 0.0, sums / denominators)
    total = sums @ loss.shares(denominators)
    *terms, value, weight, samples, length = torch.cat(
        (means, torch.stack((total, denominators.sum(), counts[-1], norm.double())))
    ).tolist()
    stepped = weight > 0 and math.isfinite(length)
    return StepResult(value, dict(zip(loss.terms, terms, strict=True)), int(samples), length, stepped)


def _diverged(
    what: str, step: int, batch: Batch, bad: Tensor, result: StepResult, reduced: Reduce
) -> TrainingDivergedError:
    """The error, with the numbers of the patches that any rank found bad: the same on each of them."""
    where = ""
    if batch.number is not None:
        assert batch.position is not None
        table = torch.zeros(2, result.samples, dtype=torch.float64, device=bad.device)
        table[0, batch.position[bad]] = 1
        table[1, batch.position[bad]] = batch.number[bad].double()
        seen, numbers = reduced(table)
        found = ", ".join(str(int(n)) for n in numbers[seen > 0].tolist())
        where = f" (patches {found})" if found else ""
    return TrainingDivergedError(f"training step {step}: {what}, not a finite number{where}; {_ADVICE}")


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
