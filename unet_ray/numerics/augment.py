"""One augmented patch: its parameters are drawn, and then applied, apart from each other."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from unet_ray.config.recipe import WeightMap
from unet_ray.numerics import elastic, grey_noise, warp
from unet_ray.numerics.draw import Drawn
from unet_ray.numerics.labels import SectionLabels
from unet_ray.numerics.weight_map import weight_map, weight_reach_px

_BLUR_TRUNCATE = 4.0


@dataclass(frozen=True)
class Patch:
    """A training sample; the label is the centre of the image, whose margin is on all four sides."""

    image: NDArray[np.uint8]
    """(c, h + 2m, w + 2m), grey levels."""
    label: NDArray[np.uint8]
    """(h, w), 1 = membrane, or a class index."""
    weight: NDArray[np.float16]
    """(h, w), factor on the pixel's loss; 0 = ignored."""


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
    nearest pixel. Outside the section they are mirrored.

    Only the image is then changed further, in the order in which it comes about, and rounded half up, once:
    what the staining and the microscope's setting do (gamma, contrast, brightness); what is on the section or
    in it (scratches, a hole that has no scratches, stain on top of both) and what charge does to its image,
    all in the grey levels of the finished image; the blur of the lens, of these too; the noise of what arrives
    at the detector, less of it in the dark; and a missing patch, which no detector saw.

    Args:
        drawn: from `unet_ray.numerics.draw.draw`, for this section.
        image: (c, y, x), the whole section; c > 1 for context sections, which share field, grey-level
            changes and blur, but not the noise; a defect is in one of them, as it is in one section.
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
    for mark in drawn.marks:
        mark.onto(grey[mark.channel(len(grey))], start=-image_pad - (drawn.patch_px - 1) / 2)
    if blur_px:
        sigma = (0, drawn.blur_sigma_px, drawn.blur_sigma_px)
        grey = ndimage.gaussian_filter(grey, sigma, truncate=_BLUR_TRUNCATE)
        grey = grey[:, blur_px:-blur_px, blur_px:-blur_px]
    finished = _with_noise(drawn, grey)
    for rectangle in drawn.missing_patch:
        rectangle.blank(finished[rectangle.channel(len(finished))], start=-drawn.margin_px)
    here = field.inner(drawn.patch_px)
    label = warp.sample_nearest(labels.class_map, here)
    cells = field.inner(drawn.patch_px + 2 * label_pad)
    weight = weight_map(
        warp.sample_nearest(labels.cell_ids, cells) if label_pad else None,
        label,
        weighting=weighting,
        class_weights=class_weights,
        ignore=None if labels.ignore is None else warp.sample_nearest(labels.ignore, here),
    )
    return Patch(finished, label, weight)


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
    reach = weight_reach_px(weighting)
    cell_ids = np.pad(labels.cell_ids, reach, mode="reflect") if reach else None
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
    return grey_noise.add_gaussian(
        grey, sd=drawn.noise_sd, shot=drawn.shot_noise_gain, key=drawn.noise_key, origin=place
    )
