"""The forward pass of a CPU with fewer passes over memory: ReLU inside the convolution, pooling by maxima.

Both give the bits of what they replace. They know no gradients.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional


class ConvolutionRelu(nn.Module):
    """A convolution and the ReLU after it as one call of oneDNN, which writes each value once."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        """Take the weights of a convolution of stride 1 that pads with zeros or not at all."""
        super().__init__()
        assert convolution.bias is not None, "batch normalisation is folded"
        self.weight, self.bias = convolution.weight, convolution.bias
        self.padding = tuple(int(side) for side in convolution.padding)

    def forward(self, features: Tensor) -> Tensor:
        """Return what the convolution and the ReLU make of (n, c, h, w)."""
        return _convolution_relu(features, self.weight, self.bias, self.padding)


class MaximumPool(nn.Module):
    """2x2 max pooling as two element-wise maxima, half the time of PyTorch's where channels are last in memory."""

    def forward(self, features: Tensor) -> Tensor:
        """Return (n, c, h / 2, w / 2) of (n, c, h, w), h and w even."""
        if not features.is_contiguous(memory_format=torch.channels_last):
            return functional.max_pool2d(features, 2)
        pixels = features.permute(0, 2, 3, 1)
        of_rows = torch.maximum(pixels[:, 0::2], pixels[:, 1::2])
        return torch.maximum(of_rows[:, :, 0::2], of_rows[:, :, 1::2]).permute(0, 3, 1, 2)


def fuse(network: nn.Module) -> None:
    """Let a network on a CPU, in its last dtype and layout, compute its forward pass in fewer passes over memory.

    Args:
        network: in evaluation mode; changed in place, and without gradients from then on. Batch normalisation must
            have been folded for its convolutions to be fused.
    """
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.MaxPool2d):
                setattr(module, name, MaximumPool())
        if not isinstance(module, nn.Sequential):
            continue
        for place in range(len(module) - 1):
            convolution, after = module[place], module[place + 1]
            if isinstance(convolution, nn.Conv2d) and isinstance(after, nn.ReLU) and can_fuse(convolution.weight):
                module[place], module[place + 1] = ConvolutionRelu(convolution), nn.Identity()


def can_fuse(weight: Tensor) -> bool:
    """Whether this PyTorch has convolution and ReLU in one, for weights of this dtype on this processor."""
    try:
        with torch.inference_mode():
            _convolution_relu(weight.new_zeros(1, weight.shape[1], 8, 8), weight, weight.new_zeros(len(weight)), (0, 0))
    except (AttributeError, RuntimeError):
        return False
    return True


def _convolution_relu(features: Tensor, weight: Tensor, bias: Tensor, padding: tuple[int, ...]) -> Tensor:
    # Made for PyTorch's own compiler, and so without a promise that it stays.
    found: Tensor = torch.ops.mkldnn._convolution_pointwise(
        features, weight, bias, padding, (1, 1), (1, 1), 1, "relu", [], ""
    )
    return found
