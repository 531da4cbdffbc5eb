"""Two gloo ranks take the steps of one process with the whole batch: float64, unequal weights, batch norm."""

import multiprocessing
import os
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from unet_ray.config.network import NetworkConfig, network_config
from unet_ray.engine.ranks import averaging, sum_over_ranks
from unet_ray.network.loss import Loss
from unet_ray.network.step import Batch, make_optimizer, train_step
from unet_ray.network.unet import UNet, new_network

STEPS = 4


def batch_of_step(step: int, config: NetworkConfig) -> Batch:
    """Three patches of very unequal weight; the third step has one patch alone, so that a rank has none."""
    rng = np.random.default_rng([7, step])
    count = 1 if step == 2 else 3
    side = 188 if config.padding == "valid" else 32
    label_side = 4 if config.padding == "valid" else 32
    weight = rng.random((count, label_side, label_side)) * np.array([1, 5, 0.1])[:count, None, None]
    return Batch(
        torch.from_numpy(rng.integers(0, 256, (count, 1, side, side), dtype=np.uint8)),
        torch.from_numpy(rng.integers(0, 2, (count, label_side, label_side), dtype=np.uint8)),
        torch.from_numpy(weight),
    )


def part(batch: Batch, rank: int, world_size: int) -> Batch:
    assert batch.weight is not None
    position = torch.arange(len(batch.image))
    return Batch(*(value[rank::world_size] for value in (batch.image, batch.label, batch.weight, position)))


def take_steps(config: NetworkConfig, rank: int, world_size: int) -> UNet:
    torch.set_num_threads(1)
    network = new_network(config, seed=3).double()
    wrapped = averaging(network, torch.device("cpu")) if world_size > 1 else network
    reduce = sum_over_ranks if world_size > 1 else None
    optimizer = make_optimizer(network, "adamw", 1e-2)
    for step in range(STEPS):
        mine = part(batch_of_step(step, config), rank, world_size)
        train_step(
            wrapped, mine, optimizer, step=step, seed=5, loss=Loss(1.0, 0.5), pieces=2, max_gradient_norm=0.3,
            world_size=world_size, reduce=reduce,
        )  # fmt: skip
    return network


CONFIGS = (
    network_config("default", base_channels=2, depth=3),
    network_config("keras", base_channels=2, depth=3),
    network_config("paper", base_channels=1),
)


def one_rank(rank: int, port: int, folder: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    dist.init_process_group("gloo", rank=rank, world_size=2)
    for config in CONFIGS:
        torch.save(take_steps(config, rank, 2).state_dict(), Path(folder) / f"{config.preset}-{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights after the steps, of every preset and rank; processes are started once for all of them."""
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    ranks = [context.Process(target=one_rank, args=(rank, port, str(folder))) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(180)
    assert [process.exitcode for process in ranks] == [0, 0]
    return folder


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.preset)
def test_two_ranks_equal_one(config: NetworkConfig, two_ranks: Path) -> None:
    alone = take_steps(config, 0, 1).state_dict()
    start = new_network(config, seed=3).double().state_dict()
    assert any((alone[name] - start[name]).abs().max() > 1e-3 for name in alone)  # it did learn
    for rank in range(2):
        found = torch.load(two_ranks / f"{config.preset}-{rank}.pt", weights_only=True)
        for name, expected in alone.items():
            torch.testing.assert_close(found[name], expected, rtol=0, atol=1e-9, msg=f"rank {rank}: {name}")
