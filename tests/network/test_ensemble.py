"""An ensemble is its members: each trained as it would be alone, their mean predicted, stored in one file."""

import numpy as np
import pytest
import torch
from torch import Tensor

from unet_ray.config.network import NetworkConfig, layers, network_config
from unet_ray.geometry.receptive_field import halo_px, margin_px
from unet_ray.network.loss import Loss
from unet_ray.network.model_file import ModelMetadata, Normalisation, decode, encode
from unet_ray.network.predict import Predictor
from unet_ray.network.step import Batch, make_optimizer, train_step
from unet_ray.network.unet import Ensemble, UNet, network_from_state, network_input, new_network

CONFIGS = {
    "default": network_config("default", base_channels=2, depth=3, members=3),
    "keras": network_config("keras", base_channels=2, depth=3, members=3),
    "classes": network_config("default", base_channels=2, depth=2, members=2, classes=4, in_channels=3),
}


def alone(config: NetworkConfig) -> NetworkConfig:
    return config.model_copy(update={"members": 1})


def member_states(ensemble: torch.nn.Module) -> list[dict[str, Tensor]]:
    assert isinstance(ensemble, Ensemble)
    return [dict(member.state_dict()) for member in ensemble.members]


def batch(step: int, config: NetworkConfig) -> Batch:
    rng = np.random.default_rng([3, step])
    return Batch(
        torch.from_numpy(rng.integers(0, 256, (2, config.in_channels, 32, 32), dtype=np.uint8)),
        torch.from_numpy(rng.integers(0, max(config.classes, 2), (2, 32, 32), dtype=np.uint8)),
        torch.from_numpy(rng.random((2, 32, 32), dtype=np.float32)),
    )


def trained(
    config: NetworkConfig, start: dict[str, Tensor], steps: int, pieces: int = 1
) -> tuple[Tensor, torch.nn.Module]:
    """Losses of the steps, and the network after them."""
    network = new_network(config, seed=1)
    network.load_state_dict(start)
    optimizer = make_optimizer(network, "sgd", 0.05, momentum=0.9)
    losses = [
        train_step(network, batch(step, config), optimizer, step=step, seed=2, loss=Loss(1.0, 0.5), pieces=pieces).loss
        for step in range(steps)
    ]
    return torch.tensor(losses), network


@pytest.mark.parametrize("pieces", [1, 2])
@pytest.mark.parametrize("name", ["default", "classes"])
def test_each_member_is_trained_as_it_would_be_alone(name: str, pieces: int) -> None:
    """With sgd, whose step is as long as the gradient: Adam would hide a loss that is divided by the members."""
    config = CONFIGS[name]
    start = new_network(config, seed=1)
    losses, together = trained(config, start.state_dict(), 5, pieces)
    singles = [trained(alone(config), of_member, 5, pieces) for of_member in member_states(start)]
    torch.testing.assert_close(losses, torch.stack([found for found, _ in singles]).mean(0))
    for of_member, (_, single), before in zip(member_states(together), singles, member_states(start), strict=True):
        assert not torch.allclose(of_member["out.weight"], before["out.weight"], atol=1e-4)  # it did learn
        for key, expected in single.state_dict().items():
            torch.testing.assert_close(of_member[key], expected, rtol=1e-5, atol=1e-6)


def test_the_first_member_is_the_network_of_that_seed_and_the_others_differ() -> None:
    first, *others = member_states(new_network(CONFIGS["default"], seed=4))
    single = new_network(alone(CONFIGS["default"]), seed=4).state_dict()
    assert all(torch.equal(first[key], tensor) for key, tensor in single.items())
    assert not any(torch.equal(first["down.0.0.weight"], other["down.0.0.weight"]) for other in others)


def test_members_drop_different_values() -> None:
    """Members of the same weights, with dropout: only what each drops tells them apart."""
    config = CONFIGS["keras"]
    network = new_network(config, seed=1)
    assert isinstance(network, Ensemble)
    first = dict(network.members[0].state_dict())
    for member in network.members:
        member.load_state_dict(first)
    optimizer = make_optimizer(network, "sgd", 0.1)
    train_step(network, batch(0, config), optimizer, step=0)
    after = [state["down.0.0.weight"] for state in member_states(network)]
    assert not torch.equal(after[0], after[1])
    assert not torch.equal(after[1], after[2])


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", CONFIGS)
def test_the_prediction_is_that_of_the_mean_logits(name: str, precision: str) -> None:
    config = CONFIGS[name]
    network = trained(config, new_network(config, seed=1).state_dict(), 3)[1].eval()
    windows = batch(9, config).image
    with torch.inference_mode():
        images = network_input(windows)
        mean = torch.stack([network_from_state(alone(config), s)(images) for s in member_states(network)]).mean(0)
    expected = torch.sigmoid(mean[:, 0]) if config.classes == 1 else torch.softmax(mean, dim=1)
    found = Predictor(config, network.state_dict(), precision=precision)(windows.numpy())  # type: ignore[arg-type]
    np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=1e-6 if precision == "float32" else 0.03)


def test_one_file_holds_them_all() -> None:
    config = CONFIGS["default"]
    network = new_network(config, seed=6).eval()
    metadata = ModelMetadata(
        network=config, normalisation=Normalisation(low=0, high=255, dtype="uint8"),
        halo_px=halo_px(layers(config)), margin_px=margin_px(layers(config)),
    )  # fmt: skip
    found, state, said = decode(encode(network, metadata))
    assert (found, said) == (config, metadata)
    images = network_input(batch(0, config).image)
    with torch.inference_mode():
        assert torch.equal(network_from_state(found, state)(images), network(images))


def test_a_network_of_one_member_is_no_ensemble() -> None:
    assert isinstance(new_network(alone(CONFIGS["default"]), seed=0), UNet)
