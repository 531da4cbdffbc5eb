"""Batches of noise whose samples have very unequal weight; and one thread, for networks this small."""

import pytest
import torch

from unet_ray.network.step import Batch


@pytest.fixture(autouse=True)
def one_thread():
    """More threads than free cores wait for one another longer than they compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def patches():
    """patches(count, side, margin=0, seed=1) -> Batch, float64 weights, positions and numbers given."""

    def make(count, side, margin=0, seed=1):
        generator = torch.Generator().manual_seed(seed)
        window = side + 2 * margin
        image = torch.randint(0, 256, (count, 1, window, window), dtype=torch.uint8, generator=generator)
        label = torch.randint(0, 2, (count, side, side), dtype=torch.uint8, generator=generator)
        weight = torch.rand(count, side, side, dtype=torch.float64, generator=generator)
        weight *= torch.arange(1, count + 1).reshape(-1, 1, 1)
        weight[:, : side // 4] = 0  # nobody labelled the first rows
        return Batch(image, label, weight, torch.arange(count), 100 + torch.arange(count))

    return make
