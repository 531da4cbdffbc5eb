"""The layers of a section as small pictures that a page can switch between."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unet_ray.colours import BLUE, RED, rgb

LARGEST_PX = 768
"""Sides of a picture end here; a larger section is shown at a half, a third, ... of its resolution."""
# Splits and mergers are often single pixels.
MARK_PX = 3
# How much of a wrong pixel's colour lies over the raw image, where it changes no cell.
PALE = 0.45
# The same of several classes, where all wrong pixels are alike.
STRONG = 0.8
JPEG_QUALITY = 85


@dataclass(frozen=True, slots=True)
class SectionLayers:
    """Pictures of one section, all of one size."""

    section: int
    """Its number in the volume."""
    width: int
    """Pixels of each picture."""
    height: int
    reduced: int
    """Voxels per pixel of the pictures, along a side."""
    layers: Mapping[str, bytes]
    """By name, in the order of switching: raw, truth, probability, mask, errors; or raw, truth, prediction, errors of
    several classes. PNG where there are few colours, else JPEG."""


def section_layers(
    section: int,
    *,
    raw: NDArray[Any] | None,
    truth: NDArray[np.bool_],
    probability: NDArray[np.floating[Any]],
    errors: NDArray[np.uint8],
) -> SectionLayers:
    """Encode a section's layers.

    Args:
        section: its number.
        raw: (y, x) grey levels, shown from the 0.5th to the 99.5th percentile; None leaves this layer out.
        truth: (y, x) true membrane.
        probability: (y, x) of membrane, 0 to 1; the mask is where it is above 0.5.
        errors: (y, x): 0 right, 1 membrane too much, 2 membrane missed, 3 splits a cell, 4 merges cells.

    >>> zeros = np.zeros((4, 4))
    >>> found = section_layers(7, raw=None, truth=zeros > 0, probability=zeros, errors=zeros.astype(np.uint8))
    >>> list(found.layers), found.width, found.reduced
    (['truth', 'probability', 'mask', 'errors'], 4, 1)
    """
    factor = -(-max(truth.shape) // LARGEST_PX)
    grey = None if raw is None else _stretched(_reduced(raw, factor))
    layers: dict[str, bytes] = {}
    if grey is not None:
        layers["raw"] = _jpeg(grey)
    layers["truth"] = _png(_grey(1 - _reduced(truth, factor)))
    layers["probability"] = _jpeg(_grey(1 - _reduced(probability, factor)))
    layers["mask"] = _png(_grey(1 - _reduced(probability > 0.5, factor)))
    base = _grey(1 - 0.25 * _reduced(probability > 0.5, factor)) if grey is None else grey
    layers["errors"] = _jpeg(_coloured(base, errors, factor))
    height, width = base.shape
    return SectionLayers(section, width, height, factor, layers)


def class_layers(
    section: int,
    *,
    raw: NDArray[Any] | None,
    truth: NDArray[np.uint8],
    predicted: NDArray[Any],
    ignore: NDArray[np.bool_] | None,
    colours: Sequence[tuple[int, int, int]],
) -> SectionLayers:
    """Encode a section's layers where there are several classes.

    Args:
        section: its number.
        raw: (y, x) grey levels, shown as in `section_layers`; None leaves this layer out.
        truth: (y, x) true class indices.
        predicted: (y, x) predicted class indices.
        ignore: (y, x), True where nobody labelled: white in the truth, and never wrong.
        colours: red, green and blue of every class, 0 to 255 each.

    >>> zeros = np.zeros((4, 4), np.uint8)
    >>> found = class_layers(7, raw=None, truth=zeros, predicted=zeros, ignore=None, colours=[(230, 159, 0)])
    >>> list(found.layers)
    ['truth', 'prediction', 'errors']
    """
    factor = -(-max(truth.shape) // LARGEST_PX)
    grey = None if raw is None else _stretched(_reduced(raw, factor))
    known = np.ones(truth.shape, bool) if ignore is None else ~ignore
    wrong = (truth != predicted) & known
    table = np.array(colours, np.uint8)
    layers = {} if grey is None else {"raw": _jpeg(grey)}
    # Thinned out where it is large: a mean of two classes would be the colour of neither.
    thin = np.s_[::factor, ::factor]
    layers["truth"] = _png(np.where(known[thin][..., None], table[truth[thin]], np.uint8(255)))
    layers["prediction"] = _png(table[predicted[thin].astype(np.intp)])
    base = np.full(truth[thin].shape, 255, np.uint8) if grey is None else grey
    share = STRONG * _reduced(wrong, factor)[..., None]
    layers["errors"] = _jpeg(np.round((1 - share) * base[..., None] + share * np.array(rgb(RED))).astype(np.uint8))
    height, width = base.shape
    return SectionLayers(section, width, height, factor, layers)


def _reduced(image: NDArray[Any], factor: int) -> NDArray[np.float64]:
    """Means of squares of ``factor`` pixels, (y, x); the last ones may be of fewer."""
    if factor == 1:
        return image.astype(np.float64)
    starts = [np.arange(0, side, factor) for side in image.shape]
    total = np.add.reduceat(np.add.reduceat(image.astype(np.float64), starts[0], axis=0), starts[1], axis=1)
    rows, columns = (np.diff(np.append(start, side)) for start, side in zip(starts, image.shape, strict=True))
    mean: NDArray[np.float64] = total / np.outer(rows, columns)
    return mean


def _stretched(image: NDArray[np.float64]) -> NDArray[np.uint8]:
    low, high = np.percentile(image, (0.5, 99.5))
    return _grey((image - low) / max(high - low, 1e-6))


def _grey(share: NDArray[np.float64]) -> NDArray[np.uint8]:
    """0 to 1 as black to white."""
    return np.round(255 * np.clip(share, 0, 1)).astype(np.uint8)


def _coloured(base: NDArray[np.uint8], errors: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    """(y, x, 3): the base with wrong pixels pale, and splits and mergers as dots that can be seen."""
    picture = np.repeat(base[..., None], 3, axis=2).astype(np.float64)
    for codes, colour in (((1, 3), RED), ((2, 4), BLUE)):
        share = PALE * _reduced(np.isin(errors, codes), factor)[..., None]
        picture = (1 - share) * picture + share * np.array(rgb(colour))
    for code, colour in ((3, RED), (4, BLUE)):
        y, x = np.nonzero(errors == code)
        for dy in range(-MARK_PX, MARK_PX + 1):
            for dx in range(-MARK_PX, MARK_PX + 1):
                if dy * dy + dx * dx <= MARK_PX * MARK_PX:
                    at = np.clip(y // factor + dy, 0, len(base) - 1), np.clip(x // factor + dx, 0, base.shape[1] - 1)
                    picture[at] = rgb(colour)
    return np.round(picture).astype(np.uint8)


def _png(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def smaller(png: bytes) -> bytes:
    """A picture as JPEG, in a fifth of the bytes."""
    return _jpeg(np.asarray(Image.open(io.BytesIO(png)).convert("RGB")))


def _jpeg(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    # Colours in full resolution: dots and outlines are as thin as pixels.
    Image.fromarray(pixels).save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()
