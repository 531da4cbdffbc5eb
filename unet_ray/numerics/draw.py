"""The parameters of one augmented patch: drawn once, kept as numbers, and applied elsewhere."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from unet_ray.config.base import Config
from unet_ray.config.recipe import Recipe
from unet_ray.config.transforms import Charging, Hole, MissingPatch, Scratch, Stain
from unet_ray.numerics.defects import Cloud, Defect, Line, Rectangle, Spot

# One random stream per transform: a transform added later, at the end, changes no other one's draws.
_PURPOSES = (
    "flip", "quarter_turns", "rotation", "scale", "elastic", "coarse_elastic", "crop",
    "gamma", "contrast", "brightness", "blur", "noise",
    "shot_noise", "scratch", "hole", "stain", "charging", "missing_patch",
)  # fmt: skip
_KEY_BITS = 53  # so that any JSON reader keeps a key whole
_WAVES, _RAGGED = 4, 0.1  # a spot's radius differs by 2 to 5 waves around, each by up to 14 %


class Drawn(Config):
    """Every parameter of one augmented patch: with its section's pixels it decides all bytes.

    ``Drawn.model_validate_json(drawn.model_dump_json())`` gives the same patch. Lengths are in
    pixels, axes (y, x), grey levels those of 8 bits; 0, 1.0, None
    or nothing where a transform was not drawn.
    """

    seed: int
    stack: int
    section: int
    variant: int
    section_shape: tuple[int, int]
    patch_px: int
    margin_px: int
    corner: tuple[int, int]
    """First pixel of the label in the section, before the patch is turned about its centre."""
    flip: tuple[bool, bool] = (False, False)
    quarter_turns: int = 0
    rotation_degrees: float = 0.0
    scale: float = 1.0
    elastic_alpha: float = 0.0
    elastic_sigma_px: float = 0.0
    elastic_key: int = 0
    """Key of the noise that `unet_ray.numerics.elastic.smooth_noise` smooths."""
    coarse_displacement: tuple[tuple[tuple[float, ...], ...], ...] | None = None
    """Displacement (2 for y and x, nodes, nodes), pixels."""
    gamma: float = 1.0
    contrast: float = 1.0
    brightness: int = 0
    scratch: tuple[Line, ...] = ()
    hole: tuple[Spot, ...] = ()
    stain: tuple[Spot, ...] = ()
    charging: tuple[Cloud, ...] = ()
    blur_sigma_px: float = 0.0
    noise: Literal["none", "gaussian", "uniform"] = "none"
    noise_sd: int = 0
    noise_bounds: tuple[int, int] = (0, 0)
    noise_key: int = 0
    shot_noise_gain: float = 0.0
    missing_patch: tuple[Rectangle, ...] = ()

    @property
    def marks(self) -> tuple[Line | Spot | Cloud, ...]:
        """The defects that the microscope sees, in the order in which they come about."""
        return (*self.scratch, *self.hole, *self.stain, *self.charging)


def draw(
    recipe: Recipe,
    *,
    seed: int,
    stack: int,
    section: int,
    variant: int,
    section_shape: tuple[int, int],
    patch_px: int,
    margin_px: int = 0,
) -> Drawn:
    """Parameters of one patch: a pure function of the arguments, whatever was drawn before.

    The patch's corner is drawn from all whole-pixel corners that keep it within the section grown by the
    recipe's ``crop.pad_px``; where it is larger than that, from all that make it cover it.

    Args:
        recipe: what may be done.
        seed: of the job, at least 0, as are the next three.
        stack: number of the stack among the inputs.
        section: number of the section in its stack.
        variant: number of the patch among those of its section.
        section_shape: (y, x), pixels.
        patch_px: side of the label.
        margin_px: of the image around the label, on each side. It changes no other draw.

    >>> from unet_ray.config.recipe import RECIPES
    >>> draw(RECIPES["notebook"], seed=1, stack=0, section=2, variant=3, section_shape=(512, 512),
    ...      patch_px=512).corner
    (28, -36)
    """
    streams = _Streams(seed, stack, section, variant)
    values: dict[str, Any] = {}
    rng = streams["flip"]
    values["flip"] = rng.random() < recipe.flip.y_probability, rng.random() < recipe.flip.x_probability
    rng = streams["quarter_turns"]
    if rng.random() < recipe.quarter_turns.probability:
        values["quarter_turns"] = int(rng.integers(1, 4))
    rng = streams["rotation"]
    if rng.random() < recipe.rotation.probability:
        values["rotation_degrees"] = rng.uniform(*recipe.rotation.degrees)
    for name, evenly in (("scale", recipe.scale.factor), ("gamma", recipe.gamma.exponent),
                         ("contrast", recipe.contrast.factor)):  # fmt: skip
        rng = streams[name]
        if rng.random() < getattr(recipe, name).probability:
            values[name] = math.exp(rng.uniform(math.log(evenly[0]), math.log(evenly[1])))
    rng = streams["elastic"]
    if rng.random() < recipe.elastic.probability:
        values["elastic_alpha"] = rng.uniform(*recipe.elastic.alpha)
        values["elastic_sigma_px"] = rng.uniform(*recipe.elastic.sigma_px)
        values["elastic_key"] = _key(rng)
    rng = streams["coarse_elastic"]
    if rng.random() < recipe.coarse_elastic.probability:
        nodes = recipe.coarse_elastic.nodes
        values["coarse_displacement"] = rng.normal(
            0, rng.uniform(*recipe.coarse_elastic.sd_px), (2, nodes, nodes)
        ).tolist()
    rng = streams["brightness"]
    if rng.random() < recipe.brightness.probability:
        values["brightness"] = _whole(rng, recipe.brightness.shift)
    rng = streams["blur"]
    if rng.random() < recipe.blur.probability:
        values["blur_sigma_px"] = rng.uniform(*recipe.blur.sigma_px)
    for name, defects in _DEFECTS.items():
        rng = streams[name]
        if rng.random() < getattr(recipe, name).probability:
            values[name] = defects(rng, getattr(recipe, name), patch_px)
    values |= _noise(recipe, streams)
    rng = streams["crop"]
    corner = []
    for side in section_shape:
        ends = -recipe.crop.pad_px, side + recipe.crop.pad_px - patch_px
        corner.append(_whole(rng, (min(ends), max(ends))))
    return Drawn(
        seed=seed, stack=stack, section=section, variant=variant, section_shape=section_shape,
        patch_px=patch_px, margin_px=margin_px, corner=(corner[0], corner[1]), **values,
    )  # fmt: skip


class _Streams:
    """One random stream per transform, which only the patch's numbers decide; one is in use at a time.

    They are stretches of 2**64 steps of one counter-based generator, since making a generator takes longer
    than drawing from it: 20 microseconds, against 2 for moving its counter.
    """

    def __init__(self, *numbers: int) -> None:
        self._bits = np.random.Philox(np.random.SeedSequence(numbers))
        self._fresh = self._bits.state

    def __getitem__(self, purpose: str) -> np.random.Generator:
        self._fresh["state"]["counter"][1] = _PURPOSES.index(purpose)
        self._bits.state = self._fresh
        return np.random.Generator(self._bits)


def _noise(recipe: Recipe, streams: _Streams) -> dict[str, Any]:
    """Uniform noise, or Gaussian and shot noise apart from each other, each as often as its entry says."""
    values: dict[str, Any] = {}
    uniform = recipe.uniform_noise.probability
    rng = streams["noise"]
    chance = rng.random()
    if chance < recipe.gaussian_noise.probability:
        values["noise"] = "gaussian"
        values["noise_sd"] = _whole(rng, recipe.gaussian_noise.sd)
    elif chance < recipe.gaussian_noise.probability + uniform:
        values["noise"] = "uniform"
        values["noise_bounds"] = _whole(rng, recipe.uniform_noise.low), _whole(rng, recipe.uniform_noise.high)
    values["noise_key"] = _key(rng)
    rng = streams["shot_noise"]
    # Only among patches without uniform noise, so more often there.
    if values.get("noise") != "uniform" and rng.random() * (1 - uniform) < recipe.shot_noise.probability:
        values["shot_noise_gain"] = rng.uniform(*recipe.shot_noise.gain)
    return values


def _lines(rng: np.random.Generator, entry: Scratch, patch_px: int) -> list[Line]:
    depth, degrees = rng.random(), rng.uniform(0, 180)
    return [
        Line(
            depth=depth, degrees=degrees, offset_px=rng.uniform(-patch_px / 2, patch_px / 2),
            width_px=rng.uniform(*entry.width_px), shift=_whole(rng, entry.shift),
        )
        for _ in range(_whole(rng, entry.count))
    ]  # fmt: skip


def _spots(rng: np.random.Generator, entry: Hole | Stain, patch_px: int) -> list[Spot]:
    depth = rng.random()
    return [
        Spot(
            depth=depth, centre=_place(rng, patch_px),
            sides_px=(rng.uniform(*entry.side_px), rng.uniform(*entry.side_px)), degrees=rng.uniform(0, 180),
            outline=rng.uniform(-_RAGGED, _RAGGED, (_WAVES, 2)).tolist(),
            edge_px=rng.uniform(*entry.edge_px), grey=_whole(rng, entry.grey),
        )
        for _ in range(_whole(rng, entry.count) if isinstance(entry, Stain) else 1)
    ]  # fmt: skip


def _clouds(rng: np.random.Generator, entry: Charging, patch_px: int) -> list[Cloud]:
    depth, angle, rise = rng.random(), rng.uniform(0, 2 * math.pi), _whole(rng, entry.ramp) / patch_px
    cloud = Cloud(
        depth=depth, slope=(rise * math.sin(angle), rise * math.cos(angle)), centre=_place(rng, patch_px),
        bump_px=rng.uniform(*entry.bump_px), bump=_whole(rng, entry.bump),
    )  # fmt: skip
    return [cloud]


def _rectangles(rng: np.random.Generator, entry: MissingPatch, patch_px: int) -> list[Rectangle]:
    depth, sides = rng.random(), (_whole(rng, entry.side_px), _whole(rng, entry.side_px))
    corner = [int(rng.integers(patch_px)) - side // 2 for side in sides]
    return [Rectangle(depth=depth, corner=(corner[0], corner[1]), sides_px=sides, grey=_whole(rng, entry.grey))]


def _place(rng: np.random.Generator, patch_px: int) -> tuple[float, float]:
    """A place (y, x) in the label, from its centre."""
    return rng.uniform(-patch_px / 2, patch_px / 2), rng.uniform(-patch_px / 2, patch_px / 2)


def _whole(rng: np.random.Generator, bounds: tuple[int, int]) -> int:
    return int(rng.integers(*bounds, endpoint=True))


def _key(rng: np.random.Generator) -> int:
    return int(rng.integers(1 << _KEY_BITS))


_DEFECTS: dict[str, Callable[[np.random.Generator, Any, int], Sequence[Defect]]] = {
    "scratch": _lines, "hole": _spots, "stain": _spots, "charging": _clouds, "missing_patch": _rectangles,
}  # fmt: skip
