"""The moving average of the weights: its formula, and that the training does not see it."""

import copy
import io

import pytest
import torch

from unet_ray.config.network import network_config
from unet_ray.network.ema import WeightAverage
from unet_ray.network.step import make_optimizer, train_step
from unet_ray.network.unet import new_network


def trained(patches, decay, steps, seed=1):
    model = new_network(network_config("default", base_channels=2, depth=2), seed).double()
    optimizer = make_optimizer(model, "adamw", 0.01)
    average = WeightAverage(model, decay)
    states = [copy.deepcopy(model.state_dict())]
    for step in range(steps):
        train_step(model, patches(2, 8, seed=step), optimizer, step=step)
        average.update()
        states.append(copy.deepcopy(model.state_dict()))
    return model, average, states


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.999])
def test_equals_the_formula_on_weights_and_running_statistics(patches, decay):
    model, average, states = trained(patches, decay, 8)
    assert len([name for name in states[0] if "running" in name]) == 12
    for name, first in states[0].items():
        expected = first
        for t, state in enumerate(states[1:]):
            keep = min(decay, (1 + t) / (10 + t))
            expected = keep * expected + (1 - keep) * state[name] if first.is_floating_point() else state[name]
        with average.applied():
            found = model.state_dict()[name].clone()
        assert torch.allclose(found, expected, rtol=1e-12, atol=1e-15), name
        if decay and first.is_floating_point():
            assert not torch.equal(found, states[-1][name]), name


def test_training_goes_on_as_if_nobody_had_looked(patches):
    model, average, states = trained(patches, 0.9, 3)
    with pytest.raises(KeyError), average.applied():
        raise KeyError
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, states[-1][name]), name
    kept = copy.deepcopy(average.state_dict())
    with average.applied():
        pass
    for name, tensor in average.state_dict()["average"].items():
        assert torch.equal(tensor, kept["average"][name])


def test_a_checkpoint_continues_the_average(patches):
    model, average, _ = trained(patches, 0.9, 3)
    stored = io.BytesIO()
    torch.save(average.state_dict(), stored)
    stored.seek(0)
    other = copy.deepcopy(model)
    again = WeightAverage(other, 0.9)
    loaded = torch.load(stored, weights_only=True)
    kept = copy.deepcopy(loaded)
    again.load_state_dict(loaded)
    for network, averaged in ((model, average), (other, again)):
        with torch.no_grad():
            network.out.bias.add_(1.0)
        averaged.update()
    assert again.updates == 4
    with average.applied(), again.applied():
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, other.state_dict()[name]), name
            assert torch.equal(loaded["average"][name], kept["average"][name]), name  # taken over, not taken away
    with pytest.raises(AssertionError):
        again.load_state_dict({"updates": 1, "average": {}})
