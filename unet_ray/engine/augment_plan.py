"""What the augment job will make: checked before a cluster starts, and enough for a worker to make any patch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from unet_ray.config.augment import AugmentConfig, AugmentSettings
from unet_ray.config.network import layers, network_config
from unet_ray.engine.labelled_stacks import LabelledStacks, SectionPlace, stack_names
from unet_ray.engine.section_survey import context_places, survey
from unet_ray.errors import CacheMismatchError, ConfigError, VolumeError
from unet_ray.geometry.receptive_field import margin_px, nearest_output_sides
from unet_ray.numerics.draw import Drawn, draw
from unet_ray.numerics.intensity import IntensityMap
from unet_ray.numerics.weight_map import class_weights
from unet_ray.storage.objects import absolute
from unet_ray.storage.patch_cache import CachePlan


@dataclass(frozen=True)
class AugmentPlan:
    """All that a worker needs to make any patch of the cache alone.

    Attributes:
        settings: of the job.
        stacks: the labelled stacks, open.
        training: sections that patches are made of, in the order of a variant's patches.
        validation: sections stored whole, in their order there.
        intensity: each stack's map to grey levels, by its number.
        class_weights: w_c of each class.
        cache: sides and counts.
        fingerprints: digests of what is read of each section: image, label and mask.
        orders: what tells a section whatever its grey levels are, as far as it is known.
        warnings: what the user should know before the job starts.
    """

    settings: AugmentSettings
    stacks: LabelledStacks
    training: tuple[SectionPlace, ...]
    validation: tuple[SectionPlace, ...]
    intensity: Mapping[int, IntensityMap]
    class_weights: tuple[float, ...]
    cache: CachePlan
    fingerprints: Mapping[SectionPlace, Mapping[str, str]]
    orders: Mapping[SectionPlace, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

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
            section_shape=self.stacks.section_px(place.stack),
            patch_px=self.cache.patch_px,
            margin_px=self.cache.margin_px,
        )

    def sources(self) -> dict[str, Any]:
        """Where the sections are, and what else `from_cache` needs beside what the cache was made with.

        No part of the fingerprint: a stack that was moved, and is named anew, still makes the same patches.
        """
        paths = {"image": self.stacks.images, "label": self.stacks.labels, "mask": self.stacks.masks}
        absolutes = {role: [absolute(volume.path) for volume in volumes] for role, volumes in paths.items()}
        names = stack_names(absolutes["image"])
        return {
            "stacks": [
                {"name": name, **{role: (found[n] if found else None) for role, found in absolutes.items()}}
                for n, name in enumerate(names)
            ],
            "training": [[place.stack, place.section] for place in self.training],
            "validation": [[place.stack, place.section] for place in self.validation],
            # Here, where no fingerprint covers it: caches from before it was noted can be extended.
            "grey_order": {f"{place.stack}/{place.section}": order for place, order in self.orders.items()},
            "recipe_name": self.settings.recipe_name,
            "for_preset": self.settings.for_preset,
        }

    def check_section(self, place: SectionPlace) -> None:
        """Whether a section, and its context, still is what the cache was made with.

        Raises:
            CacheMismatchError: it is not.
            VolumeError: it cannot be read.
        """
        volume = self.stacks.images[place.stack]
        found: dict[tuple[int, str], str] = {}
        if place.section < volume.shape[0]:
            for near in context_places(self.stacks, place, self.settings.context_sections):
                found[near.section, "image"] = volume.section_digest(near.section)
            found |= {(place.section, role): digest for role, digest in self.stacks.digests(place).items()}
        for role in self.fingerprints[place]:
            found.setdefault((place.section, role), "nothing")
        for (section, role), digest in found.items():
            if self.fingerprints.get(SectionPlace(place.stack, section), {}).get(role) != digest:
                raise CacheMismatchError(
                    f"the {role} of section {section} of {volume.path} is not the one that the cache was made with; "
                    "name the stacks that it was made with"
                )


def prepare(config: AugmentConfig) -> tuple[AugmentPlan, dict[str, Any]]:
    """Check everything that can be checked without a cluster, and what decides the cache's bytes.

    Returns:
        The plan, and all that decides a patch's bytes; paths do not.

    Raises:
        InputError: inputs or settings are wrong.
    """
    network = layers(network_config(config.for_preset))
    sides = nearest_output_sides(network, config.patch_px)
    if sides != (config.patch_px,):
        raise ConfigError(
            f"--patch-px {config.patch_px} is no side that a {config.for_preset} network can make; "
            f"the nearest are {' and '.join(str(side) for side in sides)}"
        )
    stacks = LabelledStacks.open(
        config.images,
        config.labels,
        config.label_kind,
        ignore_label=config.ignore_label,
        ignore_masks=config.ignore_masks,
    )
    training, validation = stacks.choose(config.validation_sections, config.exclude_sections)
    found = survey(stacks, training, validation, context=config.context_sections, patch_px=config.patch_px)
    settings = AugmentSettings(**{name: getattr(config, name) for name in AugmentSettings.model_fields})
    if settings.label_kind == "classes":  # they have no cells, so no border between cells
        weighting = settings.weighting.model_copy(update={"border_weight": 0.0})
        settings = settings.model_copy(update={"weighting": weighting})
    whole = validation[0] if validation else training[0]
    plan = AugmentPlan(
        settings=settings,
        stacks=stacks,
        training=tuple(training),
        validation=tuple(validation),
        intensity=found.intensity,
        class_weights=class_weights(found.class_counts, settings.weighting),
        cache=CachePlan(
            patches=config.variants * len(training),
            patch_px=config.patch_px,
            margin_px=margin_px(network),
            channels=1 + 2 * config.context_sections,
            patches_per_shard=config.patches_per_shard,
            validation=len(validation),
            section_px=stacks.section_px(whole.stack),
        ),
        fingerprints=found.fingerprints,
        orders=found.orders,
        warnings=found.warnings,
    )
    return plan, _made_with(plan)


def _made_with(plan: AugmentPlan) -> dict[str, Any]:
    """All that decides the patches' bytes, by names that a sentence on what differs can hold."""
    settings, used = plan.settings, {*plan.training, *plan.validation}
    return {
        "sections": {
            f"{role}/{place.stack}/{place.section}": dict(plan.fingerprints[place])
            for role, places in (("train", plan.training), ("validation", plan.validation))
            for place in places
        },
        "context": {
            f"{place.stack}/{place.section}": digests["image"]
            for place, digests in plan.fingerprints.items()
            if place not in used
        },
        "label_kind": settings.label_kind,
        "classes": len(plan.class_weights),
        "ignore_label": settings.ignore_label,
        "seed": settings.seed,
        "patch_px": settings.patch_px,
        "margin_px": plan.cache.margin_px,
        "context_sections": settings.context_sections,
        "patches_per_shard": plan.cache.patches_per_shard,
        "recipe": settings.recipe.model_dump(mode="json"),
        "weighting": settings.weighting.model_dump(mode="json"),
        "class_weights": list(plan.class_weights),
        # A model carries one map: that of the first stack it was trained on.
        "intensity": plan.intensity[plan.training[0].stack].model_dump(),
        "stack_intensity": {str(stack): found.model_dump() for stack, found in plan.intensity.items()},
        "voxel_size_nm": settings.voxel_size_nm or plan.stacks.images[0].voxel_size_nm,
    }


def from_cache(
    attributes: Mapping[str, Any],
    images: Sequence[str] = (),
    labels: Sequence[str] = (),
    ignore_masks: Sequence[str] = (),
) -> AugmentPlan:
    """The plan that a cache was made by, from what the cache says of itself.

    Nothing is read of the sections: `AugmentPlan.check_section` tells whether one still is what it was. Its
    settings do not name the choice of sections, of which ``training`` and ``validation`` are the outcome.

    Args:
        attributes: the cache's: its plan, made_with and sources.
        images: where the image stacks are now; none: where they were.
        labels: the label stacks, likewise.
        ignore_masks: the mask stacks, likewise.

    Raises:
        VolumeError: a stack cannot be opened.
        ConfigError: there are more stacks, or fewer, than the cache was made with.
    """
    made_with, sources, cache = attributes["made_with"], attributes["sources"], attributes["plan"]
    stored = {role: [stack[role] for stack in sources["stacks"]] for role in ("image", "label", "mask")}
    count = len(sources["stacks"])
    had_masks = None not in stored["mask"]
    for flag, given, wanted in (
        ("--images", images, count), ("--labels", labels, count), ("--ignore-masks", ignore_masks, had_masks * count),
    ):  # fmt: skip
        if given and len(given) != wanted:
            raise ConfigError(
                f"{flag} names {len(given)} stacks but the cache was made with {wanted}; name the same ones in order"
            )
    try:
        stacks = LabelledStacks.open(
            images or stored["image"],
            labels or stored["label"],
            made_with["label_kind"],
            ignore_label=made_with["ignore_label"],
            ignore_masks=ignore_masks or (stored["mask"] if had_masks else ()),
        )
    except VolumeError as error:
        raise VolumeError(
            f"{error}; where stacks have moved, name them with --images, --labels, --ignore-masks"
        ) from None
    training, validation = (tuple(SectionPlace(*pair) for pair in sources[role]) for role in ("training", "validation"))
    fingerprints = {SectionPlace(*map(int, key.split("/"))): {"image": d} for key, d in made_with["context"].items()}
    for key, digests in made_with["sections"].items():
        _, stack, section = key.split("/")
        fingerprints[SectionPlace(int(stack), int(section))] = digests
    settings = {name: made_with[name] for name in AugmentSettings.model_fields if name in made_with}
    return AugmentPlan(
        settings=AugmentSettings(
            **settings,
            variants=cache["patches"] // len(training),
            recipe_name=sources["recipe_name"],
            for_preset=sources["for_preset"],
        ),
        stacks=stacks,
        training=training,
        validation=validation,
        intensity={int(stack): IntensityMap(**found) for stack, found in made_with["stack_intensity"].items()},
        class_weights=tuple(made_with["class_weights"]),
        cache=CachePlan(**{**cache, "section_px": tuple(cache["section_px"])}),
        fingerprints=fingerprints,
        orders={SectionPlace(*map(int, k.split("/"))): order for k, order in sources.get("grey_order", {}).items()},
    )
