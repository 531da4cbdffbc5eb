"""Ranks and micro-batches take the steps of one process with the whole batch, in float64, over 20 steps.

The ranks are threads: their sums and averages are those of `torch.distributed` and `DistributedDataParallel`
without processes; tests/engine/test_ddp.py has the real ones.
"""

import copy
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Barrier, Thread

import pytest
import torch
from torch import Tensor, nn

from unet_ray.config.network import network_config
from unet_ray.errors import TrainingDivergedError
from unet_ray.network.batch_norm import set_reduce
from unet_ray.network.loss import Loss
from unet_ray.network.step import Batch, make_optimizer, train_step
from unet_ray.network.unet import new_network

STEPS = 20
LOSS = Loss(cross_entropy=1.0, dice=0.5, label_smoothing=0.05)
# Rounding alone: after 20 steps of weights that move by 0.01 and more, 5e-15 was the largest difference.
TOLERANCE = 1e-12
# Network, label side, margin, optimiser and its rate. Dropout 0.5 as in the sources; ours has none, so here it is
# given some beside its batch normalisation.
SMALL = {"base_channels": 2, "depth": 3}
PRESETS = {
    "paper": (network_config("paper", **SMALL), 4, 20, "sgd", 0.01),
    "keras": (network_config("keras", **SMALL), 16, 0, "adam", 0.01),
    "default": (network_config("default", **SMALL, dropout=0.2, dropout_levels=1), 16, 0, "adamw", 0.01),
}
# Rows of a global batch of 4 that each rank takes: what is beyond a smaller batch is left out.
EVEN = ([0, 2], [1, 3])
UNEQUAL = ([0, 1, 2], [3])
THREE = ([3], [2, 0], [1])
SPLITS = {"unequal": UNEQUAL, "one-empty": ([], [0, 1, 2, 3]), "three": THREE}


def part(batch, rows):
    rows = [row for row in rows if row < len(batch.image)]
    return Batch(*(None if value is None else value[rows] for value in batch))


class Averaged(nn.Module):
    """Averages gradients over ranks in the backward pass, as DistributedDataParallel does."""

    def __init__(self, module, average):
        super().__init__()
        self.module, self.on = module, True

        def hook(parameter):
            if self.on:
                parameter.grad.copy_(average(parameter.grad))

        for parameter in module.parameters():
            parameter.register_post_accumulate_grad_hook(hook)

    def forward(self, images):
        return self.module(images)

    @contextmanager
    def no_sync(self):
        self.on = False
        yield
        self.on = True


@dataclass
class Ranks:
    """Sums over ranks that are threads."""

    size: int

    def __post_init__(self):
        self.barrier = Barrier(self.size)
        self.slots = [None] * self.size

    def total(self, rank, value):
        self.slots[rank] = value.detach().clone()
        self.barrier.wait(timeout=60)
        result = torch.stack(tuple(self.slots)).sum(0)
        self.barrier.wait(timeout=60)
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
        results, failures = [None] * self.size, [None] * self.size

        def body(rank):
            try:
                results[rank] = work(rank)
            except BaseException as error:
                failures[rank] = error

        threads = [Thread(target=body, args=(rank,)) for rank in range(self.size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results, failures


def train_alone(model, batches, optimizer, rate, **how):
    made = make_optimizer(model, optimizer, rate)
    return [train_step(model, batch, made, step=i, seed=5, **how) for i, batch in enumerate(batches)]


def train_in_ranks(model, batches, optimizer, rate, split, **how):
    ranks = Ranks(len(split))
    models = [copy.deepcopy(model) for _ in split]

    def work(rank):
        reduce = ranks.reduce(rank)
        set_reduce(models[rank], reduce)
        wrapped = Averaged(models[rank], lambda gradient: ranks.total(rank, gradient) / ranks.size)
        made = make_optimizer(models[rank], optimizer, rate)
        return [
            train_step(
                wrapped, part(batch, split[rank]), made, step=i, seed=5, world_size=ranks.size, reduce=reduce, **how
            )
            for i, batch in enumerate(batches)
        ]

    return models, *ranks.run(work)


def assert_same(models, alone, start):
    for name, tensor in alone.state_dict().items():
        assert not torch.equal(tensor, start.state_dict()[name]), f"{name} did not move: nothing is tested"
        for model in models:
            found = model.state_dict()[name]
            assert torch.allclose(found, tensor, rtol=0, atol=TOLERANCE), (name, float((found - tensor).abs().max()))


def batches_of(patches, side, margin, sizes=(4, 4, 3, 2, 1)):
    """20 batches; every fifth has one patch alone, so that some rank has none."""
    return [patches(sizes[step % len(sizes)], side, margin, seed=step) for step in range(STEPS)]


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize(("preset", "most"), [("paper", 0.5), ("keras", 0.08), ("default", 0.5)])
def test_ranks_take_the_steps_of_one(patches, preset, most, split):
    config, side, margin, optimizer, rate = PRESETS[preset]
    start = new_network(config, seed=1).double()
    batches = batches_of(patches, side, margin)
    how = {"loss": LOSS, "max_gradient_norm": most}
    alone = copy.deepcopy(start)
    one = train_alone(alone, batches, optimizer, rate, **how)
    models, results, failures = train_in_ranks(start, batches, optimizer, rate, SPLITS[split], **how)
    assert failures == [None] * len(models)
    assert min(r.gradient_norm for r in one) < most < max(r.gradient_norm for r in one)  # some are clipped
    for of_rank in results:
        for mine, expected in zip(of_rank, one, strict=True):
            assert mine.samples == expected.samples
            assert (mine.loss, mine.gradient_norm) == pytest.approx((expected.loss, expected.gradient_norm), rel=1e-10)
            assert mine.terms == pytest.approx(expected.terms, rel=1e-10)
    assert_same(models, alone, start)


@pytest.mark.parametrize("pieces", [2, 7])
@pytest.mark.parametrize("preset", ["paper", "keras"])
def test_micro_batches_take_the_same_step(patches, preset, pieces):
    config, side, margin, optimizer, rate = PRESETS[preset]
    start = new_network(config, seed=1).double()
    batches = batches_of(patches, side, margin)
    alone, split = copy.deepcopy(start), copy.deepcopy(start)
    one = train_alone(alone, batches, optimizer, rate, loss=LOSS)
    other = train_alone(split, batches, optimizer, rate, loss=LOSS, pieces=pieces)
    models, results, failures = train_in_ranks(start, batches, optimizer, rate, UNEQUAL, loss=LOSS, pieces=pieces)
    assert failures == [None, None]
    for found in (other, *results):
        assert [r.loss for r in found] == pytest.approx([r.loss for r in one], rel=1e-10)
    assert_same([split, *models], alone, start)


def test_micro_batches_of_batch_norm_are_those_of_all_ranks(patches):
    """Every second patch to a rank, one at a time: the same pairs make up the statistics as in one process."""
    config, side, margin, optimizer, rate = PRESETS["default"]
    start = new_network(config, seed=1).double()
    batches = batches_of(patches, side, margin, sizes=(4,))
    alone, whole = copy.deepcopy(start), copy.deepcopy(start)
    train_alone(alone, batches, optimizer, rate, pieces=2)
    train_alone(whole, batches, optimizer, rate)
    models, _, failures = train_in_ranks(start, batches, optimizer, rate, EVEN, pieces=2)
    assert failures == [None, None]
    assert_same(models, alone, start)
    assert not torch.allclose(alone.out.weight, whole.out.weight, atol=1e-4)


def test_gradients_are_averaged_once_a_step(patches):
    config, side, margin, optimizer, rate = PRESETS["keras"]
    model, averaged = new_network(config, seed=1).double(), []
    wrapped = Averaged(model, lambda gradient: averaged.append(gradient) or gradient)
    train_step(wrapped, patches(4, side, margin), make_optimizer(model, optimizer, rate), step=0, pieces=3)
    assert len(averaged) == len(list(model.parameters()))


def test_pieces_without_any_patch_leave_the_running_statistics_alone(patches):
    config, side, margin, optimizer, rate = PRESETS["default"]
    start = new_network(config, seed=1).double()
    batches = [patches(2, side, margin, seed=step) for step in range(3)]
    alone = copy.deepcopy(start)
    train_alone(alone, batches, optimizer, rate)
    models, _, failures = train_in_ranks(start, batches, optimizer, rate, EVEN, pieces=3)
    assert failures == [None, None]
    assert_same(models, alone, start)


@pytest.mark.parametrize("pieces", [1, 2])
def test_every_rank_names_the_patches_whose_loss_is_not_finite(patches, pieces):
    config, side, margin, optimizer, rate = PRESETS["keras"]
    start = new_network(config, seed=1).double()
    batches = [patches(4, side, margin, seed=step) for step in range(2)]
    batches[1].weight[3, -1, -1] = float("nan")
    models, _, failures = train_in_ranks(start, batches, optimizer, rate, THREE, pieces=pieces)
    said = {str(error) for error in failures}
    assert all(isinstance(error, TrainingDivergedError) for error in failures)
    assert len(said) == 1
    assert "training step 1: the loss is nan, not a finite number (patches 103);" in said.pop()
    alone = copy.deepcopy(start)
    train_alone(alone, batches[:1], optimizer, rate)
    for model in models:  # the weights of the step before
        for name, tensor in alone.named_parameters():
            assert torch.allclose(tensor, dict(model.named_parameters())[name], atol=TOLERANCE), name


def test_ranks_that_do_not_know_their_positions_may_not_drop(patches):
    config, side, margin, optimizer, rate = PRESETS["keras"]
    batches = [patches(4, side, margin)._replace(position=None)]
    ranks = [Batch(*(None if value is None else value[rows] for value in batches[0])) for rows in ([0, 1], [2, 3])]
    model = new_network(config, seed=1).double()
    with pytest.raises(AssertionError, match="needs dropout_masks"):
        train_step(
            model, ranks[0], make_optimizer(model, optimizer, rate), step=0, world_size=2, reduce=lambda sums: 2 * sums
        )
