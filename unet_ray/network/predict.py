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
Tta = Literal["none", "flips", "dihedral"]
TORCH_DTYPE = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# Turn t of the square: t % 4 quarter turns, then flipped in x from 4 on.
_VIEWS: dict[Tta, tuple[int, ...]] = {"none": (0,), "flips": (0, 2, 4, 6), "dihedral": tuple(range(8))}


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
        tta: test-time augmentation: the mean probability of the window as it is ("none"), of it and its flips in x,
            y and both ("flips"), or of all 8 symmetries of the square ("dihedral"). Windows of tiles whose first and
            last pixel lie on the pooling grid stay exact: seen from the other end, the grid is the same for all.
    """

    def __init__(
        self,
        config: NetworkConfig,
        state: Mapping[str, Tensor],
        device: torch.device | str = "cpu",
        precision: Precision = "float32",
        tta: Tta = "none",
    ) -> None:
        self.config, self.device, self.precision, self.tta = config, torch.device(device), precision, tta
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
        views = [
            _turned_back(self.probability(self.logits(np.ascontiguousarray(_turned(windows, turn)))), turn)
            for turn in _VIEWS[self.tta]
        ]
        found: npt.NDArray[np.float32] = views[0] if len(views) == 1 else np.mean(views, axis=0)
        return found

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


def _turned(values: npt.NDArray[Any], turn: int) -> npt.NDArray[Any]:
    turned = np.rot90(values, turn % 4, axes=(-2, -1))
    return turned[..., ::-1] if turn >= 4 else turned


def _turned_back(values: npt.NDArray[Any], turn: int) -> npt.NDArray[Any]:
    return np.rot90(values[..., ::-1] if turn >= 4 else values, -(turn % 4), axes=(-2, -1))
