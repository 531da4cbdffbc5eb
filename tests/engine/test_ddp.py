"""Two and three gloo ranks take the steps of one process with the whole batch: unequal weights, batch norm."""

import json
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
from unet_ray.geometry.descriptor_grid import descriptor_sides
from unet_ray.network.loss import Loss
from unet_ray.network.step import Batch, Precision, make_optimizer, train_step
from unet_ray.network.unet import Network, add_descriptors, new_network

STEPS = 20
# bfloat16 has 8 bits: the curves of another order of sums stay this close while the loss falls by a third.
CURVE_TOLERANCE = 0.03


def batch_of_step(step: int, config: NetworkConfig) -> Batch:
    """Three patches of very unequal weight; the third step has one patch alone, so that a rank has none."""
    rng = np.random.default_rng([7, step])
    count = 1 if step == 2 else 3
    side = 188 if config.padding == "valid" else 32
    label_side = 4 if config.padding == "valid" else 32
    weight = rng.random((count, label_side, label_side)) * np.array([1, 5, 0.1])[:count, None, None]
    described = rng.random((count, *descriptor_sides(label_side, label_side)))
    described[:, -1] = np.round(described[:, -1])
    return Batch(
        torch.from_numpy(rng.integers(0, 256, (count, 1, side, side), dtype=np.uint8)),
        torch.from_numpy(rng.integers(0, 2, (count, label_side, label_side), dtype=np.uint8)),
        torch.from_numpy(weight),
        described=torch.from_numpy(described),
    )


def part(batch: Batch, rank: int, world_size: int) -> Batch:
    positioned = batch._replace(position=torch.arange(len(batch.image)))
    return Batch(*(None if value is None else value[rank::world_size] for value in positioned))  # type: ignore[arg-type]


def take_steps(
    config: NetworkConfig, rank: int, world_size: int, precision: Precision = "float32"
) -> tuple[Network, list[float]]:
    """The network after the steps, and their losses; float64 unless in low precision."""
    torch.set_num_threads(1)
    network = start(config)
    if precision == "float32":
        network = network.double()
    wrapped = averaging(network, torch.device("cpu")) if world_size > 1 else network
    reduce = sum_over_ranks if world_size > 1 else None
    pieces = 1 if config.batch_norm else 2  # its statistics are those of a piece on all ranks
    optimizer, losses = make_optimizer(network, "adamw", 1e-2), list[float]()
    for step in range(STEPS):
        mine = part(batch_of_step(step, config), rank, world_size)
        found = train_step(
            wrapped, mine, optimizer, step=step, seed=5, loss=loss_of(config), max_gradient_norm=0.3,
            precision=precision, pieces=pieces, world_size=world_size, reduce=reduce,
        )  # fmt: skip
        losses.append(found.loss)
    return network, losses


CONFIGS = (
    network_config("default", base_channels=2, depth=3),
    network_config("keras", base_channels=2, depth=3),
    network_config("paper", base_channels=1),
    network_config("default", base_channels=2, depth=2, members=2),
)


def start(config: NetworkConfig) -> Network:
    network = new_network(config, seed=3)
    if loss_of(config).descriptors:
        add_descriptors(network, seed=4)
    return network


def loss_of(config: NetworkConfig) -> Loss:
    """Some with descriptors: a preset with valid padding, and several networks."""
    return Loss(1.0, 0.5, descriptors=2.0 * (config.preset == "paper" or config.members > 1))


def name_of(config: NetworkConfig) -> str:
    return f"{config.preset}-of-{config.members}"


def one_rank(rank: int, world_size: int, port: int, folder: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    dist.init_process_group("gloo", rank=rank, world_size=world_size)
    for config in CONFIGS:
        network, _ = take_steps(config, rank, world_size)
        torch.save(network.state_dict(), Path(folder) / f"{name_of(config)}-{rank}.pt")
    _, losses = take_steps(CONFIGS[0], rank, world_size, "bfloat16")
    (Path(folder) / f"bfloat16-{rank}.json").write_text(json.dumps(losses))
    dist.destroy_process_group()


@pytest.fixture(scope="module", params=[2, 3])
def ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Path]:
    """Their number, and the folder of what they found; processes are started once for all presets."""
    world_size, folder = request.param, tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=one_rank, args=(rank, world_size, port, str(folder))) for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
    assert [process.exitcode for process in processes] == [0] * world_size
    return world_size, folder


@pytest.mark.parametrize("config", CONFIGS, ids=name_of)
def test_ranks_equal_one(config: NetworkConfig, ranks: tuple[int, Path]) -> None:
    world_size, folder = ranks
    alone = take_steps(config, 0, 1)[0].state_dict()
    first = start(config).double().state_dict()
    assert any((alone[name] - first[name]).abs().max() > 1e-3 for name in alone)  # it did learn
    for rank in range(world_size):
        found = torch.load(folder / f"{name_of(config)}-{rank}.pt", weights_only=True)
        for name, expected in alone.items():
            torch.testing.assert_close(found[name], expected, rtol=0, atol=1e-9, msg=f"rank {rank}: {name}")


def test_the_loss_curve_in_bfloat16_is_that_of_one(ranks: tuple[int, Path]) -> None:
    world_size, folder = ranks
    alone = take_steps(CONFIGS[0], 0, 1, "bfloat16")[1]
    exact = take_steps(CONFIGS[0], 0, 1)[1]
    assert alone != pytest.approx(exact, rel=1e-6), "it was not computed in low precision"
    for rank in range(world_size):
        assert json.loads((folder / f"bfloat16-{rank}.json").read_text()) == pytest.approx(alone, rel=CURVE_TOLERANCE)
