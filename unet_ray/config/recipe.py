"""What augmentation may do to a section: one entry per transform, and the recipes that have a name."""

import difflib
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from unet_ray.config.base import Config
from unet_ray.config.transforms import (
    Blur,
    Brightness,
    Charging,
    CoarseElastic,
    Contrast,
    Crop,
    Elastic,
    Flip,
    Gamma,
    GaussianNoise,
    Hole,
    MissingPatch,
    QuarterTurns,
    Rotation,
    Scale,
    Scratch,
    ShotNoise,
    Stain,
    UniformNoise,
)  # fmt: skip
from unet_ray.errors import ConfigError

RecipeName = Literal["default", "notebook", "paper"]


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
    scratch: Scratch = Scratch()
    """Lines across one section."""
    hole: Hole = Hole()
    """Piece torn out of one section."""
    stain: Stain = Stain()
    """Dark grains on one section."""
    charging: Charging = Charging()
    """Ramp and bump over one section."""
    blur: Blur = Blur()
    """Defocus."""
    gaussian_noise: GaussianNoise = GaussianNoise()
    """Gaussian noise."""
    shot_noise: ShotNoise = ShotNoise()
    """Poisson-like noise."""
    uniform_noise: UniformNoise = UniformNoise()
    """Uniform noise."""
    missing_patch: MissingPatch = MissingPatch()
    """Rectangle without an image."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        for name in ("gaussian_noise", "shot_noise"):
            both = getattr(self, name).probability + self.uniform_noise.probability
            if both > 1:
                raise ValueError(
                    f"{name} and uniform_noise exclude each other, but their probabilities sum to "
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
