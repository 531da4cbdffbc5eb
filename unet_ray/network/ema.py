"""Exponential moving average of a network's weights: less noise than the last step's, at no cost in training."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class WeightAverage:
    """Moving average of the parameters and running statistics of a network.

    After update number t (from 0) the average moves by 1 - min(decay, (1 + t) / (10 + t)): the first weights,
    which are noise, are forgotten soon. The running statistics of batch normalisation are averaged by the
    same rule and not copied, for they belong to the activations of the weights that are averaged;
    whole numbers are copied.

    The average depends on the weights alone, which are the same on every rank, so each rank keeps its own.

    Args:
        model: the network, not wrapped, where it stays: on its device, in its dtype and memory format.
        decay: share that is kept at each update, 0 to below 1; 0.999 averages about the last 1000 steps.

    Source: Polyak and Juditsky 1992; the warm-up is TensorFlow's ExponentialMovingAverage.

    >>> layer = nn.Linear(1, 1, bias=False)
    >>> zero = nn.init.zeros_(layer.weight)
    >>> average = WeightAverage(layer, decay=0.99)
    >>> one = nn.init.ones_(layer.weight)
    >>> average.update()  # the first update keeps 1/10 of what was there
    >>> with average.applied():
    ...     inside = layer.weight.item()
    >>> round(inside, 6), layer.weight.item()
    (0.9, 1.0)
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        """Start from the weights as they are."""
        assert 0 <= decay < 1
        self.decay, self.updates = decay, 0
        self._live = dict(model.state_dict())  # the network's own tensors: they follow it
        self._average = {name: tensor.detach().clone() for name, tensor in self._live.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights as they are; once after each step."""
        keep = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        averaged = [name for name, tensor in self._live.items() if tensor.is_floating_point()]
        torch._foreach_lerp_([self._average[n] for n in averaged], [self._live[n] for n in averaged], 1 - keep)
        for name in self._live.keys() - averaged:
            self._average[name].copy_(self._live[name])

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The network has the averaged weights inside, and its own again afterwards, bit for bit.

        For validation and for saving the model; the weights must not be trained inside.
        """
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, live in self._live.items():
            kept = live.clone()  # one tensor at a time: never a second whole copy
            live.copy_(self._average[name])
            self._average[name].copy_(kept)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint has to keep: a number and tensors."""
        return {"updates": self.updates, "average": dict(self._average)}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        self.updates = int(state["updates"])
        average: dict[str, Tensor] = state["average"]
        assert average.keys() == self._average.keys()
        for name, tensor in average.items():
            self._average[name].copy_(tensor)
