"""What augmentation may do: one entry per transform, each with a probability and ranges with units.

Grey levels are those of 8-bit images, whatever the input's dtype was. A range is (lowest, highest),
both included, and is drawn from evenly unless the entry says otherwise.
"""

import difflib
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, ValidationError, model_validator

from unet_ray.config.base import Config
from unet_ray.errors import ConfigError

RecipeName = Literal["default", "notebook", "paper"]
Probability = Annotated[float, Field(ge=0.0, le=1.0)]


def _ordered_floats(bounds: tuple[float, float]) -> tuple[float, float]:
    if bounds[0] > bounds[1]:
        raise ValueError(f"the range {bounds[0]:g} to {bounds[1]:g} is empty; give the lower number first")
    return bounds


def _ordered_ints(bounds: tuple[int, int]) -> tuple[int, int]:
    _ordered_floats(bounds)
    return bounds


def _positive(bounds: tuple[float, float]) -> tuple[float, float]:
    if bounds[0] <= 0:
        raise ValueError(f"the range {bounds[0]:g} to {bounds[1]:g} must lie above 0")
    return bounds


def _not_negative(bounds: tuple[int, int]) -> tuple[int, int]:
    if bounds[0] < 0:
        raise ValueError(f"the range {bounds[0]} to {bounds[1]} must not go below 0")
    return bounds


FloatRange = Annotated[tuple[float, float], AfterValidator(_ordered_floats)]
PositiveRange = Annotated[FloatRange, AfterValidator(_positive)]
IntRange = Annotated[tuple[int, int], AfterValidator(_ordered_ints)]
CountRange = Annotated[IntRange, AfterValidator(_not_negative)]


class Flip(Config):
    """Mirroring; the axes are drawn apart, so 0.5 and 0.5 is one of none, y, x, both."""

    y_probability: Probability = 0.0
    """Probability that top and bottom change places."""
    x_probability: Probability = 0.0
    """Probability that left and right change places."""


class QuarterTurns(Config):
    """Rotation by 90, 180 or 270 degrees, each as likely; at 0.75 none is as likely as any of them."""

    probability: Probability = 0.0
    """Probability of any such turn."""


class Rotation(Config):
    """Free rotation about the patch's centre."""

    probability: Probability = 0.0
    """Probability of a rotation."""
    degrees: FloatRange = (-15.0, 15.0)
    """Angle, degrees."""


class Scale(Config):
    """Zoom about the patch's centre."""

    probability: Probability = 0.0
    """Probability of a zoom."""
    factor: PositiveRange = (0.9, 1.1)
    """Above 1 things get larger; drawn evenly in its logarithm."""


class Elastic(Config):
    """Displacements of per-pixel noise, even in [-1, 1], smoothed by a Gaussian (Simard et al. 2003).

    Their standard deviation is 0.163 alpha / sigma pixels.
    """

    probability: Probability = 0.0
    """Probability of this deformation."""
    alpha: PositiveRange = (34.0, 34.0)
    """Factor on the smoothed noise, pixels."""
    sigma_px: PositiveRange = (6.0, 12.0)
    """Standard deviation of the Gaussian, pixels."""


class CoarseElastic(Config):
    """Displacements drawn at the nodes of a coarse grid, bicubic in between (Ronneberger et al. 2015)."""

    probability: Probability = 0.0
    """Probability of this deformation."""
    nodes: Annotated[int, Field(ge=2, le=64)] = 3
    """Nodes per side; the grid spans the patch's image, its margin included."""
    sd_px: PositiveRange = (10.0, 10.0)
    """Standard deviation of a node's displacement in y and in x, pixels."""


class Crop(Config):
    """Where the patch is taken from: any whole-pixel corner that keeps it within the padded section."""

    pad_px: Annotated[int, Field(ge=0)] = 0
    """Mirrored pixels that the patch may reach beyond the section, on each side."""


class Brightness(Config):
    """A constant added to the image."""

    probability: Probability = 0.0
    """Probability of a shift."""
    shift: IntRange = (-20, 20)
    """Grey levels, a whole number."""


class Contrast(Config):
    """A factor on the distance from mid-grey (127.5)."""

    probability: Probability = 0.0
    """Probability of a change."""
    factor: PositiveRange = (0.75, 1.33)
    """Above 1 is more contrast; drawn evenly in its logarithm."""


class Gamma(Config):
    """A power of the grey level, black and white kept."""

    probability: Probability = 0.0
    """Probability of a change."""
    exponent: PositiveRange = (0.75, 1.33)
    """Below 1 is brighter; drawn evenly in its logarithm."""


class Blur(Config):
    """Gaussian blur of the image, as by defocus; before the noise."""

    probability: Probability = 0.0
    """Probability of a blur."""
    sigma_px: PositiveRange = (0.4, 1.2)
    """Standard deviation, pixels."""


class GaussianNoise(Config):
    """Independent Gaussian noise on every pixel, mean 0. Excludes uniform noise."""

    probability: Probability = 0.0
    """Probability of it; together with uniform noise's at most 1."""
    sd: CountRange = (0, 20)
    """Standard deviation, grey levels, a whole number."""


class UniformNoise(Config):
    """Independent noise on every pixel, even between two bounds. Excludes Gaussian noise."""

    probability: Probability = 0.0
    """Probability of it; together with Gaussian noise's at most 1."""
    low: IntRange = (-20, 0)
    """Range that the lower bound is drawn from, grey levels, a whole number."""
    high: IntRange = (0, 20)
    """Range that the upper bound is drawn from, grey levels, a whole number."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.low[1] > self.high[0]:
            raise ValueError(f"low may reach {self.low[1]}, above the least high, {self.high[0]}")
        return self


class Recipe(Config):
    """Everything augmentation may do to a section; what is left out is not done."""

    flip: Flip = Flip()
    """Mirroring in y and x."""
    quarter_turns: QuarterTurns = QuarterTurns()
    """Rotation by 90, 180, 270 degrees."""
    rotation: Rotation = Rotation()
    """Free rotation."""
    scale: Scale = Scale()
    """Zoom."""
    elastic: Elastic = Elastic()
    """Smoothed per-pixel displacements."""
    coarse_elastic: CoarseElastic = CoarseElastic()
    """Displacements of a coarse grid."""
    crop: Crop = Crop()
    """Where the patch is taken from."""
    gamma: Gamma = Gamma()
    """Power of the grey level; the image only, like all below, in this order."""
    contrast: Contrast = Contrast()
    """Factor about mid-grey."""
    brightness: Brightness = Brightness()
    """Constant shift."""
    blur: Blur = Blur()
    """Defocus."""
    gaussian_noise: GaussianNoise = GaussianNoise()
    """Gaussian noise."""
    uniform_noise: UniformNoise = UniformNoise()
    """Uniform noise."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        both = self.gaussian_noise.probability + self.uniform_noise.probability
        if both > 1:
            raise ValueError(
                "gaussian_noise and uniform_noise exclude each other, but their probabilities sum to "
                f"{both:g}; lower one until they sum to at most 1"
            )
        return self


class WeightMap(Config):
    """The paper's weight of each pixel in the loss: class balance plus a border term between cells."""

    border_weight: Annotated[float, Field(ge=0.0)] = 10.0
    """w0, the border term's height; 0 leaves it out."""
    border_sigma_px: Annotated[float, Field(gt=0.0, le=50.0)] = 5.0
    """Sigma, how fast the border term falls with the distance to the two nearest cells, pixels."""
    class_balance: bool = True
    """Weigh each class by the inverse of its share of the training pixels, mean 1."""


RECIPES: dict[str, Recipe] = {
    "default": Recipe(
        flip=Flip(y_probability=0.5, x_probability=0.5),
        quarter_turns=QuarterTurns(probability=0.75),
        rotation=Rotation(probability=0.5),
        scale=Scale(probability=0.5),
        elastic=Elastic(probability=0.8, alpha=(100.0, 250.0), sigma_px=(12.0, 20.0)),
        gamma=Gamma(probability=0.5),
        contrast=Contrast(probability=0.5),
        brightness=Brightness(probability=0.5),
        blur=Blur(probability=0.2),
        gaussian_noise=GaussianNoise(probability=0.5, sd=(1, 12)),
    ),
    "notebook": Recipe(
        flip=Flip(y_probability=0.5, x_probability=0.5),
        elastic=Elastic(probability=1.0),
        crop=Crop(pad_px=62),
        brightness=Brightness(probability=1.0),
        gaussian_noise=GaussianNoise(probability=0.5),
        uniform_noise=UniformNoise(probability=0.5),
    ),
    "paper": Recipe(
        rotation=Rotation(probability=1.0, degrees=(-180.0, 180.0)),
        coarse_elastic=CoarseElastic(probability=1.0),
        brightness=Brightness(probability=1.0),
        contrast=Contrast(probability=1.0, factor=(0.9, 1.1)),
    ),
}
"""notebook: the notebook's list and numbers; its padding is (512 - 388) / 2. paper: shift, rotation,
elastic deformation on 3 x 3 nodes with 10 px; of its grey-value changes it gives no numbers, so they
are ours. default: ours for membranes, whose sections have no preferred direction."""


def recipe(name: str, overrides: Mapping[str, Mapping[str, Any]] | None = None) -> Recipe:
    """The recipe called ``name`` with single settings replaced.

    Args:
        name: "default", "notebook" or "paper".
        overrides: entry -> setting -> value; what is not given stays as the recipe has it.

    Raises:
        ConfigError: no such recipe, entry or setting, or an impossible value; names its key.

    >>> recipe("notebook", {"elastic": {"sigma_px": (8, 8)}}).elastic.sigma_px
    (8.0, 8.0)
    """
    if name not in RECIPES:
        raise ConfigError(f"recipe {name!r} does not exist; take one of {', '.join(RECIPES)}")
    values = RECIPES[name].model_dump()
    for entry, settings in (overrides or {}).items():
        _refuse_unknown(name, entry, list(values))
        for setting in settings:
            _refuse_unknown(name, setting, list(values[entry]), f"{entry}.")
        values[entry] |= settings
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "as a whole"
        raise ConfigError(f"recipe {name!r}, {key}: {first['msg'].removeprefix('Value error, ')}") from None


def _refuse_unknown(name: str, key: str, known: list[str], under: str = "") -> None:
    if key not in known:
        nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]
        raise ConfigError(f"recipe {name!r} has no {under}{key}; the nearest is {under}{nearest}")
