"""The training step: ranks with unequal weights take the step of one process; nothing silent on NaN."""

import copy
from dataclasses import dataclass
from threading import Barrier, Thread

import pytest
import torch
from torch import Tensor

from unet_ray.config.network import network_config
from unet_ray.errors import TrainingDivergedError
from unet_ray.network.batch_norm import BatchNorm, set_reduce
from unet_ray.network.step import Batch, make_optimizer, train_step, validation_loss
from unet_ray.network.unet import new_network


def patches(count, side, margin=0, seed=1, low=0.0):
    generator = torch.Generator().manual_seed(seed)
    window = side + 2 * margin
    image = torch.randint(0, 256, (count, 1, window, window), dtype=torch.uint8, generator=generator)
    label = torch.randint(0, 2, (count, side, side), dtype=torch.uint8, generator=generator)
    weight = low + torch.rand(count, side, side, dtype=torch.float64, generator=generator)
    weight *= torch.arange(1, count + 1).reshape(-1, 1, 1)  # unequal totals per rank
    return Batch(image, label, weight)


def part(batch, rows):
    return Batch(*(None if value is None else value[rows] for value in batch))


@dataclass
class Ranks:
    """Sums over ranks that are threads, and gradients averaged as DistributedDataParallel does."""

    size: int

    def __post_init__(self):
        self.barrier = Barrier(self.size)
        self.slots = [None] * self.size

    def total(self, rank, value):
        self.slots[rank] = value.detach().clone()
        self.barrier.wait(timeout=20)
        result = torch.stack(tuple(self.slots)).sum(0)
        self.barrier.wait(timeout=20)
        return result

    def reduce(self, rank):
        ranks = self

        class Sum(torch.autograd.Function):
            @staticmethod
            def forward(ctx, value: Tensor) -> Tensor:
                return ranks.total(rank, value)

            @staticmethod
            def backward(ctx, gradient: Tensor) -> Tensor:
                return ranks.total(rank, gradient)

        return Sum.apply

    def run(self, work):
        results, failures = [None] * self.size, []

        def body(rank):
            try:
                results[rank] = work(rank)
            except BaseException as error:
                failures.append(error)
                self.barrier.abort()

        threads = [Thread(target=body, args=(rank,)) for rank in range(self.size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]
        return results


def train_alone(model, batches, optimizer_name):
    optimizer = make_optimizer(model, optimizer_name, 0.01)
    return [train_step(model, batch, optimizer, step=i) for i, batch in enumerate(batches)]


def train_in_ranks(model, batches, optimizer_name, splits):
    ranks = Ranks(len(splits))
    models = [copy.deepcopy(model) for _ in splits]

    def work(rank):
        reduce = ranks.reduce(rank)
        own = models[rank]
        set_reduce(own, reduce)
        optimizer = make_optimizer(own, optimizer_name, 0.01)

        def average(parameter):
            parameter.grad.copy_(ranks.total(rank, parameter.grad) / ranks.size)

        for parameter in own.parameters():
            parameter.register_post_accumulate_grad_hook(average)
        return [
            train_step(own, part(batch, splits[rank]), optimizer, step=i, world_size=ranks.size, reduce=reduce)
            for i, batch in enumerate(batches)
        ]

    return models, ranks.run(work)


@pytest.mark.parametrize(
    ("preset", "side", "margin", "optimizer"),
    [("paper", 4, 20, "sgd"), ("keras", 16, 0, "adam"), ("default", 16, 0, "adamw")],
)
@pytest.mark.parametrize("splits", [([0, 1, 2], [3]), ([0, 1, 2, 3], [])], ids=["3+1", "4+0"])
def test_two_ranks_take_the_steps_of_one(preset, side, margin, optimizer, splits):
    config = network_config(preset, base_channels=2, depth=3, dropout=0.0)
    model = new_network(config, seed=1).double()
    batches = [patches(4, side, margin, seed) for seed in range(3)]
    alone = copy.deepcopy(model)
    one = train_alone(alone, batches, optimizer)
    models, results = train_in_ranks(model, batches, optimizer, splits)
    for mine, of_rank in zip(one, results[0], strict=True):
        assert of_rank.loss == pytest.approx(mine.loss, rel=1e-12)
        assert (of_rank.samples, of_rank.weight) == (4, pytest.approx(mine.weight, rel=1e-12))
    for name, tensor in alone.state_dict().items():
        assert not torch.equal(tensor, model.state_dict()[name]), f"{name} did not move: nothing is tested"
        for of_rank in models:
            assert torch.allclose(of_rank.state_dict()[name], tensor, rtol=1e-8, atol=1e-10), name


def test_batch_norm_with_a_sum_equals_torch():
    generator = torch.Generator().manual_seed(3)
    images = 5 + torch.randn(4, 3, 6, 6, generator=generator)
    ours, theirs = BatchNorm(3), torch.nn.BatchNorm2d(3)
    set_reduce(ours, lambda value: value)
    one, two = images.clone().requires_grad_(), images.clone().requires_grad_()
    (ours(one) ** 3).sum().backward()
    (theirs(two) ** 3).sum().backward()
    assert torch.allclose(one.grad, two.grad, atol=1e-3)
    assert torch.allclose(ours.running_mean, theirs.running_mean, atol=1e-6)
    assert torch.allclose(ours.running_var, theirs.running_var, atol=1e-6)
    assert torch.allclose(ours.eval()(images), theirs.eval()(images), atol=1e-6)


def test_a_loss_that_is_not_finite_stops_before_the_weights_change():
    model = new_network(network_config("default", base_channels=2, depth=2), seed=1)
    optimizer = make_optimizer(model, "adamw", 0.1)
    batch = patches(1, 8)
    train_step(model, batch, optimizer, step=0)
    before = copy.deepcopy(model.state_dict())
    batch.weight[0, 0, 0] = float("inf")
    with pytest.raises(TrainingDivergedError, match="training step 17") as caught:
        train_step(model, batch, optimizer, step=17)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(before[name], value) for name, value in model.named_parameters())


def test_a_batch_without_weight_is_no_step():
    model = new_network(network_config("keras", base_channels=2, depth=2), seed=1)
    optimizer = make_optimizer(model, "adam", 0.1)
    batch = patches(1, 8)
    train_step(model, batch, optimizer, step=0)  # from now on Adam's momentum would move the weights
    before = copy.deepcopy(model.state_dict())
    result = train_step(model, batch._replace(weight=torch.zeros(1, 8, 8)), optimizer, step=1)
    assert (result.loss, result.weight) == (0, 0)
    assert all(torch.equal(before[name], value) for name, value in model.named_parameters())


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_it_learns_and_validation_does_not(precision):
    model = new_network(network_config("default", base_channels=4, depth=3), seed=1)
    optimizer = make_optimizer(model, "adamw", 0.01)
    image = patches(2, 32).image
    batch = Batch(image, (image[:, 0] > 128).to(torch.uint8)).to("cpu")
    losses = [train_step(model, batch, optimizer, step=i, precision=precision).loss for i in range(30)]
    assert losses[-1] < 0.5 * losses[0]
    before = copy.deepcopy(model.state_dict())
    checked = validation_loss(model, batch, precision=precision)
    assert checked.weight == 2 * 32 * 32
    assert checked.loss < losses[0]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_optimizers_are_what_they_are_called():
    model = new_network(network_config("default", base_channels=2, depth=2), seed=1)
    paper = make_optimizer(model, "sgd", 0.1).param_groups[0]
    assert (type(make_optimizer(model, "adam", 0.1)), paper["momentum"]) == (torch.optim.Adam, 0.99)
    decayed, free = make_optimizer(model, "adamw", 0.1, weight_decay=0.3).param_groups
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.3, 0.0)
    assert {p.ndim for p in decayed["params"]} == {4}
    assert {p.ndim for p in free["params"]} == {1}
