"""Probabilities from windows of grey values: the forward pass that segmentation and validation share."""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from unet_ray.config.network import NetworkConfig
from unet_ray.network.unet import (
    class_probability,
    fold_batch_norm,
    membrane_probability,
    network_from_state,
    network_input,
)

Precision = Literal["float32", "bfloat16", "float16"]
TORCH_DTYPE = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def hardware_precision(device: torch.device | str) -> Precision:
    """bfloat16 where the device computes with it, float32 where it would be emulated."""
    if torch.device(device).type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return "bfloat16" if native else "float32"


class Predictor:
    """A network with its weights on a device, ready for windows.

    Args:
        config: the network's settings.
        state: its weights, as `unet_ray.network.model_file.decode` gives them.
        device: where it runs.
        precision: dtype of weights and activations; the last probabilities are float32.
    """

    def __init__(
        self,
        config: NetworkConfig,
        state: Mapping[str, Tensor],
        device: torch.device | str = "cpu",
        precision: Precision = "float32",
    ) -> None:
        self.config, self.device, self.precision = config, torch.device(device), precision
        # On a CPU channels_last doubles the speed in bfloat16 and halves it in float32.
        fast = precision != "float32" or self.device.type == "cuda"
        self._layout = torch.channels_last if fast else torch.contiguous_format
        network = network_from_state(config, state)
        if precision != "float32":
            # Half the time, and one rounding less. In float32 it gains nothing.
            network = fold_batch_norm(network)
        self.network: nn.Module = network.to(self.device, TORCH_DTYPE[precision]).to(memory_format=self._layout)  # type: ignore[call-overload]

    def __call__(self, windows: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Membrane probability, or one probability per class where there are more than two.

        Args:
            windows: (n, c, h, w) grey values; h and w legal input sides of the network.

        Returns:
            (n, h - 2m, w - 2m) in 0..1; (n, k, h - 2m, w - 2m) for k > 2 classes. m is the margin.
        """
        return self.probability(self.logits(windows))

    @torch.inference_mode()
    def logits(self, windows: npt.NDArray[np.uint8]) -> Tensor:
        """Logits (n, k, h - 2m, w - 2m), float32 on the device, of windows as `__call__` takes them."""
        images = network_input(torch.from_numpy(windows).to(self.device))
        found: Tensor = self.network(images.to(TORCH_DTYPE[self.precision], memory_format=self._layout))
        return found.float()

    @torch.inference_mode()
    def probability(self, logits: Tensor) -> npt.NDArray[np.float32]:
        """What `__call__` makes of logits."""
        of = membrane_probability if self.config.classes <= 2 else class_probability
        found: npt.NDArray[Any] = of(logits).cpu().numpy()
        return found
