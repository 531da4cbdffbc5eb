"""An exported network gives what ours gives, for other numbers and sides of windows than it was exported with."""

import json

import numpy as np
import pytest
import torch

from unet_ray.config.network import layers, network_config
from unet_ray.geometry.receptive_field import halo_px, margin_px
from unet_ray.network.batch_norm import BatchNorm
from unet_ray.network.export import GreyToProbability, exported_program, onnx_bytes
from unet_ray.network.model_file import ModelMetadata, Normalisation
from unet_ray.network.predict import Predictor
from unet_ray.network.unet import new_network

CASES = {
    "default": (network_config("default", base_channels=2, depth=3, in_channels=3), [(1, 64, 64), (3, 80, 112)]),
    "keras": (network_config("keras", base_channels=2, depth=3), [(1, 64, 64), (2, 72, 128)]),
    "paper": (network_config("paper", base_channels=2, depth=3), [(1, 108, 108), (2, 112, 140)]),
    "classes": (network_config("default", base_channels=2, depth=2, classes=4), [(1, 64, 64), (2, 66, 70)]),
    "members": (network_config("default", base_channels=2, depth=2, members=2), [(1, 64, 64), (2, 66, 70)]),
}


@pytest.fixture(params=CASES)
def case(request):
    config, sides = CASES[request.param]
    model = new_network(config, seed=1)
    rng = np.random.default_rng(0)
    windows = [
        rng.integers(0, 256, (count, config.in_channels, height, width), dtype=np.uint8)
        for count, height, width in sides
    ]
    if config.batch_norm:  # running statistics other than 0 and 1
        with torch.no_grad():
            model.train()(torch.rand(2, config.in_channels, 64, 64))
    return model.eval(), windows


def expected(model, window):
    return Predictor(model.config, model.state_dict())(window)


def test_the_exported_program_is_ours(case):
    model, windows = case
    program = exported_program(model).module()
    for window in windows:
        found = program(torch.from_numpy(window)).detach().numpy()
        np.testing.assert_allclose(found, expected(model, window), rtol=0, atol=2e-6)


def test_the_onnx_file_is_ours(case):
    runtime = pytest.importorskip("onnxruntime")
    model, windows = case
    config = model.config
    metadata = ModelMetadata(
        network=config, normalisation=Normalisation(low=0, high=255, dtype="uint8"),
        halo_px=halo_px(layers(config)), margin_px=margin_px(layers(config)),
    )  # fmt: skip
    session = runtime.InferenceSession(onnx_bytes(model, metadata), providers=["CPUExecutionProvider"])
    said = session.get_modelmeta().custom_metadata_map["unet_ray"]
    assert ModelMetadata.model_validate(json.loads(said)) == metadata
    for window in windows:
        (found,) = session.run(["probability"], {"grey": window})
        np.testing.assert_allclose(found, expected(model, window), rtol=0, atol=1e-5)


def test_normalisation_is_in_the_convolutions():
    model = new_network(network_config("default", base_channels=2, depth=2), seed=0)
    assert not any(isinstance(module, BatchNorm) for module in GreyToProbability(model).modules())


def test_training_mode_is_left_behind():
    model = new_network(network_config("keras", base_channels=2, depth=2), seed=0)
    grey = torch.full((1, 1, 64, 64), 128, dtype=torch.uint8)
    assert torch.equal(GreyToProbability(model)(grey), GreyToProbability(model)(grey))  # no dropout
