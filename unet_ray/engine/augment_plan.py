"""What the augment job will make: checked before a cluster starts, and enough for a worker to make any patch."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from unet_ray.config.augment import AugmentConfig, AugmentSettings
from unet_ray.config.network import layers, network_config
from unet_ray.engine.labelled_stacks import LabelledStacks, SectionPlace
from unet_ray.errors import ConfigError, LabelError
from unet_ray.geometry.receptive_field import margin_px, nearest_output_sides
from unet_ray.numerics.augment import Drawn, draw
from unet_ray.numerics.intensity import IntensityMap
from unet_ray.numerics.weight_map import class_weights
from unet_ray.storage.patch_cache import CachePlan


@dataclass(frozen=True)
class AugmentPlan:
    """All that a worker needs to make any patch of the cache alone."""

    settings: AugmentSettings
    stacks: LabelledStacks
    training: tuple[SectionPlace, ...]
    validation: tuple[SectionPlace, ...]
    intensity: IntensityMap
    class_weights: tuple[float, ...]
    cache: CachePlan

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
            section_shape=self.cache.section_px,
            patch_px=self.cache.patch_px,
            margin_px=self.cache.margin_px,
        )


def prepare(config: AugmentConfig) -> tuple[AugmentPlan, dict[str, Any]]:
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
    plan = AugmentPlan(
        settings=AugmentSettings(**{name: getattr(config, name) for name in AugmentSettings.model_fields}),
        stacks=stacks,
        training=tuple(training),
        validation=tuple(validation),
        intensity=intensity,
        class_weights=class_weights(counts, config.weighting),
        cache=CachePlan(
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
        "margin_px": plan.cache.margin_px,
        "context_sections": config.context_sections,
        "patches_per_shard": config.patches_per_shard,
        "recipe": config.recipe.model_dump(mode="json"),
        "weighting": config.weighting.model_dump(mode="json"),
        "class_weights": list(plan.class_weights),
        "intensity": intensity.model_dump(),
        "voxel_size_nm": config.voxel_size_nm or stacks.images[0].voxel_size_nm,
    }
    return plan, made_with
