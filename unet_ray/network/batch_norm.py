"""Batch normalisation whose statistics are those of the global batch, on CPU and GPU alike.

torch's SyncBatchNorm refuses CPU tensors, and statistics of each rank's own part of the batch would
make two workers train another network than one.

Source: Ioffe and Szegedy, "Batch Normalization", ICML 2015; its gradient is that of their section 3.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

Reduce = Callable[[Tensor], Tensor]
"""Sum of a tensor over all ranks; called in the same order on each of them, in forward and backward passes."""
GlobalNorm = Callable[[Tensor, Tensor, Tensor, float, Reduce], tuple[Tensor, Tensor, Tensor, Tensor]]


class BatchNorm(nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d` over the batches of all ranks once `set_reduce` gave it a sum over ranks."""

    reduce: Reduce | None = None
    global_norm: GlobalNorm

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (n, c, h, w); running statistics follow the global batch (variance unbiased)."""
        if self.reduce is None or not self.training:
            return super().forward(input)
        normalised, mean, variance, size = self.global_norm(input, self.weight, self.bias, self.eps, self.reduce)
        self._follow(mean, variance, size)
        return normalised

    def _follow(self, mean: Tensor, variance: Tensor, size: Tensor) -> None:
        """Move the running statistics; without a number for Python, so that a GPU is not waited for."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.num_batches_tracked.add_((size > 0).to(self.num_batches_tracked.dtype))
        momentum = (self.momentum * (size > 0).double()).to(self.running_mean.dtype)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        unbiased = variance * (size / (size - 1).clamp_min(1))
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), momentum)


class _GlobalNorm(torch.autograd.Function):
    """The normalised input, and mean, variance (biased) and size of the global batch, float64.

    PyTorch's own kernels do the passes over the input: written out as differentiable sums and products they
    took three times as long as the convolutions they stand behind.
    """

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor, bias: Tensor, eps: float, reduce: Reduce
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        own = weight.new_zeros((2, len(weight))).double()
        if input.numel():  # a rank without patches takes part in the sums with zeros
            kept = torch.zeros_like(weight), torch.zeros_like(weight)  # their dtype is that of the statistics
            own[0], own[1] = torch.batch_norm_update_stats(input, *kept, 0.0)
        count = input.numel() // input.shape[1]
        # One sum over ranks of (count x mean, count x mean square, count), in float64: the difference
        # of the first two would lose digits in float32.
        mean, variance = own
        total = reduce(torch.cat((count * mean, count * (variance + mean * mean), mean.new_full((1,), count))))
        size = total[-1]
        mean, square = (total[:-1] / size.clamp_min(1)).chunk(2)  # size is 0 where no rank has a patch
        variance = (square - mean * mean).clamp_min(0)
        mean_like, variance_like = mean.to(weight.dtype), variance.to(weight.dtype)
        normalised = functional.batch_norm(input, mean_like, variance_like, weight, bias, False, 0.0, eps)
        ctx.save_for_backward(input, weight, mean_like, variance_like, size)
        ctx.eps, ctx.reduce = eps, reduce
        ctx.mark_non_differentiable(mean, variance, size)
        return normalised, mean, variance, size

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        input, weight, mean, variance, size = ctx.saved_tensors
        own_weight, own_bias = torch.zeros_like(weight), torch.zeros_like(weight)
        scaled = gradient
        if input.numel():
            # gradient x scale, and the sums of gradient x normalised and of gradient.
            scaled, own_weight, own_bias = torch.ops.aten.native_batch_norm_backward(
                gradient, input, weight, mean, variance, None, None, False, ctx.eps, [True, True, True]
            )
        total = ctx.reduce(torch.cat((own_weight, own_bias)).double()) / size.clamp_min(1)
        of_weight, of_bias = total.chunk(2)
        if input.numel():
            # The statistics moved with the input: what the normalised input and the mean take away.
            inverse = torch.rsqrt(variance.double() + ctx.eps)
            slope = -weight * inverse * inverse * of_weight
            shift = -weight * inverse * of_bias - slope * mean
            ones, zeros = torch.ones_like(weight), torch.zeros_like(weight)
            scaled += functional.batch_norm(
                input, zeros, ones, slope.to(weight.dtype), shift.to(weight.dtype), False, 0.0, 0.0
            )
        return scaled, own_weight, own_bias, None, None


def set_reduce(model: nn.Module, reduce: Reduce | None, *, compiled: bool = False) -> None:
    """Let every `BatchNorm` of ``model`` sum its statistics by ``reduce``; None: its own batch alone.

    Args:
        model: the network, before it is compiled.
        reduce: sum over ranks.
        compiled: it will be; the sums are then kept from torch.compile, which cannot look into them.
    """
    norm: GlobalNorm = _GlobalNorm.apply
    if compiled:
        norm = torch.compiler.disable(norm)  # type: ignore[no-untyped-call]  # only here: it loads the compiler, which takes seconds
    for module in model.modules():
        if isinstance(module, BatchNorm):
            module.reduce, module.global_norm = reduce, norm
