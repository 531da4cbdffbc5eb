"""The summary of a network against other ways to count, and its memory against a measured peak."""

import subprocess
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from unet_ray.config.network import layers, network_config
from unet_ray.geometry.receptive_field import margin_px
from unet_ray.network.loss import Loss
from unet_ray.network.predict import hardware_precision
from unet_ray.network.summary import _FORWARD_MAPS, _TRANSIENT, PROCESS_BYTES, predicting_bytes, summarise
from unet_ray.network.unet import UNet

# A training step twice (the optimiser's state exists from the first on) after one of a tiny network, whose memory
# is PyTorch's own. Not by getrusage: its peak starts at that of the process that made this one.
MEASURE = """
import sys, torch
from unet_ray.config.network import network_config
from unet_ray.network.predict import fast_layout
from unet_ray.network.step import Batch, make_optimizer, train_step
from unet_ray.network.unet import new_network

preset, base, members, patches, side, margin, optimizer, precision = (
    sys.argv[1], *map(int, sys.argv[2:7]), *sys.argv[7:]
)
torch.set_num_threads(1)

def train(config, patches, side, steps):
    network = new_network(config, 1).to(memory_format=fast_layout("cpu", precision))
    made = make_optimizer(network, optimizer, 1e-3)
    window = side + 2 * margin
    batch = Batch(
        torch.full((patches, 1, window, window), 7, dtype=torch.uint8),
        torch.ones(patches, side, side, dtype=torch.uint8), torch.ones(patches, side, side),
    )
    for step in range(steps):
        train_step(network, batch, made, step=step, precision=precision)

train(network_config(preset, base_channels=1), 1, 4 if margin else 32, 1)
def memory(name):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(name))

before = memory("VmRSS")
train(network_config(preset, base_channels=base, members=members), patches, side, 2)
print(memory("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("preset", "base", "members", "patches", "side", "optimizer", "precision"),
    [
        ("default", 16, 1, 2, 256, "adamw", "float32"),
        ("default", 16, 1, 4, 256, "adamw", "bfloat16"),
        ("default", 16, 2, 2, 256, "adamw", "float32"),
        ("keras", 32, 1, 1, 128, "adam", "float32"),
        ("paper", 64, 1, 1, 4, "sgd", "float32"),
    ],
)
def test_memory_is_within_a_factor_of_the_measured_peak(preset, base, members, patches, side, optimizer, precision):
    if precision == "bfloat16" and hardware_precision("cpu") != precision:
        pytest.skip("this processor emulates bfloat16, in memory of its own")
    config = network_config(preset, base_channels=base, members=members)
    found = summarise(config, patches=patches, patch_px=side, optimizer=optimizer, precision=precision)
    arguments = [preset, base, members, patches, side, found.margin_px, optimizer, precision]
    command = [sys.executable, "-c", MEASURE, *map(str, arguments)]
    peak = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert peak > 1.5e8  # most of it is the network's
    assert 1 / 1.4 < found.memory.total / peak < 1.4


PREDICT = """
import sys
import numpy as np, ray.data
from unet_ray.config.network import network_config
from unet_ray.engine.process_memory import keep_freed_memory, peak_rss_bytes
from unet_ray.network.predict import Predictor
from unet_ray.network.unet import new_network

preset, window = sys.argv[1], int(sys.argv[2])
config = network_config(preset)
keep_freed_memory()
predictor = Predictor(config, new_network(config, 0).state_dict())
for _ in range(2):
    predictor(np.zeros((1, 1, window, window), np.uint8))
print(peak_rss_bytes())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("preset", "side"), [("default", 736), ("paper", 388)])
def test_a_predicting_process_takes_what_is_estimated(preset, side):
    config = network_config(preset)
    window = side + 2 * margin_px(layers(config))
    command = [sys.executable, "-c", PREDICT, preset, str(window)]
    peak = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert 1 / 1.25 < predicting_bytes(config, side) / peak < 1.25


@pytest.mark.parametrize(("preset", "side"), [("paper", 388), ("keras", 512), ("default", 256)])
def test_arithmetic_is_what_torch_counts(preset, side):
    config = network_config(preset)
    found = summarise(config, patches=2, patch_px=side)
    window = side + 2 * found.margin_px
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        UNet(config).eval()(torch.empty(1, 1, window, window))
    assert found.macs_per_pixel * side**2 * 2 == counter.get_total_flops()


def test_reach_and_parameters_of_the_paper():
    found = summarise(network_config("paper"), patches=1, patch_px=388)
    assert (found.parameters, found.margin_px, found.halo_px) == (31_030_658, 92, 94)
    # By hand, down the left side: 5 px after the last two convolutions; halves, rounded outwards, plus 4 at
    # each of 4 levels; then doubled plus 4 at each level up to the input. The worst phase of the pooling rounds up.
    reach = 5
    for _ in range(4):
        reach = reach // 2 + 1 + 4
    for _ in range(4):
        reach = 2 * reach + 4
    assert found.receptive_field_px == reach == 204


def test_memory_follows_what_is_kept():
    def memory(**changes):
        given = {"patches": 2, "patch_px": 64, "optimizer": "sgd", "precision": "float32"} | changes
        return summarise(network_config("default"), **given)

    plain = memory()
    weights = 4 * plain.parameters
    assert plain.memory.weights == 3 * weights  # parameters, gradients, momentum
    assert memory(optimizer="adam").memory.weights == memory(optimizer="adamw").memory.weights == 4 * weights
    assert memory(averaged=True).memory.weights == 4 * weights
    assert memory(workers=2).memory.weights == 4 * weights
    assert memory(precision="bfloat16").memory.weights == 3.5 * weights
    assert memory(patches=4).memory.activations == pytest.approx(2 * plain.memory.activations, rel=0.01)
    assert memory(precision="bfloat16").memory.activations < 0.6 * plain.memory.activations
    assert memory(loss=Loss(1.0, 1.0)).memory.activations > plain.memory.activations


def test_the_largest_map_is_that_of_a_skip_and_what_it_joins():
    config = network_config("default")
    largest = 2 * 16 * 64 * 64 * 4  # bytes, at full resolution
    found = summarise(config, patches=3, patch_px=64)
    assert found.memory.transient == 3 * _TRANSIENT * largest
    assert predicting_bytes(config, 64) == PROCESS_BYTES + 4 * found.parameters + _FORWARD_MAPS * largest


def test_context_sections_and_classes_are_counted():
    one = summarise(network_config("default"), patches=1, patch_px=64)
    five = summarise(network_config("default", in_channels=5, classes=3), patches=1, patch_px=64)
    assert five.parameters - one.parameters == 4 * 16 * 9 + 2 * 16 + 2
    assert five.macs_per_pixel - one.macs_per_pixel == 4 * 16 * 9 + 2 * 16


def test_one_line():
    found = summarise(network_config("keras"), patches=2, patch_px=512)
    line, memory = found.line(), found.memory
    assert line.startswith(
        "31.03 M parameters, margin 0 px, halo 112 px, receptive field 220 px, 833.2 k MACs per pixel"
    )
    assert memory.total == memory.weights + memory.activations + memory.transient
    kept = memory.total - 16 * found.parameters  # parameters, gradients and AdamW's two
    assert line.endswith(
        f", about {memory.total / 1e9:.2f} GB to train (0.50 weights and optimiser, {kept / 1e9:.2f} activations)"
    )


def test_what_tracing_loads_is_known():
    """So that it can be loaded beside something else."""
    code = """
import sys
from unet_ray.config.network import network_config
from unet_ray.network.summary import TRACING, predicting_bytes
print([name in sys.modules for name in TRACING])
predicting_bytes(network_config("default"), 64)
print([name in sys.modules for name in TRACING])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[False]", "[True]"]
