"""What each transform of augmentation may do: a probability, and ranges with units.

Grey levels are those of 8-bit images, whatever the input's dtype was. A range is (lowest, highest), both
included, and is drawn from evenly unless the entry says otherwise. Lengths are in pixels of the patch.
"""

from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from unet_ray.config.base import Config

Probability = Annotated[float, Field(ge=0.0, le=1.0)]
Floats = tuple[float, float]
Ints = tuple[int, int]


def _within(least: float, most: float) -> AfterValidator:
    """Refuses ranges that are empty, that make no sense, or whose arrays or numbers would not fit a machine."""

    def check(bounds: Floats) -> Floats:
        lowest, highest = bounds
        if lowest > highest:
            raise ValueError(f"the range {lowest:g} to {highest:g} is empty; give the lower number first")
        if lowest < least or highest > most:
            raise ValueError(f"the range {lowest:g} to {highest:g} must stay within {least:g} to {most:g}")
        return bounds

    return AfterValidator(check)


Factors = Annotated[Floats, _within(0.1, 10)]
GreyLevels = Annotated[Ints, _within(0, 255)]
GreyShifts = Annotated[Ints, _within(-255, 255)]


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
    degrees: Annotated[Floats, _within(-360, 360)] = (-15.0, 15.0)
    """Angle, degrees."""


class Scale(Config):
    """Zoom about the patch's centre."""

    probability: Probability = 0.0
    """Probability of a zoom."""
    factor: Factors = (0.9, 1.1)
    """Above 1 things get larger; drawn evenly in its logarithm."""


class Elastic(Config):
    """Displacements of per-pixel noise, even in [-1, 1], smoothed by a Gaussian (Simard et al. 2003).

    Their standard deviation is 0.163 alpha / sigma pixels.
    """

    probability: Probability = 0.0
    """Probability of this deformation."""
    alpha: Annotated[Floats, _within(0, 1e5)] = (34.0, 34.0)
    """Factor on the smoothed noise, pixels."""
    sigma_px: Annotated[Floats, _within(1, 1000)] = (6.0, 12.0)
    """Standard deviation of the Gaussian, pixels."""


class CoarseElastic(Config):
    """Displacements drawn at the nodes of a coarse grid, bicubic in between (Ronneberger et al. 2015)."""

    probability: Probability = 0.0
    """Probability of this deformation."""
    nodes: Annotated[int, Field(ge=2, le=64)] = 3
    """Nodes per side; the grid spans the patch's image, its margin included."""
    sd_px: Annotated[Floats, _within(0, 1000)] = (10.0, 10.0)
    """Standard deviation of a node's displacement in y and in x, pixels."""


class Crop(Config):
    """Where the patch is taken from: any whole-pixel corner that keeps it within the padded section."""

    pad_px: Annotated[int, Field(ge=0, le=65536)] = 0
    """Mirrored pixels that the patch may reach beyond the section, on each side."""


class Brightness(Config):
    """A constant added to the image."""

    probability: Probability = 0.0
    """Probability of a shift."""
    shift: GreyShifts = (-20, 20)
    """Grey levels, a whole number."""


class Contrast(Config):
    """A factor on the distance from mid-grey (127.5)."""

    probability: Probability = 0.0
    """Probability of a change."""
    factor: Factors = (0.75, 1.33)
    """Above 1 is more contrast; drawn evenly in its logarithm."""


class Gamma(Config):
    """A power of the grey level, black and white kept."""

    probability: Probability = 0.0
    """Probability of a change."""
    exponent: Factors = (0.75, 1.33)
    """Below 1 is brighter; drawn evenly in its logarithm."""


class Scratch(Config):
    """Marks of a nicked knife, or folds: straight lines across one section, all in one direction."""

    probability: Probability = 0.0
    """Probability of any."""
    count: Annotated[Ints, _within(1, 50)] = (1, 3)
    """Lines."""
    width_px: Annotated[Floats, _within(0.5, 500)] = (1.5, 8.0)
    """Width of a line where it has half its strength, pixels."""
    shift: GreyShifts = (-70, 70)
    """Grey levels added in the middle of a line, a whole number; below 0 is darker."""


class Hole(Config):
    """A piece torn out of one section: a ragged spot of one grey level. What the labels say of it stays."""

    probability: Probability = 0.0
    """Probability of one."""
    side_px: Annotated[Floats, _within(1, 4096)] = (20.0, 80.0)
    """Length and width, drawn apart, pixels."""
    edge_px: Annotated[Floats, _within(1, 100)] = (1.5, 4.0)
    """Width of the soft edge, pixels."""
    grey: GreyLevels = (200, 255)
    """Grey level of the hole; bright in transmission, dark where electrons are scattered back."""


class Stain(Config):
    """Grains of precipitated stain on one section: small ragged spots."""

    probability: Probability = 0.0
    """Probability of any."""
    count: Annotated[Ints, _within(1, 100)] = (1, 6)
    """Spots."""
    side_px: Annotated[Floats, _within(1, 4096)] = (4.0, 24.0)
    """Length and width of a spot, drawn apart, pixels."""
    edge_px: Annotated[Floats, _within(1, 100)] = (1.5, 4.0)
    """Width of the soft edge, pixels."""
    grey: GreyLevels = (0, 50)
    """Grey level of a spot."""


class Charging(Config):
    """Charge that gathers on one section: a ramp over the patch plus one broad bump."""

    probability: Probability = 0.0
    """Probability of it."""
    ramp: GreyShifts = (0, 50)
    """Rise from one side of the patch to the other, in any direction, grey levels; 0 for no ramp."""
    bump: GreyShifts = (-40, 40)
    """Height of the bump, grey levels; 0 for no bump."""
    bump_px: Annotated[Floats, _within(1, 1e5)] = (80.0, 300.0)
    """Diameter of the bump where it has half its height, pixels."""


class Blur(Config):
    """Gaussian blur of the image, as by defocus; before the noise."""

    probability: Probability = 0.0
    """Probability of a blur."""
    sigma_px: Annotated[Floats, _within(0, 50)] = (0.4, 1.2)
    """Standard deviation, pixels."""


class GaussianNoise(Config):
    """Independent Gaussian noise on every pixel, mean 0, as of a camera's electronics. Excludes uniform noise."""

    probability: Probability = 0.0
    """Probability of it; together with uniform noise's at most 1."""
    sd: GreyLevels = (0, 20)
    """Standard deviation, grey levels, a whole number."""


class ShotNoise(Config):
    """Noise of counted electrons: independent, its variance in proportion to the grey level (Poisson-like).

    Its variance and that of Gaussian noise add up, in one draw per pixel. Excludes uniform noise.
    """

    probability: Probability = 0.0
    """Probability of it, with or without Gaussian noise; together with uniform noise's at most 1."""
    gain: Annotated[Floats, _within(0, 100)] = (0.05, 0.5)
    """Variance per grey level, grey levels: at 0.5 a grey level of 200 gets a standard deviation of 10."""


class UniformNoise(Config):
    """Independent noise on every pixel, even between two bounds. Excludes Gaussian and shot noise."""

    probability: Probability = 0.0
    """Probability of it; with Gaussian noise's at most 1, and with shot noise's too."""
    low: GreyShifts = (-20, 0)
    """Range that the lower bound is drawn from, grey levels, a whole number."""
    high: GreyShifts = (0, 20)
    """Range that the upper bound is drawn from, grey levels, a whole number."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.low[1] > self.high[0]:
            raise ValueError(f"low may reach {self.low[1]}, above the least high, {self.high[0]}")
        return self


class MissingPatch(Config):
    """A rectangle of one section that was not imaged or got lost: one grey level, without noise."""

    probability: Probability = 0.0
    """Probability of it."""
    side_px: Annotated[Ints, _within(1, 4096)] = (16, 96)
    """Height and width, drawn apart, whole pixels."""
    grey: GreyLevels = (0, 255)
    """Grey level of it, a whole number."""
