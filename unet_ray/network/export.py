"""A trained network as a program that needs none of this package: torch.export, and ONNX."""

import importlib.util

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from unet_ray.config.network import layers
from unet_ray.errors import ConfigError
from unet_ray.geometry.receptive_field import legal_output_sides, margin_px, pooling_factor
from unet_ray.network.model_file import ModelMetadata
from unet_ray.network.unet import Network, class_probability, fold_batch_norm, membrane_probability, network_input

# Sides of 1 pixel at a level below are constants to torch.export; no tile is that small.
_LEAST_SIDE_PX = 64
_LARGEST_SIDE_PX = 1 << 14


class GreyToProbability(nn.Module):
    """Grey levels in, probabilities out: the network with what surrounds it in segmentation.

    Batch normalisation is folded into the convolutions.
    """

    def __init__(self, model: Network) -> None:
        """Take the weights of ``model``."""
        super().__init__()
        self.network = fold_batch_norm(model.eval())

    def forward(self, grey: Tensor) -> Tensor:
        """Return (n, h - 2m, w - 2m) membrane probability, float32; (n, k, ...) for k > 2 classes.

        Args:
            grey: (n, c, h, w) uint8, sides legal for the network.
        """
        logits = self.network(network_input(grey))
        return membrane_probability(logits) if logits.shape[1] <= 2 else class_probability(logits)


def exported_program(model: Network) -> ExportedProgram:
    """The network as `torch.export` has it, for any number of windows and any legal sides of at least 64 px.

    >>> from unet_ray.config.network import network_config
    >>> from unet_ray.network.unet import new_network
    >>> model = new_network(network_config("default", base_channels=2, depth=2), seed=0).eval()
    >>> grey = torch.zeros(3, 1, 80, 128, dtype=torch.uint8)
    >>> exported_program(model).module()(grey).shape
    torch.Size([3, 80, 128])
    """
    listed = layers(model.config)
    factor, margin = pooling_factor(listed), margin_px(listed)
    side = next(legal_output_sides(listed, at_least=_LEAST_SIDE_PX)) + 2 * margin
    rest = side % factor
    # A side is a multiple of the pooling factor plus a rest: written so, every pooling meets an even side.
    height, width = (
        factor * Dim(name, min=_LEAST_SIDE_PX // factor, max=_LARGEST_SIDE_PX // factor) + rest
        if rest
        else factor * Dim(name, min=max(_LEAST_SIDE_PX // factor, 1), max=_LARGEST_SIDE_PX // factor)
        for name in ("height", "width")
    )
    example = torch.zeros(2, model.config.in_channels, side, side + factor, dtype=torch.uint8)
    shapes = {"grey": {0: Dim("windows", min=1, max=4096), 2: height, 3: width}}
    with torch.no_grad():
        return torch.export.export(GreyToProbability(model), (example,), dynamic_shapes=shapes)


def require_onnx() -> None:
    """Check that what writes ONNX is there.

    Raises:
        ConfigError: it is not.
    """
    if importlib.util.find_spec("onnxscript") is None:
        raise ConfigError("an ONNX export needs the package onnxscript; pip install onnxscript and run again")


def onnx_bytes(model: Network, metadata: ModelMetadata) -> bytes:
    """An ONNX file of the network: input "grey", output "probability", our metadata under the key "unet_ray"."""
    program = torch.onnx.export(
        exported_program(model), dynamo=True, input_names=["grey"], output_names=["probability"], verbose=False
    )
    assert program is not None
    proto = program.model_proto
    entry = proto.metadata_props.add()
    entry.key, entry.value = "unet_ray", metadata.model_dump_json()
    written: bytes = proto.SerializeToString()
    return written
