"""Labelled sections into a patch cache: one block of work per shard, on CPU workers."""

import sys
import time
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from unet_ray.command import Summary
from unet_ray.config.augment import AugmentConfig, AugmentSettings
from unet_ray.config.network import layers, network_config
from unet_ray.engine.blocks import run_blocks
from unet_ray.engine.cluster import cluster, pool_size
from unet_ray.engine.labelled_stacks import LabelledStacks, SectionMemory, SectionPlace
from unet_ray.errors import ConfigError, LabelError
from unet_ray.geometry.block_set import BlockSet
from unet_ray.geometry.receptive_field import margin_px, nearest_output_sides
from unet_ray.numerics.augment import Drawn, apply, draw, whole_section
from unet_ray.numerics.intensity import IntensityMap
from unet_ray.numerics.weight_map import class_weights
from unet_ray.report.pictures import contact_sheet_png
from unet_ray.report.progress import Progress
from unet_ray.storage.objects import open_objects
from unet_ray.storage.patch_cache import CachePlan, Patch, PatchCache

PICTURE = "contact-sheet.png"
PICTURED = 10


@dataclass(frozen=True)
class Recipe:
    """All that a worker needs to make any patch of the cache alone."""

    settings: AugmentSettings
    stacks: LabelledStacks
    training: tuple[SectionPlace, ...]
    validation: tuple[SectionPlace, ...]
    intensity: IntensityMap
    class_weights: tuple[float, ...]
    plan: CachePlan

    def drawn(self, patch: int) -> Drawn:
        """Parameters of a training patch; patch = variant x sections + section."""
        variant, number = divmod(patch, len(self.training))
        place = self.training[number]
        return draw(
            self.settings.recipe,
            seed=self.settings.seed,
            stack=place.stack,
            section=place.section,
            variant=variant,
            section_shape=self.plan.section_px,
            patch_px=self.plan.patch_px,
            margin_px=self.plan.margin_px,
        )


class AugmentWorker:
    """Makes blocks of a cache: the validation sections first, then the training shards."""

    def __init__(self, cache: PatchCache, recipe: Recipe) -> None:
        self.cache, self.recipe = cache, recipe
        self.memory = SectionMemory(recipe.stacks, recipe.intensity, recipe.settings.context_sections)

    def _split(self, block: int) -> tuple[str, int]:
        held_out = len(self.recipe.validation)
        return ("validation", block) if block < held_out else ("train", block - held_out)

    def is_done(self, block: int) -> bool:
        """Whether the block's record is there."""
        split, shard = self._split(block)
        return self.cache.is_done(split, shard)

    def read(self, block: int) -> None:
        """Nothing: sections are kept from patch to patch, so they are read where they are first used."""

    def compute(self, block: int, data: None) -> Patch:
        """The block's patches, stacked."""
        split, shard = self._split(block)
        recipe = self.recipe
        weighting, balance = recipe.settings.weighting, recipe.class_weights
        if split == "validation":
            image, labels = self.memory.read(recipe.validation[shard])
            return Patch.stack([whole_section(image, labels, weighting=weighting, class_weights=balance)])
        patches = []
        for number in recipe.plan.patches_of(shard):
            drawn = recipe.drawn(number)
            image, labels = self.memory.read(SectionPlace(drawn.stack, drawn.section))
            patches.append(apply(drawn, image, labels, weighting=weighting, class_weights=balance))
        return Patch.stack(patches)

    def write(self, block: int, result: Patch) -> int:
        """Put the block's shards; returns its training patches."""
        split, shard = self._split(block)
        self.cache.put(self.recipe.plan, split, shard, result)
        return len(result.label) if split == "train" else 0


def augment(config: AugmentConfig) -> Summary:
    """Make, extend or finish a patch cache.

    Returns:
        The summary of the contract: patches, patches_written, patches_skipped, patches_per_second, ...

    Raises:
        InputError: inputs or settings are wrong; nothing was started.
        LabelError: a section cannot be used; training data are never skipped.
    """
    began = time.time()
    cache = PatchCache(config.cache)
    cache.objects.require_writable()
    recipe, made_with = _prepare(config)
    if config.overwrite:
        cache.overwrite()  # only now: a wrong setting must not cost the old cache
    plan = cache.create_or_extend(recipe.plan, made_with)
    recipe = replace(recipe, plan=plan)
    if config.verify:
        for split, shard in cache.verify():
            print(f"augment: {split} shard {shard} of {config.cache} is damaged, made again", file=sys.stderr)
    held_out = len(recipe.validation)
    done = BlockSet(held_out + plan.shards, cache.done("validation", plan))
    for shard in cache.done("train", plan):
        done.add(held_out + shard)
    skipped = sum(len(plan.patches_of(b - held_out)) for b in done if b >= held_out)
    summary: Summary = {
        "status": "complete",
        "seconds": 0.0,
        "startup_seconds": 0.0,
        "patches": plan.patches,
        "patches_written": 0,
        "patches_skipped": skipped,
        "patches_per_second": 0.0,
        "cache": config.cache,
    }
    if len(done) == done.num_blocks:
        return summary | {"seconds": round(time.time() - began, 2), "note": "the cache was complete; nothing to do"}
    with cluster():
        first_row: list[float] = []
        with Progress("augment", total=plan.patches, unit="patches", already_done=skipped) as progress:

            def on_row(row: dict[str, Any]) -> None:
                first_row.append(row["started"])
                progress.advance(row["units"])

            workers = pool_size(config.workers, cpus_each=1)
            todo = done.num_blocks - len(done)
            outcome = run_blocks(
                partial(AugmentWorker, cache, recipe),
                done,
                workers=workers,
                cpus_each=1,
                run_length=max(1, min(64, todo // (workers * 16))),
                on_row=on_row,
            )
    if outcome.failures:
        block, reason = min(outcome.failures.items())
        split, shard = ("validation", block) if block < held_out else ("train", block - held_out)
        raise LabelError(
            f"{len(outcome.failures)} of {done.num_blocks} blocks failed; first, {split} shard {shard}: {reason}; "
            "mend the input and run the same command again to do only those"
        )
    open_objects(config.cache).put(PICTURE, _contact_sheet(cache, recipe))
    return summary | {
        "seconds": round(time.time() - began, 2),
        "startup_seconds": round(min(first_row) - began, 2),
        "patches_written": outcome.units,
        "patches_per_second": round(outcome.units / max(outcome.seconds, 1e-9), 2),
        "peak_worker_rss_bytes": outcome.peak_worker_rss_bytes,
    }


def _prepare(config: AugmentConfig) -> tuple[Recipe, dict[str, Any]]:
    """Check everything that can be checked without a cluster, and what decides the cache's bytes."""
    network = layers(network_config(config.for_preset))
    sides = nearest_output_sides(network, config.patch_px)
    if sides != (config.patch_px,):
        raise ConfigError(
            f"--patch-px {config.patch_px} is no side that a {config.for_preset} network can make; "
            f"the nearest are {' and '.join(str(side) for side in sides)}"
        )
    stacks = LabelledStacks.open(config.images, config.labels, config.label_kind, config.ignore_label)
    training, validation = stacks.choose(config.validation_sections, config.exclude_sections)
    intensity = IntensityMap.of_sample(stacks.sample(training), name=" and ".join(config.images))
    counts = np.zeros(2, np.int64)
    fingerprints = {}
    for role, places in (("train", training), ("validation", validation)):
        for place in places:
            labels = stacks.read_labels(place)
            if role == "train":
                counts += labels.class_counts()
            fingerprints[f"{role}/{place.stack}/{place.section}"] = {
                "image": stacks.images[place.stack].section_digest(place.section),
                "label": stacks.labels[place.stack].section_digest(place.section),
            }
    if not counts.all():
        missing = "membrane" if not counts[1] else "cell interior"
        raise LabelError(
            f"the {len(training)} training sections hold no {missing} under --label-kind {config.label_kind}; "
            "check the label kind and the sections"
        )
    recipe = Recipe(
        settings=AugmentSettings(**{name: getattr(config, name) for name in AugmentSettings.model_fields}),
        stacks=stacks,
        training=tuple(training),
        validation=tuple(validation),
        intensity=intensity,
        class_weights=class_weights(counts, config.weighting),
        plan=CachePlan(
            patches=config.variants * len(training),
            patch_px=config.patch_px,
            margin_px=margin_px(network),
            channels=1 + 2 * config.context_sections,
            patches_per_shard=config.patches_per_shard,
            validation=len(validation),
            section_px=stacks.section_px,
        ),
    )
    made_with = {
        "sections": fingerprints,
        "label_kind": config.label_kind,
        "ignore_label": config.ignore_label,
        "seed": config.seed,
        "patch_px": config.patch_px,
        "margin_px": recipe.plan.margin_px,
        "context_sections": config.context_sections,
        "patches_per_shard": config.patches_per_shard,
        "recipe": config.recipe.model_dump(mode="json"),
        "weighting": config.weighting.model_dump(mode="json"),
        "class_weights": list(recipe.class_weights),
        "intensity": intensity.model_dump(),
        "voxel_size_nm": config.voxel_size_nm or stacks.images[0].voxel_size_nm,
    }
    return recipe, made_with


def _contact_sheet(cache: PatchCache, recipe: Recipe) -> bytes:
    """Picture of patches spread over the whole cache, with label outlines and weight maps."""
    count = min(PICTURED, recipe.plan.patches)
    numbers = [int(n) for n in np.linspace(0, recipe.plan.patches - 1, count)]
    patches = [cache.read("train", number) for number in numbers]
    drawn = [recipe.drawn(number) for number in numbers]
    centre = recipe.plan.channels // 2
    return contact_sheet_png(
        [patch.image[centre] for patch in patches],
        [patch.label for patch in patches],
        [patch.weight for patch in patches],
        [f"section {d.section} variant {d.variant}" for d in drawn],
    )
