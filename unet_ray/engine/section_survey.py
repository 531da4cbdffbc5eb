"""What is read of the labelled sections before a cluster starts: all of them, a few at a time in memory."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_ray.engine.labelled_stacks import LabelledStacks, SectionPlace, read_section
from unet_ray.errors import LabelError
from unet_ray.geometry.box import mirror_index
from unet_ray.numerics.intensity import IntensityMap
from unet_ray.numerics.labels import class_counts

MOST_THREADS = 4
NAMED_RUNS = 12
# Stacks whose voxels differ by more than this in one direction are worth a word, as in segmentation.
VOXEL_SIZE_RATIO = 1.2


@dataclass(frozen=True)
class Survey:
    """What the sections hold.

    Attributes:
        fingerprints: digests of image, label and mask of each section used; of a context section the image's.
        orders: `Volume.order_digest` of each section used that has one.
        class_counts: pixels of each class in the training sections, ignored ones left out.
        intensity: map to grey levels of each stack that is used, by its number.
        warnings: what the user should know; a sentence each.
    """

    fingerprints: dict[SectionPlace, dict[str, str]]
    orders: dict[SectionPlace, str]
    class_counts: tuple[int, ...]
    intensity: dict[int, IntensityMap]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Found:
    """One section's digests, pixels of each class, and pixels that are ignored."""

    digests: dict[str, str]
    order: str | None
    counts: npt.NDArray[np.int64]
    ignored: int


def survey(
    stacks: LabelledStacks,
    training: Sequence[SectionPlace],
    validation: Sequence[SectionPlace],
    *,
    context: int,
    patch_px: int,
) -> Survey:
    """Read every section that is used, and count.

    Args:
        stacks: where the sections are.
        training: sections that patches are made of.
        validation: sections that are stored whole.
        context: sections below and above that become channels, each.
        patch_px: side of a patch's label.

    Raises:
        VolumeError: a section cannot be read, or holds NaN or infinity.
        LabelError: labels do not fit their kind, or a class is missing from all training sections.
    """
    used = [*training, *validation]
    near = {place: None for used_one in used for place in context_places(stacks, used_one, context)}
    # Decoding, comparing and hashing release the interpreter's lock; a store answers several requests at once.
    with ThreadPoolExecutor(min(MOST_THREADS, os.cpu_count() or 1)) as pool:
        found = dict(zip(used, pool.map(partial(_look, stacks), used), strict=True))
        only_near = [place for place in near if place not in found]
        images = pool.map(lambda place: stacks.images[place.stack].section_digest(place.section), only_near)
        fingerprints = {place: one.digests for place, one in found.items()}
        fingerprints |= {place: {"image": digest} for place, digest in zip(only_near, images, strict=True)}
    of_training = [found[place].counts for place in training]
    of_validation = [found[place].counts for place in validation]
    summed = np.sum(of_training, axis=0)
    _refuse_missing_classes(stacks, len(training), summed)
    in_use = np.flatnonzero(np.sum([*of_training, *of_validation], axis=0))
    return Survey(
        fingerprints=fingerprints,
        orders={place: one.order for place, one in found.items() if one.order is not None},
        class_counts=tuple(int(count) for count in summed[: max(2, int(in_use[-1]) + 1)]),
        intensity=_intensity(stacks, training, validation),
        warnings=(
            *_one_sided(stacks, "training", training, of_training),
            *_one_sided(stacks, "validation", validation, of_validation),
            *_unseen_classes(summed, of_validation),
            *_overhang(stacks, training, patch_px),
            *_ignore_label_unused(stacks, sum(one.ignored for one in found.values())),
            *_voxel_sizes(stacks),
        ),
    )


def _look(stacks: LabelledStacks, place: SectionPlace) -> _Found:
    classes, ignore = stacks.read_class_map(place)
    ignored = 0 if ignore is None else int(np.count_nonzero(ignore))
    return _Found(stacks.digests(place), stacks.order_digest(place), class_counts(classes, ignore), ignored)


def context_places(stacks: LabelledStacks, place: SectionPlace, context: int) -> list[SectionPlace]:
    """The sections whose images are read for one, itself included, mirrored at the stack's ends."""
    depth = stacks.images[place.stack].shape[0]
    near = {mirror_index(place.section + step, depth) for step in range(-context, context + 1)}
    return [SectionPlace(place.stack, section) for section in sorted(near)]


def _intensity(
    stacks: LabelledStacks, training: Sequence[SectionPlace], validation: Sequence[SectionPlace]
) -> dict[int, IntensityMap]:
    """Each stack's map from all its training sections; from those for validation where it has no others."""
    maps = {}
    for stack, volume in enumerate(stacks.images):
        of_stack = ([place.section for place in places if place.stack == stack] for places in (training, validation))
        chosen = next(filter(None, of_stack), [])

        def read(chosen: Sequence[int] = chosen, stack: int = stack) -> Iterator[npt.NDArray[Any]]:
            return (read_section(stacks.images[stack], section) for section in chosen)

        if chosen:
            maps[stack] = IntensityMap.of_sections(read, volume.dtype)
    return maps


def _refuse_missing_classes(stacks: LabelledStacks, sections: int, counts: npt.NDArray[np.int64]) -> None:
    given = f"the {sections} training sections hold no"
    advice = f"under --label-kind {stacks.label_kind}; check the label kind, the sections and what is ignored"
    if not counts.any():
        raise LabelError(f"{given} pixel that counts {advice}")
    if stacks.label_kind == "classes":
        if np.count_nonzero(counts) == 1:
            raise LabelError(f"{given} class but {int(counts.argmax())} {advice}")
    elif not counts[:2].all():
        raise LabelError(f"{given} {'membrane' if counts[0] else 'cell interior'} {advice}")


def _one_sided(
    stacks: LabelledStacks, role: str, places: Sequence[SectionPlace], counts: Sequence[npt.NDArray[np.int64]]
) -> Iterator[str]:
    advice = "; leave out what is labelled wrongly with --exclude-sections"
    lacking: dict[str, list[SectionPlace]] = {}
    for place, found in zip(places, counts, strict=True):
        if not found.any():
            lacking.setdefault("any pixel that counts", []).append(place)
        elif stacks.label_kind == "classes":
            if np.count_nonzero(found) == 1:
                lacking.setdefault("more than one class", []).append(place)
        elif not found[:2].all():
            lacking.setdefault("any membrane" if found[0] else "any cell interior", []).append(place)
    for what, chosen in lacking.items():
        yield f"{role} sections without {what}: {_numbers(stacks, chosen)}{advice}"


def _unseen_classes(training: npt.NDArray[np.int64], validation: Sequence[npt.NDArray[np.int64]]) -> Iterator[str]:
    unseen = [n for n, count in enumerate(training) if not count and any(found[n] for found in validation)]
    if unseen:
        named = ", ".join(str(n) for n in unseen)
        yield f"classes in validation sections that no training section holds: {named}; nothing can learn them"


def _overhang(stacks: LabelledStacks, training: Sequence[SectionPlace], patch_px: int) -> Iterator[str]:
    """One sentence on patches larger than their sections."""
    by_sides: dict[tuple[int, int], list[SectionPlace]] = {}
    for place in training:
        sides = stacks.section_px(place.stack)
        if patch_px > min(sides):
            by_sides.setdefault(sides, []).append(place)
    if by_sides:
        found = "; ".join(
            f"sections {_numbers(stacks, places)} of {height} x {width} px (y, x) by {max(0, patch_px - height)} and "
            f"{max(0, patch_px - width)} px"
            for (height, width), places in by_sides.items()
        )
        yield f"patches of {patch_px} px are larger than sections, which are mirrored to fill them: {found}"


def _ignore_label_unused(stacks: LabelledStacks, ignored: int) -> Iterator[str]:
    if stacks.ignore_label is not None and not ignored:
        yield f"no pixel has the value of --ignore-label {stacks.ignore_label}, so nothing is ignored"


def _voxel_sizes(stacks: LabelledStacks) -> Iterator[str]:
    told = [volume for volume in stacks.images if volume.voxel_size_nm is not None]
    for volume in told[1:]:
        sizes, firsts = volume.voxel_size_nm or (), told[0].voxel_size_nm or ()
        if any(max(a / b, b / a) > VOXEL_SIZE_RATIO for a, b in zip(sizes, firsts, strict=True)):
            yield (
                f"{volume.path} has voxels of {sizes} nm (z, y, x) but {told[0].path} of {firsts}; "
                "a network learns one scale best: rescale one of them"
            )


def _numbers(stacks: LabelledStacks, places: Sequence[SectionPlace]) -> str:
    """Section numbers as flags count them, runs as ``4-9``."""
    firsts = np.cumsum([0, *(volume.shape[0] for volume in stacks.images)])
    numbers = sorted(int(firsts[place.stack]) + place.section for place in places)
    ends = [n for n, (a, b) in enumerate(pairwise(numbers), 1) if b != a + 1]
    runs = [numbers[a:b] for a, b in pairwise([0, *ends, len(numbers)])]
    named = [str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]
    return ", ".join(named[:NAMED_RUNS]) + (f", ... ({len(numbers)} in all)" if len(named) > NAMED_RUNS else "")
