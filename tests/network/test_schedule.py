"""Learning-rate schedules against torch's own."""

import io

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, OneCycleLR, ReduceLROnPlateau, SequentialLR

from unet_ray.network.schedule import Schedule


def optimizer(rate=0.1):
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=rate)


def test_one_cycle_is_torchs():
    theirs = optimizer()
    cycle = OneCycleLR(theirs, 0.1, total_steps=50, pct_start=0.3, cycle_momentum=False, final_div_factor=400)
    ours = Schedule("one_cycle", 0.1, total_steps=50)
    mine = optimizer()
    for step in range(50):
        assert ours.apply(mine, step) == pytest.approx(theirs.param_groups[0]["lr"], rel=0.1, abs=1e-6)
        theirs.step()
        if step < 49:
            cycle.step()
    assert ours.rate(49) == pytest.approx(1e-5)
    assert ours.rate(1000) == ours.rate(49)


def test_cosine_with_warm_up_is_torchs():
    theirs = optimizer()
    rising = LinearLR(theirs, start_factor=1 / 11, total_iters=10)
    cosine = SequentialLR(theirs, [rising, CosineAnnealingLR(theirs, T_max=40)], milestones=[10])
    ours = Schedule("cosine", 0.1, total_steps=50, warm_up=0.2)
    for step in range(50):
        assert ours.rate(step) == pytest.approx(theirs.param_groups[0]["lr"], rel=1e-9), step
        theirs.step()
        cosine.step()
    assert ours.rate(49) > 0
    assert ours.rate(50) == ours.rate(1000) == 0
    assert Schedule("cosine", 0.1, total_steps=50).rate(3) == pytest.approx(0.1, rel=1e-2)  # 1/20 of the steps
    assert Schedule("cosine", 0.1, total_steps=50, warm_up=0.0).rate(0) == 0.1
    assert Schedule("cosine", 0.1, total_steps=1).rate(0) > 0


def test_plateau_is_keras():
    """Keras lowers the rate at the end of the third epoch without improvement; PyTorch after as many as it bears."""
    theirs = optimizer()
    plateau = ReduceLROnPlateau(theirs, factor=0.1, patience=2, threshold=0.0)
    ours = Schedule("plateau", 0.1)
    for epoch, loss in enumerate([1.0, 0.9, 0.95, 0.9, 0.91, 0.92, 0.93, 0.94, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8]):
        plateau.step(loss)
        ours.end_epoch(loss)
        assert ours.rate(epoch) == pytest.approx(theirs.param_groups[0]["lr"]), epoch
        assert ours.rate(epoch) == pytest.approx(10.0 ** -(1 + (epoch >= 4) + (epoch >= 7) + (epoch >= 11)))


@given(st.lists(st.sampled_from([0.7, 0.8, 0.9, 1.0]), max_size=20))
def test_plateau_is_torchs_after_any_losses(losses):
    theirs = optimizer()
    plateau = ReduceLROnPlateau(theirs, factor=0.1, patience=2, threshold=0.0)
    ours = Schedule("plateau", 0.1)
    for epoch, loss in enumerate(losses):
        plateau.step(loss)
        ours.end_epoch(loss)
        assert ours.rate(epoch) == pytest.approx(theirs.param_groups[0]["lr"]), epoch


@given(total_steps=st.integers(2, 60), warm_up=st.floats(0, 0.99))
def test_a_rate_ends_low_however_late_it_is_at_the_top(total_steps, warm_up):
    how = {"total_steps": total_steps, "warm_up": warm_up}
    assert Schedule("one_cycle", 0.1, **how).rate(total_steps - 1) == pytest.approx(1e-5)
    assert Schedule("cosine", 0.1, **how).rate(total_steps) == pytest.approx(0, abs=1e-12)


def test_the_rate_is_that_of_all_parameters():
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "weight_decay": decay} for decay in (0.1, 0.0)]
    both = torch.optim.AdamW(groups, lr=0.1)
    Schedule("cosine", 0.1, total_steps=10).apply(both, 5)
    assert both.param_groups[0]["lr"] == both.param_groups[1]["lr"] < 0.1


def test_constant_stays():
    ours = Schedule("constant", 0.1)
    for _ in range(20):
        ours.end_epoch(1.0)
    assert ours.rate(5) == 0.1


def test_state_goes_through_a_weights_only_checkpoint():
    ours = Schedule("plateau", 0.1)
    for loss in (1.0, 2.0, 2.0, 2.0, 2.0):  # lowered once
        ours.end_epoch(loss)
    stored = io.BytesIO()
    torch.save(ours.state_dict(), stored)
    stored.seek(0)
    again = Schedule("plateau", 0.1)
    again.load_state_dict(torch.load(stored, weights_only=True))
    for schedule in (ours, again):
        schedule.end_epoch(2.0)
        assert schedule.rate(0) == pytest.approx(0.01)
        schedule.end_epoch(2.0)
        assert schedule.rate(0) == pytest.approx(0.001)
