"""One augmented patch: its parameters are drawn, and then applied, apart from each other."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from unet_ray.config.base import Config
from unet_ray.config.recipe import Recipe, WeightMap
from unet_ray.numerics import elastic, grey_noise, warp
from unet_ray.numerics.labels import SectionLabels
from unet_ray.numerics.weight_map import weight_map, weight_reach_px

# One random stream per transform: a transform added later changes no other one's draws.
_PURPOSES = (
    "flip", "quarter_turns", "rotation", "scale", "elastic", "coarse_elastic", "crop",
    "gamma", "contrast", "brightness", "blur", "noise",
)  # fmt: skip
_KEY_BITS = 53  # so that any JSON reader keeps a key whole
_BLUR_TRUNCATE = 4.0


class Drawn(Config):
    """Every parameter of one augmented patch: with its section's pixels it decides all bytes.

    ``Drawn.model_validate_json(drawn.model_dump_json())`` gives the same patch. Lengths are in
    pixels, axes (y, x), grey levels those of 8 bits; 0, 1.0 or None where a transform was not drawn.
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
    blur_sigma_px: float = 0.0
    noise: Literal["none", "gaussian", "uniform"] = "none"
    noise_sd: int = 0
    noise_bounds: tuple[int, int] = (0, 0)
    noise_key: int = 0


@dataclass(frozen=True)
class Patch:
    """A training sample; the label is the centre of the image, whose margin is on all four sides."""

    image: NDArray[np.uint8]
    """(c, h + 2m, w + 2m), grey levels."""
    label: NDArray[np.uint8]
    """(h, w), 1 = membrane, or a class index."""
    weight: NDArray[np.float16]
    """(h, w), factor on the pixel's loss; 0 = ignored."""


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
    (47, 13)
    """

    def stream(purpose: str) -> np.random.Generator:
        entropy = [seed, stack, section, variant, _PURPOSES.index(purpose)]
        return np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy)))

    values: dict[str, Any] = {}
    rng = stream("flip")
    values["flip"] = rng.random() < recipe.flip.y_probability, rng.random() < recipe.flip.x_probability
    rng = stream("quarter_turns")
    if rng.random() < recipe.quarter_turns.probability:
        values["quarter_turns"] = int(rng.integers(1, 4))
    rng = stream("rotation")
    if rng.random() < recipe.rotation.probability:
        values["rotation_degrees"] = rng.uniform(*recipe.rotation.degrees)
    for name, evenly in (("scale", recipe.scale.factor), ("gamma", recipe.gamma.exponent),
                         ("contrast", recipe.contrast.factor)):  # fmt: skip
        rng = stream(name)
        if rng.random() < getattr(recipe, name).probability:
            values[name] = math.exp(rng.uniform(math.log(evenly[0]), math.log(evenly[1])))
    rng = stream("elastic")
    if rng.random() < recipe.elastic.probability:
        values["elastic_alpha"] = rng.uniform(*recipe.elastic.alpha)
        values["elastic_sigma_px"] = rng.uniform(*recipe.elastic.sigma_px)
        values["elastic_key"] = _key(rng)
    rng = stream("coarse_elastic")
    if rng.random() < recipe.coarse_elastic.probability:
        nodes = recipe.coarse_elastic.nodes
        values["coarse_displacement"] = rng.normal(
            0, rng.uniform(*recipe.coarse_elastic.sd_px), (2, nodes, nodes)
        ).tolist()
    rng = stream("brightness")
    if rng.random() < recipe.brightness.probability:
        values["brightness"] = int(rng.integers(*recipe.brightness.shift, endpoint=True))
    rng = stream("blur")
    if rng.random() < recipe.blur.probability:
        values["blur_sigma_px"] = rng.uniform(*recipe.blur.sigma_px)
    rng = stream("noise")
    chance = rng.random()
    if chance < recipe.gaussian_noise.probability:
        values["noise"] = "gaussian"
        values["noise_sd"] = int(rng.integers(*recipe.gaussian_noise.sd, endpoint=True))
    elif chance < recipe.gaussian_noise.probability + recipe.uniform_noise.probability:
        values["noise"] = "uniform"
        bounds = (recipe.uniform_noise.low, recipe.uniform_noise.high)
        values["noise_bounds"] = tuple(int(rng.integers(*bound, endpoint=True)) for bound in bounds)
    values["noise_key"] = _key(rng)
    rng = stream("crop")
    corner = []
    for side in section_shape:
        ends = -recipe.crop.pad_px, side + recipe.crop.pad_px - patch_px
        corner.append(int(rng.integers(min(ends), max(ends), endpoint=True)))
    return Drawn(
        seed=seed, stack=stack, section=section, variant=variant, section_shape=section_shape,
        patch_px=patch_px, margin_px=margin_px, corner=(corner[0], corner[1]), **values,
    )  # fmt: skip


def apply(
    drawn: Drawn,
    image: NDArray[np.uint8],
    labels: SectionLabels,
    *,
    weighting: WeightMap,
    class_weights: Sequence[float] = (1.0, 1.0),
) -> Patch:
    """The patch that ``drawn`` describes.

    All geometry is one coordinate field: the section is scaled and turned, then flipped, then elastically
    deformed, and each array is interpolated once along it, the image bilinearly, labels and cell ids by the
    nearest pixel. Outside the section they are mirrored. Only the image then has its grey levels
    changed (gamma, contrast, brightness, blur, noise, in this order) and is rounded half up, once.

    Args:
        drawn: from `draw`, for this section.
        image: (c, y, x), the whole section; c > 1 for context sections, which share field and grey-level
            changes, but not the noise.
        labels: of the whole undeformed section.
        weighting: how the weight map is made.
        class_weights: w_c of each class, from `unet_ray.numerics.weight_map.class_weights`.

    Returns:
        Image (c, patch + 2 margin, patch + 2 margin), label and weight (patch, patch).
    """
    _check_shapes(drawn.section_shape, image, labels)
    blur_px = math.ceil(_BLUR_TRUNCATE * drawn.blur_sigma_px)
    image_pad, label_pad = drawn.margin_px + blur_px, weight_reach_px(weighting)
    field = coordinate_field(drawn, max(image_pad, label_pad))
    grey = warp.sample_linear(image, field.inner(drawn.patch_px + 2 * image_pad), _grey_levels(drawn))
    if blur_px:
        sigma = (0, drawn.blur_sigma_px, drawn.blur_sigma_px)
        grey = ndimage.gaussian_filter(grey, sigma, truncate=_BLUR_TRUNCATE)
        grey = grey[:, blur_px:-blur_px, blur_px:-blur_px]
    here = field.inner(drawn.patch_px)
    label = warp.sample_nearest(labels.class_map, here)
    weight = weight_map(
        warp.sample_nearest(labels.cell_ids, field.inner(drawn.patch_px + 2 * label_pad)),
        label,
        weighting=weighting,
        class_weights=class_weights,
        ignore=None if labels.ignore is None else warp.sample_nearest(labels.ignore, here),
    )
    return Patch(_with_noise(drawn, grey), label, weight)


def whole_section(
    image: NDArray[np.uint8],
    labels: SectionLabels,
    *,
    margin_px: int = 0,
    weighting: WeightMap,
    class_weights: Sequence[float] = (1.0, 1.0),
) -> Patch:
    """A section as it is, for validation: the image mirrored by ``margin_px``, the label and its weights."""
    _check_shapes(labels.class_map.shape, image, labels)
    margin = (margin_px, margin_px)
    cell_ids = np.pad(labels.cell_ids, weight_reach_px(weighting), mode="reflect")
    weight = weight_map(
        cell_ids, labels.class_map, weighting=weighting, class_weights=class_weights, ignore=labels.ignore
    )
    return Patch(np.pad(image, ((0, 0), margin, margin), mode="reflect"), labels.class_map, weight)


def coordinate_field(drawn: Drawn, pad_px: int) -> warp.Field:
    """Where the pixels of the label, and of ``pad_px`` more on each side, come from in the section.

    The field is endless: a larger pad shows more of the same one.
    """
    start, side = -pad_px, drawn.patch_px + 2 * pad_px
    displacement = None
    if drawn.elastic_alpha:
        displacement = elastic.smooth_noise(
            alpha=drawn.elastic_alpha, sigma_px=drawn.elastic_sigma_px, key=drawn.elastic_key,
            start=start, side=side,
        )  # fmt: skip
    if drawn.coarse_displacement is not None:
        coarse = elastic.coarse_grid(
            drawn.coarse_displacement, span_start=-drawn.margin_px,
            span_px=drawn.patch_px + 2 * drawn.margin_px, start=start, side=side,
        )  # fmt: skip
        displacement = coarse if displacement is None else displacement + coarse
    # Quarter turns apart from the free angle, whose sine and cosine are not exact at 90 degrees.
    turn = np.linalg.matrix_power(np.array([[0.0, 1.0], [-1.0, 0.0]]), drawn.quarter_turns)
    angle = math.radians(drawn.rotation_degrees)
    free = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]]) / drawn.scale
    mirror = np.diag([-1.0 if axis else 1.0 for axis in drawn.flip])
    middle = (drawn.patch_px - 1) / 2
    centre = drawn.corner[0] + middle, drawn.corner[1] + middle
    return warp.affine_field(displacement, turn @ free @ mirror, centre, side)


def _check_shapes(shape: tuple[int, ...], image: NDArray[np.uint8], labels: SectionLabels) -> None:
    if image.dtype != np.uint8 or image.shape[1:] != shape or labels.class_map.shape != shape:
        given = f"{image.dtype} image {image.shape} and labels {labels.class_map.shape}"
        raise ValueError(f"{given} do not belong to a section of {shape}")


def _grey_levels(drawn: Drawn) -> NDArray[np.float32]:
    """What each of the 256 grey levels becomes, not yet clipped."""
    grey = np.arange(256.0)
    if drawn.gamma != 1:
        grey = 255 * (grey / 255) ** drawn.gamma
    return (127.5 + (grey - 127.5) * drawn.contrast + drawn.brightness).astype(np.float32)


def _with_noise(drawn: Drawn, grey: NDArray[np.float32]) -> NDArray[np.uint8]:
    place = -drawn.margin_px
    if drawn.noise == "uniform":
        low, high = drawn.noise_bounds
        return grey_noise.add_uniform(grey, low=low, high=high, key=drawn.noise_key, origin=place)
    return grey_noise.add_gaussian(grey, sd=drawn.noise_sd, key=drawn.noise_key, origin=place)


def _key(rng: np.random.Generator) -> int:
    return int(rng.integers(1 << _KEY_BITS))
