"""Model files: round trip, and one sentence for everything that is not one."""

import contextlib
import json
import pickle
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from unet_ray.config.network import network_config
from unet_ray.errors import ModelFileError
from unet_ray.network.model_file import ModelMetadata, Normalisation, TrainingSection, decode, encode
from unet_ray.network.unet import network_from_state, new_network

CONFIG = network_config("default", base_channels=2, depth=3)
MODEL = new_network(CONFIG, seed=1).eval()
METADATA = ModelMetadata(
    network=CONFIG,
    normalisation=Normalisation(low=0, high=255, dtype="uint8"),
    voxel_size_nm=(50, 4, 4),
    halo_px=44,
    margin_px=0,
    training_sections=(TrainingSection(fingerprint="ab12", stack=0, section=7, role="train"),),
    training={"steps": 100, "best_validation_loss": 0.2, "learning_rates": [0.1, 0.01]},
)
DATA = encode(MODEL, METADATA)


def with_header(change):
    length = struct.unpack("<Q", DATA[:8])[0]
    header = json.loads(DATA[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + DATA[8 + length :]


def with_metadata(**changes):
    def change(header):
        own = json.loads(header["__metadata__"]["unet_ray"])
        header["__metadata__"]["unet_ray"] = json.dumps(own | changes)

    return with_header(change)


def without(name):
    state = {key: value for key, value in MODEL.state_dict().items() if key != name}
    return save(state, metadata={"unet_ray": METADATA.model_dump_json()})


def replaced(name, tensor):
    return save(MODEL.state_dict() | {name: tensor}, metadata={"unet_ray": METADATA.model_dump_json()})


def with_header_text(text):
    return struct.pack("<Q", len(text)) + text


def test_round_trip_gives_the_same_network():
    config, state, metadata = decode(DATA)
    assert (config, metadata) == (CONFIG, METADATA)
    images = torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    assert torch.equal(network_from_state(config, state)(images), MODEL(images))


@pytest.mark.parametrize("preset", ["default", "paper", "keras"])
def test_a_network_of_context_sections_goes_through_the_file(preset):
    config = network_config(preset, base_channels=2, depth=2, in_channels=5)
    metadata = METADATA.model_copy(update={"network": config, "context_sections": 2})
    model = new_network(config, seed=1).eval()
    found, state, read = decode(encode(model, metadata))
    assert (found.in_channels, read.context_sections) == (5, 2)
    images = torch.rand(1, 5, 32, 32, generator=torch.Generator().manual_seed(1))
    assert torch.equal(network_from_state(found, state)(images), model(images))
    # The channels are the sections in their order, and each of them counts.
    changed = [float((model(images) - model(images.roll(1, 1))).detach().abs().max())]
    for channel in range(5):
        other = images.clone()
        other[:, channel] += 0.5
        changed.append(float((model(images) - model(other)).detach().abs().max()))
    assert min(changed) > 1e-4


def test_bytes_depend_on_content_alone():
    model = new_network(CONFIG, seed=1).to(memory_format=torch.channels_last)
    assert encode(model, METADATA) == DATA


def test_metadata_of_another_network_are_a_mistake():
    with pytest.raises(ValueError, match="another network"):
        encode(MODEL, METADATA.model_copy(update={"network": network_config("paper")}))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "not a model"),
        (b"MM\x00*" * 100, "header|cut short"),
        (pickle.dumps({"weights": [0.0] * 100}), "header|cut short"),
        (save({"x": torch.zeros(2)}), "not a model"),
        (DATA[:100], "cut short"),
        (DATA[:-10], "damaged"),
        (with_header(lambda header: header.pop("__metadata__")), "not a model"),
        (with_header(lambda header: header.update(__metadata__=None)), "not a model"),
        (with_header_text(b"[" * 100_000), "not a model"),  # deeper than can be read
        (with_metadata(format_version=2), "format version 2"),
        (with_metadata(format_version=0), "format version 0"),
        (with_metadata(halo_px=-1), "halo_px"),
        (with_metadata(margin_px=-1), "margin_px"),
        (with_metadata(context_sections=-1), "context_sections"),
        (with_metadata(network=CONFIG.model_dump() | {"padding": "some"}), "network.padding"),
        (with_metadata(network=CONFIG.model_dump() | {"depth": 4}), "lacks tensor"),
        (with_metadata(network=CONFIG.model_dump() | {"depth": 2}), "unknown tensor"),
        (without("out.bias"), "lacks tensor out.bias"),
        (replaced("out.bias", torch.zeros(2)), r"out.bias has shape \(2,\)"),
        (replaced("out.bias", torch.full((1,), torch.nan)), "not finite"),
    ],
)
def test_what_is_not_a_model_is_said_in_one_sentence(data, said):
    with pytest.raises(ModelFileError, match=said) as caught:
        decode(data, "m.safetensors")
    assert str(caught.value).startswith("m.safetensors")
    assert "\n" not in str(caught.value)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damage_never_ends_in_anything_but_our_error(data):
    position = data.draw(st.integers(0, len(DATA) - 1))
    damaged = bytearray(DATA)
    damaged[position] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(ModelFileError):
        decode(bytes(damaged))
