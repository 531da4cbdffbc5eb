"""What a network looks like: its settings, the three presets, and its list of layers.

No PyTorch here, so that planning a job (margins, tile sides) costs no import of it.
"""

from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from unet_ray.config.base import Config
from unet_ray.errors import ConfigError
from unet_ray.geometry.receptive_field import Conv, Join, Layer, Pool, Push, Up


class NetworkConfig(Config):
    """Settings of one U-Net, or of several alike; with its weights they decide every output value."""

    preset: str = "default"
    """Name of the preset these settings started from; the settings themselves decide."""
    depth: int = Field(default=5, ge=1, le=8)
    """Levels of resolution, the bottom one included (paper: 5)."""
    base_channels: int = Field(default=64, ge=1)
    """Channels of the first level; each level below has twice as many (paper: 64)."""
    in_channels: int = Field(default=1, ge=1)
    """Sections given as input channels: 1 + 2 x context sections."""
    classes: int = Field(default=1, ge=1)
    """Logits per pixel: 1 (membrane, sigmoid), 2 (other, membrane) or n classes (softmax)."""
    padding: Literal["valid", "same"] = "same"
    """valid: convolutions shrink the image (paper); same: zeros keep its side."""
    up: Literal["transposed", "nearest"] = "transposed"
    """transposed: 2x2 transposed convolution (paper); nearest: repeat pixels, 2x2 convolution, ReLU."""
    batch_norm: bool = False
    """Batch normalisation between each 3x3 convolution and its ReLU."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Probability that a value is dropped in training, at the levels that dropout_levels names."""
    dropout_levels: int = Field(default=0, ge=0)
    """Deepest levels of the contracting path that end in dropout (their skips see it too)."""
    head_channels: int = Field(default=0, ge=0)
    """Channels of a 3x3 convolution with ReLU before the last 1x1 one (notebook: 2); 0: none."""
    members: int = Field(default=1, ge=1, le=64)
    """U-Nets of these settings with weights of their own, whose mean is the prediction."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.padding == "valid" and self.up == "nearest":
            # A 2x2 convolution after up-sampling would shift by half a pixel or need zeros at the edge.
            raise ValueError("up 'nearest' needs padding 'same'; take up 'transposed' with padding 'valid'")
        if self.dropout_levels > self.depth:
            raise ValueError(f"dropout_levels {self.dropout_levels} is more than depth {self.depth}")
        if (self.dropout > 0) != (self.dropout_levels > 0):
            raise ValueError("dropout and dropout_levels go together: both 0 or both above 0")
        return self

    def channels(self, level: int) -> int:
        """Channels at ``level``, 0 being the full resolution.

        >>> NetworkConfig(base_channels=16).channels(4)
        256
        """
        return int(self.base_channels * 2**level)


PRESETS: dict[str, NetworkConfig] = {
    "paper": NetworkConfig(preset="paper", classes=2, padding="valid", up="transposed", dropout=0.5, dropout_levels=1),
    "keras": NetworkConfig(
        preset="keras",
        classes=1,
        padding="same",
        up="nearest",
        dropout=0.5,
        dropout_levels=2,
        head_channels=2,
    ),
    "default": NetworkConfig(
        preset="default", base_channels=16, classes=1, padding="same", up="transposed", batch_norm=True
    ),
}
"""paper: Ronneberger, Fischer, Brox 2015. keras: the notebook this project starts from. default:
narrow, with batch normalisation, so that half an hour of 2 CPU cores trains it on ISBI 2012."""


def network_config(preset: str, **overrides: Any) -> NetworkConfig:
    """Settings of ``preset`` with single ones replaced.

    Args:
        preset: "paper", "keras" or "default".
        overrides: settings of `NetworkConfig` by name; None leaves the preset's value.

    Raises:
        ConfigError: no such preset or setting, or values that do not fit together.

    >>> network_config("paper", base_channels=32, depth=None).channels(4)
    512
    """
    if preset not in PRESETS:
        raise ConfigError(f"preset {preset!r} does not exist; take one of {', '.join(PRESETS)}")
    given = {name: value for name, value in overrides.items() if value is not None}
    values = PRESETS[preset].model_dump() | given
    if "dropout_levels" not in given:  # a shallower network has fewer levels to drop from
        values["dropout_levels"] = min(values["dropout_levels"], values["depth"]) if values["dropout"] else 0
    try:
        return NetworkConfig(**values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        said = first["msg"].removeprefix("Value error, ")
        raise ConfigError(f"network setting {place + ': ' if place else ''}{said}") from None


def layers(config: NetworkConfig) -> list[Layer]:
    """The network as a list of layers, for `unet_ray.geometry.receptive_field`.

    Returns:
        Layers from input to output. A transposed 2x2 convolution of stride 2 reads what nearest
        up-sampling reads, so both are ``Up(2)``; "nearest" adds its 2x2 convolution, padded by 0
        before and 1 after, as Keras does.

    >>> from unet_ray.geometry.receptive_field import output_side
    >>> output_side(layers(network_config("paper")), 572)
    388
    """
    side = 1 if config.padding == "same" else 0
    convolution = Conv(3, padding=(side, side))
    listed: list[Layer] = []
    for _ in range(config.depth - 1):
        listed += [convolution, convolution, Push(), Pool(2)]
    listed += [convolution, convolution]
    for _ in range(config.depth - 1):
        listed.append(Up(2))
        if config.up == "nearest":
            listed.append(Conv(2, padding=(0, 1)))
        listed += [Join(), convolution, convolution]
    if config.head_channels:
        listed.append(convolution)
    listed.append(Conv(1, padding=(0, 0)))
    return listed
