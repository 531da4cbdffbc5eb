"""Dropout whose masks are a function of (seed, step, sample, layer).

torch draws its masks from one generator in the order in which values come, so two ranks, two
micro-batches or a GPU would drop other values than one process does. Here each value has a number in its
sample, and a hash of that number says whether it is dropped: the same on every device, in every
memory layout, and however a global batch is split.

Source: Srivastava et al. 2014 (dropout); SplitMix64, Steele, Lea and Flood, OOPSLA 2014 (the hash).
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

_LANES = 4  # 16-bit numbers in one 64-bit hash: a quarter of the work, and probabilities in steps of 2^-16
# SplitMix64's constants as signed numbers; torch's int64 wraps around as its uint64 does.
_GAMMA = 0x9E3779B97F4A7C15 - 2**64
_MIX = ((30, 0xBF58476D1CE4E5B9 - 2**64), (27, 0x94D049BB133111EB - 2**64))


class Dropout(nn.Module):
    """Zero a share of the values of each sample in training and scale the others up to keep the mean.

    In training it works inside `dropout_masks` alone, which tells it whose values it sees.

    Args:
        probability: share of dropped values, 0 to 1; taken in steps of 2^-16.
        layer: number of this layer in its network; layers of other numbers drop other values.
    """

    def __init__(self, probability: float, layer: int) -> None:
        """Start untold."""
        super().__init__()
        self.layer = layer
        self.dropped_of_65536 = min(round(probability * 65536), 65535)
        self.keys: Tensor | None = None

    def forward(self, features: Tensor) -> Tensor:
        """Return (n, c, h, w) with values dropped in training; unchanged in evaluation."""
        if not self.training:
            return features
        assert self.keys is not None, "dropout in training needs dropout_masks(model, seed=, step=, samples=) around it"
        assert len(self.keys) == len(features), f"dropout was told of {len(self.keys)} samples and sees {len(features)}"
        dropped = _dropped(self.keys, features[:1].numel(), self.dropped_of_65536)
        scale = 65536 / (65536 - self.dropped_of_65536)
        return (features * scale).masked_fill_(dropped.reshape(features.shape), 0.0)  # in place: layouts stay

    def extra_repr(self) -> str:
        return f"{self.dropped_of_65536 / 65536}, layer={self.layer}"


@contextmanager
def dropout_masks(
    model: nn.Module, *, seed: int, step: int, samples: Tensor, device: torch.device | None = None
) -> Iterator[None]:
    """Tell every `Dropout` of ``model`` which samples of which step its next forward pass sees.

    Args:
        model: a network, wrapped or not; one without dropout is left alone.
        seed: of the training.
        step: number of the optimiser step.
        samples: (n,) whole numbers: the position of each sample in the global batch.
        device: where the model is; None: where ``samples`` are.

    >>> drop = Dropout(0.5, layer=0)
    >>> with dropout_masks(drop, seed=1, step=7, samples=torch.tensor([2, 3])):
    ...     whole = drop(torch.ones(2, 1, 2, 4))
    >>> with dropout_masks(drop, seed=1, step=7, samples=torch.tensor([3])):
    ...     part = drop(torch.ones(1, 1, 2, 4))
    >>> part.tolist(), torch.equal(part, whole[1:])
    ([[[[2.0, 0.0, 2.0, 2.0], [2.0, 0.0, 2.0, 2.0]]]], True)
    """
    layers = [module for module in model.modules() if isinstance(module, Dropout)]
    for layer in layers:
        start = _signed(f"unet_ray dropout {seed} {step} {layer.layer}")
        layer.keys = _mixed(start + _GAMMA * samples.to(device, torch.int64))
    try:
        yield
    finally:
        for layer in layers:
            layer.keys = None


def _signed(text: str) -> int:
    """64 bits that are a function of ``text``."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)


# An operation of its own, which torch.compile leaves alone: its C++ gets whole numbers that wrap around wrong.
@torch.library.custom_op("unet_ray::dropped", mutates_args=())
def _dropped(keys: Tensor, values: int, dropped_of_65536: int) -> Tensor:
    """(n, values) bool, for the keys (n,) of n samples: the stream of SplitMix64 that starts at each key.

    The first quarter of the values goes by the highest 16 bits of the words, the next by those below, ...
    """
    numbers = torch.arange(1, -(-values // _LANES) + 1, dtype=torch.int64, device=keys.device).mul_(_GAMMA)
    words = _mixed(keys[:, None] + numbers)
    # Signed: of all words this share lies below. What is under the 16 bits does not change the answer.
    bound = (dropped_of_65536 - 32768) << 48
    return torch.cat([(words << 16 * lane) < bound for lane in range(_LANES)], dim=1)[:, :values].contiguous()


@_dropped.register_fake
def _(keys: Tensor, values: int, dropped_of_65536: int) -> Tensor:
    return keys.new_empty((len(keys), values), dtype=torch.bool)


def _mixed(words: Tensor) -> Tensor:
    """SplitMix64's output function of int64 words, in place."""
    for shift, factor in _MIX:
        words.bitwise_xor_(_shifted(words, shift)).mul_(factor)
    return words.bitwise_xor_(_shifted(words, 31))


def _shifted(words: Tensor, shift: int) -> Tensor:
    """Logical shift to the right: torch's own copies the sign."""
    return (words >> shift).bitwise_and_((1 << (64 - shift)) - 1)
