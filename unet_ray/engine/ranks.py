"""The ranks of one training: sums over them, and a network whose gradients they average."""

import inspect
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from unet_ray.network.batch_norm import set_reduce
from unet_ray.network.unet import Network

# 2.13 renamed it and warns of the old name.
_SYNC_BUFFERS = next(
    name
    for name in ("forward_sync_buffers", "broadcast_buffers")
    if name in inspect.signature(DistributedDataParallel).parameters
)


def sum_over_ranks(values: Tensor) -> Tensor:
    """The sum of all ranks' ``values``, which it replaces, on every rank."""
    dist.all_reduce(values)
    return values


def gather(mine: Any) -> list[Any]:
    """What every rank gave, in the order of ranks."""
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, mine)
    return found


def averaging(network: Network, device: torch.device, *, compiled: bool = False) -> DistributedDataParallel:
    """The network as one of several ranks trains it: gradients averaged, batch statistics those of all ranks."""
    set_reduce(network, sum_over_ranks, compiled=compiled)
    # Running statistics are the same on every rank as it is.
    given: dict[str, Any] = {_SYNC_BUFFERS: False, "device_ids": [device] if device.type == "cuda" else None}
    return DistributedDataParallel(network, **given)
