"""Batch normalisation whose statistics are those of the global batch, on CPU and GPU alike.

torch's SyncBatchNorm refuses CPU tensors, and statistics of each rank's own part of the batch would
make two workers train another network than one.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

Reduce = Callable[[Tensor], Tensor]
"""Sum of a tensor over all ranks, differentiable (`torch.distributed.nn.functional.all_reduce`)."""


class BatchNorm(nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d` over the batches of all ranks once `set_reduce` gave it a sum over ranks."""

    reduce: Reduce | None = None

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (n, c, h, w); running statistics follow the global batch (variance unbiased)."""
        if self.reduce is None or not self.training:
            return super().forward(input)
        exact = input if input.dtype == torch.float64 else input.float()
        if input.numel():
            variance, mean = torch.var_mean(exact, dim=(0, 2, 3), correction=0)
        else:  # a rank without patches: zeros that still take part in the sums, both ways
            variance = mean = exact.sum(dim=(0, 2, 3))
        # One sum over ranks of (count, count x mean, count x mean square), in float64: the difference
        # of the last two would lose digits in float32.
        mean, variance = mean.double(), variance.double()
        count = torch.full_like(mean, input.numel() / input.shape[1])
        total = self.reduce(torch.stack((count, count * mean, count * (variance + mean * mean))))
        size = total[0].clamp_min(1)  # 0 where no rank has a patch
        mean = total[1] / size
        variance = (total[2] / size - mean * mean).clamp_min(0)
        self._follow(mean.detach(), variance.detach(), total[0].detach())
        scale = torch.rsqrt(variance + self.eps) * self.weight
        shift = self.bias - mean * scale
        return torch.addcmul(_column(shift, exact), exact, _column(scale, exact)).to(input.dtype)

    def _follow(self, mean: Tensor, variance: Tensor, size: Tensor) -> None:
        """Move the running statistics; without a number for Python, so that a GPU is not waited for."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.num_batches_tracked.add_((size[0] > 0).to(self.num_batches_tracked.dtype))
        momentum = (self.momentum * (size > 0).double()).to(self.running_mean.dtype)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        unbiased = variance * (size / (size - 1).clamp_min(1))
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), momentum)


def _column(per_channel: Tensor, like: Tensor) -> Tensor:
    return per_channel.to(like.dtype).reshape(1, -1, 1, 1)


def set_reduce(model: nn.Module, reduce: Reduce | None) -> None:
    """Let every `BatchNorm` of ``model`` sum its statistics by ``reduce``; None: its own batch alone."""
    for module in model.modules():
        if isinstance(module, BatchNorm):
            module.reduce = reduce
