"""What training is judged by: loss and scores on whole held-out sections, predicted as segmentation would."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from unet_ray.config.network import layers
from unet_ray.geometry.box import Box, Triple, mirror_index
from unet_ray.geometry.receptive_field import halo_px, margin_px
from unet_ray.geometry.tiles import TileGrid
from unet_ray.network.loss import LossSum, cross_entropy
from unet_ray.network.predict import Predictor
from unet_ray.numerics.metrics import SectionScores, score_section
from unet_ray.numerics.stack_scores import combine
from unet_ray.numerics.thresholds import cell_probability
from unet_ray.storage.patch_cache import Patch, PatchCache

# A multiple of every pooling factor up to 2^7; sections up to this side are one tile.
LARGEST_TILE_PX = 512

Gather = Callable[[Any], list[Any]]
"""What each rank gave, in the order of ranks, on every rank."""


class Validated(NamedTuple):
    """Scores of all validation sections; the last four as `unet_ray.numerics.stack_scores` defines them."""

    loss: float
    """Weighted mean cross-entropy."""
    pixel_mismatch: float
    """Share of wrong pixels: at 0.5, or of the likeliest class."""
    dice: float
    """Of membrane, or the mean over classes."""
    pixel_error: float | None
    v_rand: float | None
    v_info: float | None


@dataclass(frozen=True)
class Predicted:
    """A validation section and what the network makes of it, as segmentation would store it."""

    raw: npt.NDArray[np.uint8]
    """(y, x) grey levels."""
    label: npt.NDArray[np.uint8]
    """(y, x) class indices, 1 = membrane."""
    known: npt.NDArray[np.bool_]
    """(y, x), False where nobody labelled."""
    probability: npt.NDArray[np.uint8]
    """(y, x) of membrane, 0..255 = 0..1; of class 1 where there are more than two."""


def section_tiles(section_px: tuple[int, int], halo: int) -> TileGrid:
    """Tiles of a whole section, with the halo that makes them exact."""
    tile: Triple = (1, LARGEST_TILE_PX, LARGEST_TILE_PX)
    return TileGrid((1, *section_px), tile, (0, halo, halo))


def mirrored_window(section: npt.NDArray[np.uint8], box: Box) -> npt.NDArray[np.uint8]:
    """Pixels of ``box`` of a (c, y, x) section, mirrored at its border."""
    height, width = section.shape[1:]
    rows = [mirror_index(y, height) for y in range(box.start[1], box.stop[1])]
    columns = [mirror_index(x, width) for x in range(box.start[2], box.stop[2])]
    return section[:, rows][:, :, columns]


def validate(
    predictor: Predictor, cache: PatchCache, *, weighted: bool, rank: int = 0, gather: Gather | None = None
) -> tuple[Validated, Predicted | None]:
    """Predict every validation section exactly as segmentation would, and compare.

    Args:
        predictor: the network.
        cache: with validation sections, which are shared among the ranks.
        weighted: weigh the loss by the cache's weight map; unlabelled pixels weigh 0 in any case.
        rank: this worker's number.
        gather: collects from all ranks; None for one.

    Returns:
        The scores, the same on all ranks, and this rank's first section, None where it has none.

    Raises:
        VolumeError: a shard of a section is missing or damaged.
    """
    ranks = 1 if gather is None else len(gather(None))
    plan = cache.plan()
    counted, shown = list[tuple[int, _Counts, SectionScores | None]](), None
    for number in range(rank, plan.validation, ranks):
        predicted, counts = _predict(predictor, cache.read_checked("validation", number), weighted)
        scores = _scores(predicted) if predictor.config.classes <= 2 else None
        counted.append((number, counts, scores))
        shown = shown or predicted
    everything = sorted((c for part in ([counted] if gather is None else gather(counted)) for c in part), key=_number)
    total = np.sum([c.loss for _, c, _ in everything], axis=0)
    confusion = np.sum([c.confusion for _, c, _ in everything], axis=0)
    scored = [s for _, _, s in everything if s is not None]
    stack = combine(scored).summary() if scored else {}
    return Validated(
        loss=float(total[0] / max(total[1], 1e-30)),
        pixel_mismatch=int(confusion.sum() - np.trace(confusion)) / max(int(confusion.sum()), 1),
        dice=_dice(confusion) if predictor.config.classes > 2 else _dice(confusion, 1),
        pixel_error=stack.get("pixel_error"),
        v_rand=stack.get("v_rand"),
        v_info=stack.get("v_info"),
    ), shown


class _Counts(NamedTuple):
    loss: tuple[float, float]
    """Weighted sum and sum of weights."""
    confusion: npt.NDArray[np.int64]
    """(true class, predicted class) of labelled pixels."""


def _number(row: tuple[int, Any, Any]) -> int:
    return row[0]


def _predict(predictor: Predictor, patch: Patch, weighted: bool) -> tuple[Predicted, _Counts]:
    """One section by its tiles; the loss is that of the logits, which say more than a rounded probability."""
    config = predictor.config
    listed = layers(config)
    halo, margin = halo_px(listed), margin_px(listed)
    known = patch.weight > 0
    weight = patch.weight.astype(np.float32) if weighted else known.astype(np.float32)
    height, width = patch.label.shape
    classes = max(config.classes, 2)
    probability = np.empty((height, width), np.uint8)
    loss, confusion = LossSum(torch.zeros(()), torch.zeros((), dtype=torch.float64)), np.zeros((classes, classes), int)
    for window, inside, write in _windows(patch.image, section_tiles((height, width), halo)):
        logits = predictor.logits(window[None], halo - margin)[(..., *inside)]
        label = torch.from_numpy(patch.label[write][None])
        part = cross_entropy(logits.cpu(), label, torch.from_numpy(weight[write][None]))
        loss = LossSum(loss.loss + part.loss, loss.weight + part.weight)
        found = predictor.probability(logits)[0]
        probability[write] = np.rint(255 * (found if config.classes <= 2 else found[1]))
        likeliest = (found > 0.5).astype(np.intp) if config.classes <= 2 else found.argmax(axis=0)
        pairs = patch.label[write][known[write]] * classes + likeliest[known[write]]
        confusion += np.bincount(pairs, minlength=classes**2).reshape(classes, classes)
    raw = patch.image[patch.image.shape[0] // 2]
    return Predicted(raw, patch.label, known, probability), _Counts((float(loss.loss), float(loss.weight)), confusion)


def _scores(predicted: Predicted) -> SectionScores:
    """Scores of a section; where nobody labelled both sides are made membrane, which no cell score counts."""
    cells = cell_probability(np.where(predicted.known, predicted.probability, 255).astype(np.uint8))
    return score_section(cells, (predicted.label == 0) & predicted.known, warping=False)


def _dice(confusion: npt.NDArray[np.int64], only: int | None = None) -> float:
    """Dice coefficient from counts: of one class, or the mean over those that occur."""
    true, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
    either = true + predicted
    scores = np.where(either > 0, 2 * np.diag(confusion) / np.maximum(either, 1), math.nan)
    if only is not None:
        return 1.0 if math.isnan(scores[only]) else float(scores[only])
    return float(np.nanmean(scores))


def _windows(
    image: npt.NDArray[np.uint8], tiles: TileGrid
) -> Iterator[tuple[npt.NDArray[np.uint8], tuple[slice, slice], tuple[slice, slice]]]:
    """Per tile: its window, which pixels of the tile are written, and where they lie in the section."""
    for tile in range(tiles.num_tiles):
        write = tiles.write_box(tile)
        _, height, width = write.shape
        yield mirrored_window(image, tiles.read_box(tile)), np.s_[:height, :width], write.slices[1:]
