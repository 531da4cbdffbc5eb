"""Where the time of a patch goes, and how exact its interpolation is; on one core, by the functions of numerics."""

import importlib.util
import statistics
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from contestants import NO_WEIGHTS, Sections
from scipy import ndimage

from unet_ray.config.recipe import RECIPES, WeightMap
from unet_ray.numerics import augment, grey_noise, warp
from unet_ray.numerics.draw import Drawn, draw
from unet_ray.numerics.labels import SectionLabels, membrane_and_cells
from unet_ray.numerics.weight_map import weight_map, weight_reach_px
from unet_ray.storage.open_objects import open_objects
from unet_ray.storage.patch_cache import ARRAYS, CachePlan, Patch
from unet_ray.storage.shard_codec import ShardCodec


def drawn_of(number: int, sections: int, side: int, seed: int) -> Drawn:
    """Parameters of a patch of the recipe ``notebook``."""
    variant, section = divmod(number, sections)
    return draw(
        RECIPES["notebook"], seed=seed, stack=0, section=section, variant=variant, section_shape=(side, side),
        patch_px=side,
    )  # fmt: skip


def by_parts(
    drawn: Drawn, image: npt.NDArray[np.uint8], labels: SectionLabels, weighting: WeightMap
) -> tuple[Patch, dict[str, float]]:
    """What `augment.apply` does for this recipe, one part after the other: the patch, and each part's seconds."""
    reach, side = weight_reach_px(weighting), drawn.patch_px
    clock = [time.process_time()]
    field = augment.coordinate_field(drawn, reach)
    clock.append(time.process_time())
    levels = (np.arange(256) + drawn.brightness).astype(np.float32)
    grey = warp.sample_linear(image, field.inner(side), levels)
    clock.append(time.process_time())
    label = warp.sample_nearest(labels.class_map, field.inner(side))
    clock.append(time.process_time())
    cell_ids = warp.sample_nearest(labels.cell_ids, field) if reach else None
    clock.append(time.process_time())
    weight = weight_map(cell_ids, label, weighting=weighting)
    clock.append(time.process_time())
    if drawn.noise == "uniform":
        low, high = drawn.noise_bounds
        finished = grey_noise.add_uniform(grey, low=low, high=high, key=drawn.noise_key)
    else:
        finished = grey_noise.add_gaussian(grey, sd=drawn.noise_sd, key=drawn.noise_key)
    clock.append(time.process_time())
    names = "field", "image_sampling", "label_sampling", "cell_id_sampling", "weight_map", "noise_and_rounding"
    return Patch(finished, label, weight), dict(zip(names, np.diff(clock).tolist(), strict=True))


def breakdown(images: Sections, labels: Sections, *, shards: int, per_shard: int, repeats: int) -> dict[str, Any]:
    """Seconds per patch of drawing, of each part of `augment.apply`, of encoding by array, and of writing.

    They are the processor's, of all threads, but for writing, which mostly waits for the disk. Parts are timed patch
    by patch, one after the other as `apply` calls them: the same part alone, again and again on the same arrays,
    finds them in the processor's cache and seems faster than it is.

    Returns:
        One entry without and one with weight map; in each part -> the median of the repeats, and all of them.
    """
    side = images[0].shape[0]
    sections = [(i[None], membrane_and_cells(label, "membrane")) for i, label in zip(images, labels, strict=True)]
    found = {}
    for name, weighting in (("without_weight_map", NO_WEIGHTS), ("with_weight_map", WeightMap())):
        rows: list[dict[str, float]] = []
        for repeat in range(-1, repeats):  # the first to compile and to warm up
            sums: dict[str, float] = {}
            for shard in range(shards):
                made = []
                for number in range(shard * per_shard, (shard + 1) * per_shard):
                    start = time.process_time()
                    drawn = drawn_of(number, len(images), side, seed=repeat + 1)
                    drawing = time.process_time() - start
                    image, its_labels = sections[drawn.section]
                    patch, seconds = by_parts(drawn, image, its_labels, weighting)
                    made.append(patch)
                    start = time.process_time()
                    augment.apply(drawn, image, its_labels, weighting=weighting)
                    _add(sums, {"drawing": drawing, "apply_as_a_whole": time.process_time() - start, **seconds})
                if weighting is not NO_WEIGHTS:
                    _add(sums, _storing(made))
            if repeat >= 0:
                rows.append({part: spent / (shards * per_shard) for part, spent in sums.items()})
        found[name] = {
            part: {"seconds": statistics.median(row[part] for row in rows), "repeats": [row[part] for row in rows]}
            for part in rows[0]
        }
    return found


def _add(sums: dict[str, float], more: dict[str, float]) -> None:
    for part, seconds in more.items():
        sums[part] = sums.get(part, 0.0) + seconds


def _storing(patches: list[Patch]) -> dict[str, float]:
    """Seconds that one shard of ``patches`` takes to encode, by array, and to write."""
    count, side = len(patches), patches[0].label.shape[0]
    plan = CachePlan(
        patches=count, patch_px=side, margin_px=0, channels=1, patches_per_shard=count, validation=0,
        section_px=(side, side),
    )  # fmt: skip
    seconds = {"writing": 0.0}
    with tempfile.TemporaryDirectory() as folder:
        root = open_objects(folder)
        for name in ARRAYS:
            codec = ShardCodec(plan.spec("train", name))
            stacked = np.stack([getattr(patch, name) for patch in patches])
            start = time.process_time()
            data = codec.encode(stacked)
            seconds[f"encoding_{name}"] = time.process_time() - start
            start = time.perf_counter()
            root.put(name, data)
            seconds["writing"] += time.perf_counter() - start
    return seconds


def interpolation(images: Sections, labels: Sections, *, patches: int) -> dict[str, Any]:
    """How far interpolated values are from those of SciPy in float64 at the same coordinates.

    Returns:
        For ours, and for what peers sample with where it is installed: the largest and the mean absolute difference
        in grey levels of an image of 8 bits, and whether the result is rounded to whole grey levels, which alone
        makes 0.5 and 0.25; the share of label pixels that differ from SciPy's nearest.
    """
    side, identity = images[0].shape[0], np.arange(256, dtype=np.float32)
    largest: dict[str, float] = {}
    sums: dict[str, list[float]] = {}
    label_mismatch = []
    for number in range(patches):
        drawn = drawn_of(number, len(images), side, seed=0)
        image, label = images[drawn.section], labels[drawn.section]
        field = augment.coordinate_field(drawn, 0)
        places = field.coordinates()
        exact = ndimage.map_coordinates(image.astype(np.float64), places, order=1, mode="mirror")
        for name, values in _sampled(image, field, places, identity):
            difference = np.abs(values - exact)
            largest[name] = max(largest.get(name, 0.0), float(difference.max()))
            sums.setdefault(name, []).append(float(difference.mean()))
        nearest = ndimage.map_coordinates(label, places, order=0, mode="mirror")
        label_mismatch.append(float((warp.sample_nearest(label, field) != nearest).mean()))
    return {
        "patches": patches,
        "grey_levels": {
            name: {"largest": largest[name], "mean": statistics.mean(sums[name]), "rounded": "uint8" in name}
            for name in largest
        },
        "label_pixels_that_differ": statistics.mean(label_mismatch),
    }


def _sampled(
    image: npt.NDArray[np.uint8], field: warp.Field, places: npt.NDArray[np.float64], identity: npt.NDArray[np.float32]
) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    grey = warp.sample_linear(image[None], field, identity)
    yield "ours_float32", grey[0]
    yield "ours_uint8", grey_noise.add_gaussian(grey, sd=0, key=0)[0]
    y, x = places.astype(np.float32)
    if importlib.util.find_spec("cv2"):
        import cv2

        for kind in (np.float32, np.uint8):
            found = cv2.remap(image.astype(kind), x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
            yield f"cv2_remap_{np.dtype(kind).name}", found
    if importlib.util.find_spec("torch"):
        import torch

        height, width = image.shape
        grid = np.stack([2 * x / (width - 1) - 1, 2 * y / (height - 1) - 1], axis=-1)
        found = torch.nn.functional.grid_sample(
            torch.from_numpy(image[None, None].astype(np.float32)), torch.from_numpy(grid[None]), mode="bilinear",
            padding_mode="reflection", align_corners=True,
        )  # fmt: skip
        yield "torch_grid_sample_float32", found[0, 0].numpy()
