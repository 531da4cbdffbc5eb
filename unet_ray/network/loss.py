"""Losses as sums and denominators, so that ranks and micro-batches make up exactly the loss of the global batch.

Each term is (sum over samples) / (denominator of the global batch), and the denominator follows from labels
and weights alone: it is known before the forward pass, however the batch is split.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from unet_ray.geometry.descriptor_grid import DESCRIPTORS, STEP_PX


class LossSum(NamedTuple):
    """Weighted sum of a loss over pixels and the sum of the weights; the loss is their quotient."""

    loss: Tensor
    weight: Tensor

    @property
    def mean(self) -> Tensor:
        """``loss / weight``; 0 where nothing has weight."""
        return self.loss / self.weight.clamp_min(torch.finfo(torch.float32).tiny)


@dataclass(frozen=True)
class Loss:
    """Terms with coefficients: cross-entropy, Dice loss, shape descriptors; one with coefficient 0 is not computed.

    The paper's loss is `Loss()` of a weighted batch, the notebook's `Loss()` of one logit without weights.

    Args:
        cross_entropy: coefficient of the weighted mean of `cross_entropy` over pixels.
        dice: coefficient of the mean of `dice_losses` over samples.
        label_smoothing: of the cross-entropy, 0 to 1.
        descriptors: coefficient of the mean of `descriptor_errors` over cells' pixels; where it is not 0, the last
            `DESCRIPTORS` channels of the logits are those of the descriptors.

    >>> logits = torch.zeros(1, 1, 2, 2)
    >>> labels = torch.tensor([[[0, 1], [1, 1]]])
    >>> loss = Loss(cross_entropy=1.0, dice=0.5)
    >>> loss.per_sample(logits, labels).tolist(), loss.denominators(labels).tolist()  # 4 ln 2; 1 - 4/6
    ([[2.7725887298583984, 0.3333333134651184]], [4.0, 1.0])
    """

    cross_entropy: float = 1.0
    dice: float = 0.0
    label_smoothing: float = 0.0
    descriptors: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what is no loss."""
        assert min(self.cross_entropy, self.dice, self.descriptors) >= 0
        assert self.terms, "one coefficient must be above 0"

    @property
    def terms(self) -> dict[str, float]:
        """Coefficient of each term that takes part, by its name."""
        named = {"cross_entropy": self.cross_entropy, "dice": self.dice, "descriptors": self.descriptors}
        return {name: coefficient for name, coefficient in named.items() if coefficient}

    def denominators(
        self, labels: Tensor, weights: Tensor | None = None, described: Tensor | None = None
    ) -> Tensor:  # fmt: skip
        """(terms,) float64 that divide the terms' sums: sum of weights; samples with any weight; numbers described.

        Those of the parts of a batch add up to the batch's.
        """
        if weights is None:
            weight, samples = labels.new_tensor(labels.numel(), dtype=torch.float64), labels.new_tensor(len(labels))
        else:
            weight, samples = weights.sum(dtype=torch.float64), (weights > 0).flatten(1).any(1).sum()
        found = {"cross_entropy": weight, "dice": samples.double()}
        if self.descriptors:
            assert described is not None
            found["descriptors"] = DESCRIPTORS * described[:, -1].sum(dtype=torch.float64)
        return torch.stack([found[name] for name in self.terms])

    def per_sample(
        self, logits: Tensor, labels: Tensor, weights: Tensor | None = None, described: Tensor | None = None
    ) -> Tensor:  # fmt: skip
        """(n, terms) sums of each sample, differentiable; arguments are those of `cross_entropy`, and targets."""
        found = []
        if self.descriptors:
            logits, telling = logits[:, :-DESCRIPTORS], logits[:, -DESCRIPTORS:]
        for name in self.terms:
            if name == "descriptors":
                assert described is not None
                found.append(descriptor_errors(telling, described))
            elif name == "dice":
                found.append(dice_losses(logits, labels, weights))
            else:
                found.append(_pixel_losses(logits, labels, weights, self.label_smoothing).flatten(1).sum(1))
        return torch.stack(found, dim=1)

    def shares(self, denominators: Tensor) -> Tensor:
        """(terms,) float64 whose dot product with the terms' sums is the loss; 0 where nothing has weight."""
        coefficients = denominators.new_tensor(list(self.terms.values()))
        return torch.where(denominators == 0, 0.0, coefficients / denominators)


def cross_entropy(
    logits: Tensor, labels: Tensor, weights: Tensor | None = None, *, label_smoothing: float = 0.0
) -> LossSum:
    """Pixel-wise cross-entropy of logits, weighted.

    With one logit z it is binary cross-entropy of the membrane; with two, softmax cross-entropy,
    which is the same function of their difference.

    Args:
        logits: (n, k, h, w); k = 1: labels are 0 or 1 (membrane); k >= 2: class indices below k.
        labels: (n, h, w), any whole-number dtype.
        weights: (n, h, w), any float dtype, 0 or more; 0 ignores the pixel whatever its label is.
            None: 1 everywhere (the notebook's loss).
        label_smoothing: share of the label that is spread evenly over the classes, 0 to 1.

    Returns:
        Scalars: the loss sum (float32; float64 for float64 logits; differentiable) and the weight
        sum (float64).

    Source: Ronneberger et al. 2015, equation 1; label smoothing: Szegedy et al. 2016.

    >>> logits = torch.zeros(1, 1, 1, 2)
    >>> pair = cross_entropy(logits, torch.tensor([[[0, 1]]]), torch.tensor([[[1.0, 3.0]]]))
    >>> float(pair.loss), float(pair.weight)  # 4 ln 2
    (2.7725887298583984, 4.0)
    """
    loss = _pixel_losses(logits, labels, weights, label_smoothing).sum()
    return LossSum(loss, Loss().denominators(labels, weights)[0])


def dice_losses(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """1 - soft Dice coefficient of each sample: overlap, which does not fade where membrane is rare.

    The coefficient is (2 sum(p t) + 1) / (sum(p) + sum(t) + 1) over the pixels that have weight, p the
    probability and t the truth, 0 or 1; the 1 pixel keeps samples without membrane defined. With one logit it
    is the membrane's, with more the mean over the classes. Each sample has its own, so that the
    mean over a batch does not depend on how the batch is split.

    Args:
        logits: (n, k, h, w) as for `cross_entropy`.
        labels: (n, h, w).
        weights: (n, h, w); 0 leaves the pixel out, all others count alike. None: all count.

    Returns:
        (n,), 0 to 1; 0 for a sample without any weight. float32, or float64 for float64 logits; differentiable.

    Source: Milletari et al., "V-Net", 3DV 2016; per sample: Drozdzal et al. 2016.

    >>> sure = torch.tensor([[[[9.0, 9.0, -9.0, -9.0]]]])
    >>> [round(float(dice_losses(sure, torch.tensor([[row]]))[0]), 3) for row in ([1, 1, 0, 0], [0, 0, 1, 1])]
    [0.0, 0.8]
    """
    exact, labels = _checked(logits, labels, weights)
    if exact.shape[1] == 1:
        probability, truth = torch.sigmoid(exact), labels[:, None].to(exact.dtype)
    else:
        probability = torch.softmax(exact, dim=1)
        truth = functional.one_hot(labels.long(), exact.shape[1]).movedim(-1, 1).to(exact.dtype)
    if weights is not None:
        known = (weights > 0)[:, None].to(exact.dtype)
        probability, truth = probability * known, truth * known
    overlap, size = (probability * truth).sum((2, 3)), probability.sum((2, 3)) + truth.sum((2, 3))
    return (1 - (2 * overlap + 1) / (size + 1)).mean(1)


def descriptor_errors(logits: Tensor, described: Tensor) -> Tensor:
    """Squared error of the shape descriptors, summed over all of them at each place of a sample that has any.

    Args:
        logits: (n, `DESCRIPTORS`, h, w); the mean over each `STEP_PX` x `STEP_PX` pixels tells, by a sigmoid.
        described: (n, `DESCRIPTORS` + 1, h', w') of `unet_ray.numerics.shape_descriptors`.

    Returns:
        (n,), as of `dice_losses`.

    Source: Sheridan et al. 2023, who add it to the loss of what is wanted.

    >>> described = torch.tensor([[[[0.5, 0.9]]] * 6 + [[[1.0, 0.0]]]])
    >>> descriptor_errors(torch.full((1, 6, 4, 8), 100.0), described)  # 6 x (1 - 0.5)^2; the second is in no cell
    tensor([1.5000])
    """
    exact = logits if logits.dtype == torch.float64 else logits.float()
    told = torch.sigmoid(functional.avg_pool2d(exact, STEP_PX))
    return ((told - described[:, :-1]).square() * described[:, -1:]).sum((1, 2, 3))


def _pixel_losses(logits: Tensor, labels: Tensor, weights: Tensor | None, label_smoothing: float) -> Tensor:
    exact, labels = _checked(logits, labels, weights)
    if exact.shape[1] == 1:
        truth = labels.to(exact.dtype) * (1 - label_smoothing) + label_smoothing / 2
        found = functional.binary_cross_entropy_with_logits(exact[:, 0], truth, reduction="none")
    else:
        found = functional.cross_entropy(exact, labels.long(), reduction="none", label_smoothing=label_smoothing)
    return found if weights is None else found * weights.to(exact.dtype)


def _checked(logits: Tensor, labels: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """Logits in float32 at least, and labels that are classes where there is no weight, too."""
    if labels.shape != (logits.shape[0], *logits.shape[2:]):
        raise ValueError(f"labels {tuple(labels.shape)} do not fit logits {tuple(logits.shape)}")
    if weights is not None:
        labels = torch.where(weights > 0, labels, torch.zeros_like(labels))
    return logits if logits.dtype == torch.float64 else logits.float(), labels
