"""What a network costs: parameters, reach, arithmetic, and the memory of a training step."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from unet_ray.config.network import NetworkConfig, layers
from unet_ray.geometry.receptive_field import (
    halo_px,
    input_interval,
    legal_output_sides,
    margin_px,
    pooling_factor,
)
from unet_ray.network.dropout import dropout_masks
from unet_ray.network.loss import Loss
from unet_ray.network.step import OptimizerName, Precision
from unet_ray.network.unet import by_member, network_of

# What PyTorch loads to trace a network, here for its memory; it takes a second, in which something else may be done.
TRACING = ("torch._dynamo",)
_CROSS_ENTROPY = Loss()
# float32 numbers that an optimiser keeps for each parameter.
_OPTIMIZER_STATE: dict[OptimizerName, int] = {"adam": 2, "adamw": 2, "sgd": 1}
# Feature maps of the largest size that the backward pass holds for a moment beside what the forward pass has kept:
# gradients of a convolution's output and input, and copies in the layout that it computes in. Found by measuring.
_TRANSIENT = 6
# What Python, PyTorch and Ray take of a worker's memory. Found by measuring.
PROCESS_BYTES = 400 << 20
# Feature maps of the largest size at the peak of a forward pass, what the allocator keeps included. Found by measuring.
_FORWARD_MAPS = 5.5


@dataclass(frozen=True)
class TrainingMemory:
    """Estimated bytes of one worker at the peak of a training step, without PyTorch and its device context.

    On a CPU the peak is within a factor of 1.4 of it, where it is above 0.2 GB.
    """

    weights: int
    """Parameters, gradients, optimiser state, and copies of the parameters."""
    activations: int
    """What the forward pass keeps for the backward pass."""
    transient: int
    """What the backward pass holds for a moment."""

    @property
    def total(self) -> int:
        """Sum of all, bytes."""
        return self.weights + self.activations + self.transient


@dataclass(frozen=True)
class NetworkSummary:
    """What follows from a network's settings alone, for patches of one size."""

    parameters: int
    """Trained numbers."""
    margin_px: int
    """Pixels that valid convolutions take from each edge."""
    halo_px: int
    """Pixels that a tile reads around what it writes."""
    receptive_field_px: int
    """Side of the input square on which one output pixel depends, at most."""
    macs_per_pixel: float
    """Multiply-adds of the forward pass per pixel of the output; the backward pass takes twice as many."""
    memory: TrainingMemory
    """Of one training step."""

    def line(self) -> str:
        """One line for a log."""
        weights, kept = self.memory.weights, self.memory.activations + self.memory.transient
        return (
            f"{self.parameters / 1e6:.2f} M parameters, margin {self.margin_px} px, halo {self.halo_px} px, "
            f"receptive field {self.receptive_field_px} px, {self.macs_per_pixel / 1e3:.1f} k MACs per pixel, "
            f"about {self.memory.total / 1e9:.2f} GB to train ({weights / 1e9:.2f} weights and optimiser, "
            f"{kept / 1e9:.2f} activations)"
        )


def summarise(
    config: NetworkConfig,
    *,
    patches: int,
    patch_px: int,
    optimizer: OptimizerName = "adamw",
    precision: Precision = "float32",
    loss: Loss = _CROSS_ENTROPY,
    averaged: bool = False,
    workers: int = 1,
) -> NetworkSummary:
    """Summary of a network and of a training step with it.

    Nothing is computed or allocated: the layers run on tensors that have a shape and no values.

    Args:
        config: the network.
        patches: of one forward pass on one worker.
        patch_px: side of a patch's label; a legal output side of the network.
        optimizer: its state counts.
        precision: of the activations.
        loss: its terms keep something, too.
        averaged: whether a moving average of the weights is kept.
        workers: from 2 on gradients are copied for averaging.

    >>> from unet_ray.config.network import network_config
    >>> found = summarise(network_config("paper"), patches=1, patch_px=388, optimizer="sgd")
    >>> found.line().partition(", about")[0]
    '31.03 M parameters, margin 92 px, halo 94 px, receptive field 204 px, 999.2 k MACs per pixel'
    """
    listed = layers(config)
    parameters, macs, kept, largest = _trace(config, patches, patch_px, precision, loss)
    # parameters, gradients, optimiser, average, buckets of gradients; the copies that autocast makes
    copies = 2 + _OPTIMIZER_STATE[optimizer] + averaged + (workers > 1)
    per_parameter = 4 * copies + (0 if precision == "float32" else 2)
    factor = pooling_factor(listed)
    window = next(legal_output_sides(listed, at_least=factor)) + 2 * margin_px(listed)
    reach = (input_interval(listed, window, pixel, pixel + 1) for pixel in range(factor))
    return NetworkSummary(
        parameters=parameters,
        margin_px=margin_px(listed),
        halo_px=halo_px(listed),
        receptive_field_px=max(last - first for first, last in reach),
        macs_per_pixel=macs / (patches * patch_px**2),
        memory=TrainingMemory(parameters * per_parameter, kept, _TRANSIENT * largest),
    )


def predicting_bytes(config: NetworkConfig, side_px: int) -> int:
    """Estimated memory of a process that predicts windows on a CPU in float32, bytes.

    Args:
        config: the network.
        side_px: of the output of one window; a legal output side of the network.
    """
    parameters, _, _, largest = _trace(config, 1, side_px, "float32", _CROSS_ENTROPY)
    return round(PROCESS_BYTES + 4 * parameters + _FORWARD_MAPS * largest)


def _trace(
    config: NetworkConfig, patches: int, patch_px: int, precision: Precision, loss: Loss
) -> tuple[int, int, int, int]:
    """Parameters, MACs of a forward pass, bytes that it keeps, and bytes of the largest feature map."""
    macs, largest, kept = 0, 0, dict[int, Any]()

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal macs, largest
        largest = max(largest, output.nbytes, inputs[0].nbytes)
        if isinstance(module, nn.Conv2d):
            macs += output.numel() * module.weight[0].numel()
        elif isinstance(module, nn.ConvTranspose2d):
            macs += inputs[0].numel() * module.weight[0].numel()

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in owned:
            kept[storage._cdata] = storage  # held, so that its address is not used again
        return tensor

    with torch.device("meta"):
        model = network_of(config)
        parameters = sum(p.numel() for p in model.parameters())
        # A network in low precision keeps what autocast keeps, but for the weights.
        model.to({"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[precision])
        owned = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}
        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                module.register_forward_hook(count)
        side = patch_px + 2 * margin_px(layers(config))
        images = torch.empty(patches, config.in_channels, side, side, dtype=next(model.parameters()).dtype)
        labels = torch.empty(patches, patch_px, patch_px, dtype=torch.uint8)
        weights = torch.empty(patches, patch_px, patch_px)
        positions = torch.empty(patches, dtype=torch.int64)
        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            dropout_masks(model, seed=0, step=0, samples=positions),
        ):
            for of_member in by_member(model(images)):
                loss.per_sample(of_member, labels, weights)
    return parameters, macs, sum(storage.nbytes() for storage in kept.values()), largest
