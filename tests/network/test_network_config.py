"""Settings of a network and its list of layers."""

import subprocess
import sys

import pytest
from pydantic import ValidationError

from unet_ray.config.network import PRESETS, NetworkConfig, layers, network_config
from unet_ray.errors import ConfigError
from unet_ray.geometry.receptive_field import halo_px, margin_px, output_side, pooling_factor


@pytest.mark.parametrize("name", PRESETS)
def test_presets_know_their_name(name):
    assert network_config(name) == PRESETS[name]
    assert PRESETS[name].preset == name


def test_paper_geometry_from_its_layers():
    paper = layers(network_config("paper"))
    # Ronneberger et al. 2015, figure 1; 94 and not 92 keeps 384-pixel tiles on the pooling grid.
    assert (output_side(paper, 572), margin_px(paper)) == (388, 92)
    assert (pooling_factor(paper), halo_px(paper)) == (16, 94)


def test_same_padding_has_no_margin_but_a_halo():
    keras = layers(network_config("keras"))
    assert (output_side(keras, 512), margin_px(keras)) == (512, 0)
    assert halo_px(keras) >= 92


def test_overrides_replace_and_none_does_not():
    config = network_config("paper", base_channels=8, depth=None, dropout=0.0)
    assert (config.base_channels, config.depth, config.dropout, config.dropout_levels) == (8, 5, 0.0, 0)


def test_shallow_keras_keeps_dropout_where_there_are_levels():
    assert network_config("keras", depth=1).dropout_levels == 1


@pytest.mark.parametrize(
    ("preset", "overrides", "said"),
    [
        ("papre", {}, "'papre' does not exist"),
        ("paper", {"depth": 0}, "depth"),
        ("paper", {"up": "nearest"}, "needs padding 'same'"),
        ("paper", {"width": 8}, "width"),
        ("default", {"dropout_levels": 9, "dropout": 0.1}, "more than depth"),
        ("default", {"dropout": 0.1, "dropout_levels": 0}, "go together"),
    ],
)
def test_wrong_settings_are_one_sentence(preset, overrides, said):
    with pytest.raises(ConfigError, match=said) as caught:
        network_config(preset, **overrides)
    assert "\n" not in str(caught.value)


def test_frozen():
    with pytest.raises(ValidationError):
        NetworkConfig().depth = 3


def test_planning_needs_no_torch():
    code = "import sys, unet_ray.config.network; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
