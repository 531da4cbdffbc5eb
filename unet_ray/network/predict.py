"""Probabilities from windows of grey values: the forward pass that segmentation and validation share."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from unet_ray.config.network import NetworkConfig
from unet_ray.network.fuse import fuse
from unet_ray.network.unet import (
    class_probability,
    fold_batch_norm,
    membrane_probability,
    network_from_state,
    network_input,
)

Precision = Literal["float32", "bfloat16", "float16"]
Tta = Literal["none", "flips", "dihedral"]
OutputDtype = Literal["float32", "float16", "uint8"]
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


def fast_layout(device: torch.device | str, precision: str) -> torch.memory_format:
    """Order of the axes in memory that convolutions are fastest with.

    On a CPU channels_last is twice as fast in bfloat16. In float32 it is 1.3 to 1.7 times as fast with AVX-512, and
    half as fast on a processor that has AVX2 alone.
    """
    wide = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    last = torch.device(device).type == "cuda" or precision != "float32" or wide
    return torch.channels_last if last else torch.contiguous_format


@contextmanager
def true_float32() -> Iterator[None]:
    """Convolutions of float32 tensors are computed in float32 inside.

    On a GPU PyTorch lets cuDNN take TensorFloat-32 for them, whose 10 bits of fraction make tiles of different
    shapes differ by 1e-3 in probability.
    """
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


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
        crop: pixels that each side of what `__call__` returns lacks: the halo, less the margin. They cost little.
        dtype: of what `__call__` returns: float32 or float16 for 0..1, or uint8 for 0..255, rounded to the nearest.
    """

    def __init__(
        self,
        config: NetworkConfig,
        state: Mapping[str, Tensor],
        device: torch.device | str = "cpu",
        precision: Precision = "float32",
        tta: Tta = "none",
        crop: int = 0,
        dtype: OutputDtype = "float32",
    ) -> None:
        self.config, self.device, self.precision, self.tta = config, torch.device(device), precision, tta
        self.crop, self.dtype = crop, dtype
        self._layout = fast_layout(self.device, precision)
        network = network_from_state(config, state)
        on_cpu = self.device.type == "cpu"
        if precision != "float32" or on_cpu:
            # Half the time in bfloat16, and one rounding less; in float32 a tenth, on a GPU nothing.
            network = fold_batch_norm(network)
        self.network: nn.Module = network.to(self.device, TORCH_DTYPE[precision]).to(memory_format=self._layout)  # type: ignore[call-overload]
        if on_cpu:
            fuse(self.network)

    @torch.inference_mode()
    def __call__(self, windows: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
        """Membrane probability, or one probability per class where there are more than two.

        Args:
            windows: (n, c, h, w) grey values; h and w legal input sides of the network.

        Returns:
            (n, h - 2m, w - 2m) of the dtype; (n, k, h - 2m, w - 2m) for k > 2 classes. m is the margin and the crop.
        """
        given, turns = torch.from_numpy(windows).to(self.device), _VIEWS[self.tta]
        total: Tensor | None = None
        # Turned and summed on the device: a GPU then gives back one picture, not eight.
        for turn in turns:
            logits = self._logits(_turned(given, turn).contiguous(), self.crop)
            view = _turned_back(self._probability(logits), turn)
            total = view if total is None else total + view
        assert total is not None
        # Rounded on the device, too: a GPU then gives back one byte per voxel of the tile.
        mean = total if len(turns) == 1 else total / len(turns)
        found: npt.NDArray[Any] = _as_dtype(mean, self.dtype).cpu().numpy()
        return found

    @torch.inference_mode()
    def logits(self, windows: npt.NDArray[np.uint8], crop: int = 0) -> Tensor:
        """Logits (n, k, h - 2m, w - 2m), float32 on the device, of windows as `__call__` takes them.

        m is the margin and ``crop``; the predictor's own crop is not looked at.
        """
        return self._logits(torch.from_numpy(windows).to(self.device), crop)

    @torch.inference_mode()
    def probability(self, logits: Tensor) -> npt.NDArray[np.float32]:
        """What `__call__` makes of logits."""
        found: npt.NDArray[np.float32] = self._probability(logits).cpu().numpy()
        return found

    def _logits(self, windows: Tensor, crop: int) -> Tensor:
        images = network_input(windows).to(TORCH_DTYPE[self.precision], memory_format=self._layout)
        exact: AbstractContextManager[None] = true_float32() if self.precision == "float32" else nullcontext()
        with exact:
            found: Tensor = self.network(images, crop)
        # Dense, for the ends of rows that lie apart PyTorch computes exp otherwise than what lies between.
        return found.float().contiguous(memory_format=self._layout)

    def _probability(self, logits: Tensor) -> Tensor:
        return (membrane_probability if self.config.classes <= 2 else class_probability)(logits)


def _as_dtype(probability: Tensor, dtype: OutputDtype) -> Tensor:
    if dtype == "uint8":
        return (probability * 255).round_().to(torch.uint8)  # halves to even, as NumPy rounds
    return probability.to(TORCH_DTYPE[dtype])


def _turned(values: Tensor, turn: int) -> Tensor:
    turned = torch.rot90(values, turn % 4, (-2, -1))
    return turned.flip(-1) if turn >= 4 else turned


def _turned_back(values: Tensor, turn: int) -> Tensor:
    return torch.rot90(values.flip(-1) if turn >= 4 else values, -(turn % 4), (-2, -1))
