"""The model file: safetensors with everything segmentation needs in its header. Never pickle."""

import json
import struct
from typing import Literal

import torch
from pydantic import Field, JsonValue, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from unet_ray.config.base import Config
from unet_ray.config.network import NetworkConfig
from unet_ray.errors import ModelFileError
from unet_ray.network.unet import Network, expected_shapes

FORMAT_VERSION = 1
_KEY = "unet_ray"
_HEADER_LIMIT = 100_000_000  # safetensors' own limit, bytes


class Normalisation(Config):
    """Mapping of raw intensities to grey values: ``low`` to 0, ``high`` to 255, clipped."""

    low: float
    high: float
    dtype: str
    """dtype of the training images, as NumPy names it."""


class TrainingSection(Config):
    """A section that the training has seen, or that of a model it was begun from, so that an evaluation can tell."""

    fingerprint: str
    """Hash of the image section's pixels, `unet_ray.storage.volume.Volume.section_digest`."""
    grey_order: str | None = None
    """`unet_ray.storage.volume.Volume.order_digest` of the section; None where it was not noted, or has none."""
    stack: int
    """Number of the stack among those given to that training."""
    section: int
    """z in the stack."""
    role: Literal["train", "validation"]
    """validation: not trained on, but it chose the model."""


class ModelMetadata(Config):
    """What a model file says about its model."""

    network: NetworkConfig
    normalisation: Normalisation
    voxel_size_nm: tuple[float, float, float] | None = None
    """(z, y, x) of the training images, if they told."""
    halo_px: int = Field(ge=0)
    """Pixels that a tile reads around what it writes."""
    margin_px: int = Field(ge=0)
    """Pixels that valid convolutions take from each edge; 0 for same padding."""
    context_sections: int = Field(default=0, ge=0)
    """Sections below and above that are input channels."""
    training_sections: tuple[TrainingSection, ...] = ()
    training: dict[str, JsonValue] = Field(default_factory=dict)
    """Summary of the training: steps, losses, recipe."""
    format_version: int = FORMAT_VERSION


def encode(model: Network, metadata: ModelMetadata) -> bytes:
    """The bytes of a model file: the same model and metadata give the same bytes.

    Args:
        model: its state is written; dtype as it is, device and memory format do not matter.
        metadata: goes into the header as JSON.
    """
    if metadata.network != model.config:
        raise ValueError("the metadata describe another network than the model's")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    return bytes(save(tensors, metadata={_KEY: metadata.model_dump_json()}))


def decode(data: bytes, name: str = "model file") -> tuple[NetworkConfig, dict[str, Tensor], ModelMetadata]:
    """Settings, weights and metadata of a model file.

    Args:
        data: the whole file.
        name: what an error calls it, usually its path.

    Returns:
        The network's settings, its state (for `unet_ray.network.unet.network_from_state`), and the
        metadata, whose ``network`` is the first of the three.

    Raises:
        ModelFileError: not safetensors, not ours, a newer format, damaged, or tensors that do not fit
            the settings.
    """
    metadata = _metadata(data, name)
    try:
        state = load(data)
    except SafetensorError as error:
        raise ModelFileError(f"{name} is damaged ({error}); copy it again or train anew") from None
    expected = expected_shapes(metadata.network)
    missing = sorted(expected.keys() - state.keys())
    surplus = sorted(state.keys() - expected.keys())
    if missing or surplus:
        word, tensor = ("lacks", missing[0]) if missing else ("has the unknown", surplus[0])
        raise ModelFileError(f"{name} {word} tensor {tensor} for its network; take a whole model file")
    for key, shape in expected.items():
        if tuple(state[key].shape) != shape:
            raise ModelFileError(
                f"{name}: tensor {key} has shape {tuple(state[key].shape)} where its network needs {shape}; "
                "take a whole model file"
            )
        if not bool(torch.isfinite(state[key]).all()):
            raise ModelFileError(f"{name}: tensor {key} is not finite; take an earlier model")
    return metadata.network, state, metadata


def _metadata(data: bytes, name: str) -> ModelMetadata:
    not_ours = f"{name} is not a model that unet_ray has saved"
    advice = "give the model.safetensors of a training run"
    length = struct.unpack("<Q", data[:8])[0] if len(data) >= 8 else 0
    if not 2 <= length <= _HEADER_LIMIT:
        raise ModelFileError(f"{not_ours} (no safetensors header); {advice}")
    if 8 + length > len(data):
        raise ModelFileError(f"{name} is cut short or not a safetensors file; {advice}")
    try:
        header = json.loads(data[8 : 8 + length])
        own = json.loads(header["__metadata__"][_KEY])
        version = own["format_version"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ModelFileError(f"{not_ours} (its header does not say so); {advice}") from None
    if version != FORMAT_VERSION:
        raise ModelFileError(
            f"{name} has format version {version}, this unet_ray reads {FORMAT_VERSION}; "
            "use the unet_ray version that wrote it or train anew"
        )
    try:
        return ModelMetadata.model_validate(own)
    except ValidationError as error:
        place = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise ModelFileError(
            f"{name}: its metadata are wrong at {place} ({error.errors()[0]['msg']}); {advice}"
        ) from None
