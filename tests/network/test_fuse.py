"""Convolution and ReLU in one call, pooling by maxima: the same bits as PyTorch's own layers."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from unet_ray.config.network import network_config
from unet_ray.network import fuse as fuse_module
from unet_ray.network import predict
from unet_ray.network.fuse import ConvolutionRelu, MaximumPool, can_fuse, fuse
from unet_ray.network.predict import Precision, Predictor, hardware_precision
from unet_ray.network.unet import new_network

CONVOLUTIONS = {"paper": 18, "keras": 19, "default": 18}  # with a ReLU right after them, at depth 5


def predictor(preset: str, members: int, precision: Precision) -> Predictor:
    config = network_config(preset, base_channels=4, in_channels=3, members=members)
    return Predictor(config, new_network(config, 0).state_dict(), precision=precision)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("capability", ["AVX2", "AVX512"])  # the layout of float32 follows it
@pytest.mark.parametrize(
    ("preset", "members", "side"), [("paper", 1, 252), ("keras", 1, 240), ("default", 1, 240), ("default", 2, 208)]
)
def test_no_bit_changes(
    preset: str, members: int, side: int, capability: str, precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    if precision != "float32" and hardware_precision("cpu") != precision:
        pytest.skip(f"this processor emulates {precision}")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    # Two windows: of one small one PyTorch computes float32 by other code than oneDNN's.
    windows = np.random.default_rng(0).integers(0, 256, (2, 3, side, side), dtype=np.uint8)
    fused = predictor(preset, members, precision)
    kinds = [type(module) for module in fused.network.modules()]
    assert kinds.count(ConvolutionRelu) == members * CONVOLUTIONS[preset]
    assert kinds.count(MaximumPool) == members
    assert torch.nn.ReLU not in kinds
    monkeypatch.setattr(predict, "fuse", lambda network: None)
    plain = predictor(preset, members, precision)
    assert ConvolutionRelu not in [type(module) for module in plain.network.modules()]
    assert np.array_equal(fused(windows), plain(windows))


@pytest.mark.parametrize("error", [AttributeError, RuntimeError])  # another PyTorch; a dtype that the processor lacks
def test_where_it_is_not_there_the_layers_stay(error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        raise error("no such operation")

    windows = np.random.default_rng(0).integers(0, 256, (2, 3, 208, 208), dtype=np.uint8)
    fused = predictor("default", 1, "float32")(windows)
    monkeypatch.setattr(fuse_module, "_convolution_relu", missing)
    assert not can_fuse(torch.zeros(4, 3, 3, 3))
    plain = predictor("default", 1, "float32")
    assert ConvolutionRelu not in [type(module) for module in plain.network.modules()]
    assert np.array_equal(plain(windows), fused)


def test_a_convolution_without_relu_stays() -> None:
    layers = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.Conv2d(2, 2, 1), torch.nn.ReLU())
    fuse(layers.eval())
    assert [type(layer) for layer in layers] == [torch.nn.Conv2d, ConvolutionRelu, torch.nn.Identity]


@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 6), st.integers(1, 6)),
    seed=st.integers(0, 99),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    last=st.booleans(),
)
def test_maxima_are_max_pooling(shape: tuple[int, int, int, int], seed: int, dtype: torch.dtype, last: bool) -> None:
    n, channels, height, width = shape
    values = torch.randn(n, channels, 2 * height, 2 * width, generator=torch.Generator().manual_seed(seed))
    values[values > 2] = float("nan")
    values = values.to(dtype).to(memory_format=torch.channels_last if last else torch.contiguous_format)
    found, expected = MaximumPool()(values), functional.max_pool2d(values, 2)
    assert torch.equal(found.isnan(), expected.isnan())
    assert torch.equal(found.nan_to_num(), expected.nan_to_num())
    if last:
        assert found.is_contiguous(memory_format=torch.channels_last)
