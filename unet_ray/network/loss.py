"""Cross-entropy as a pair of sums, so that ranks can divide by the weight of the global batch."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


class LossSum(NamedTuple):
    """Weighted sum of a loss over pixels and the sum of the weights; the loss is their quotient."""

    loss: Tensor
    weight: Tensor

    @property
    def mean(self) -> Tensor:
        """``loss / weight``; 0 where nothing has weight."""
        return self.loss / self.weight.clamp_min(torch.finfo(torch.float32).tiny)


def cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> LossSum:
    """Pixel-wise cross-entropy of logits, weighted.

    With one logit z it is binary cross-entropy of the membrane; with two, softmax cross-entropy,
    which is the same function of their difference.

    Args:
        logits: (n, k, h, w); k = 1: labels are 0 or 1 (membrane); k >= 2: class indices below k.
        labels: (n, h, w), any whole-number dtype.
        weights: (n, h, w), any float dtype, 0 or more; 0 ignores the pixel whatever its label is.
            None: 1 everywhere (the notebook's loss).

    Returns:
        Scalars: the loss sum (float32; float64 for float64 logits; differentiable) and the weight
        sum (float64).

    Source: Ronneberger et al. 2015, equation 1.

    >>> logits = torch.zeros(1, 1, 1, 2)
    >>> pair = cross_entropy(logits, torch.tensor([[[0, 1]]]), torch.tensor([[[1.0, 3.0]]]))
    >>> float(pair.loss), float(pair.weight)  # 4 ln 2
    (2.7725887298583984, 4.0)
    """
    if labels.shape != (logits.shape[0], *logits.shape[2:]):
        raise ValueError(f"labels {tuple(labels.shape)} do not fit logits {tuple(logits.shape)}")
    exact = logits if logits.dtype == torch.float64 else logits.float()
    if weights is not None:
        labels = torch.where(weights > 0, labels, torch.zeros_like(labels))
    if exact.shape[1] == 1:
        per_pixel = functional.binary_cross_entropy_with_logits(exact[:, 0], labels.to(exact.dtype), reduction="none")
    else:
        per_pixel = functional.cross_entropy(exact, labels.long(), reduction="none")
    if weights is None:
        return LossSum(per_pixel.sum(), torch.tensor(float(labels.numel()), dtype=torch.float64, device=labels.device))
    weights = weights.to(exact.dtype)
    return LossSum((per_pixel * weights).sum(), weights.sum(dtype=torch.float64))
