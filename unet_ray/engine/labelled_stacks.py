"""The labelled sections of a run, counted through all stacks, and how a worker reads one."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_ray.config.sections import parse_sections
from unet_ray.errors import ConfigError, LabelError, VolumeError
from unet_ray.geometry.box import Box
from unet_ray.numerics.intensity import IntensityMap
from unet_ray.numerics.labels import LabelKind, SectionLabels, membrane_and_cells
from unet_ray.storage.volume import Volume, open_volume

# Sections with their labelled cells that one worker keeps; a section of 4096 x 4096 px takes about 100 MB.
KEPT_BYTES = 1024**3
# What the mapping of 16-bit and float volumes to grey levels is taken from: at most 32 Mvoxel.
SAMPLE_PX = 1024
SAMPLE_SECTIONS = 32


@dataclass(frozen=True, slots=True)
class SectionPlace:
    """A section's stack and its z there."""

    stack: int
    section: int


@dataclass(frozen=True)
class LabelledStacks:
    """Image stacks with their label stacks, of one (y, x) shape.

    Attributes:
        images: image volumes.
        labels: label volumes, one per image volume, of its shape.
        label_kind: what label values mean.
        ignore_label: value of unlabelled pixels.
    """

    images: tuple[Volume, ...]
    labels: tuple[Volume, ...]
    label_kind: LabelKind
    ignore_label: int | None = None

    @classmethod
    def open(
        cls, images: tuple[str, ...], labels: tuple[str, ...], label_kind: LabelKind, ignore_label: int | None
    ) -> "LabelledStacks":
        """Open and pair the stacks.

        Raises:
            ConfigError: not one label stack per image stack.
            VolumeError: a stack cannot be opened, or dtypes or section sides of image stacks differ.
            LabelError: labels have another shape than their images.
        """
        if not images or len(images) != len(labels):
            raise ConfigError(
                f"--images names {len(images)} stacks and --labels {len(labels)}; name one label stack per image stack"
            )
        opened = cls(
            tuple(open_volume(path) for path in images),
            tuple(open_volume(path) for path in labels),
            label_kind,
            ignore_label,
        )
        for image, label in zip(opened.images, opened.labels, strict=True):
            if image.shape != label.shape:
                raise LabelError(
                    f"labels {label.path} have shape {label.shape} but images {image.path} {image.shape} (z, y, x); "
                    "give labels of the same sections"
                )
        first = opened.images[0]
        for other in opened.images[1:]:
            if other.shape[1:] != first.shape[1:] or other.dtype != first.dtype:
                raise VolumeError(
                    f"{other.path} has sections of {other.shape[1:]} {other.dtype} but {first.path} of "
                    f"{first.shape[1:]} {first.dtype}; stacks of one cache must agree: convert one or make two caches"
                )
        return opened

    @property
    def section_px(self) -> tuple[int, int]:
        """(y, x) sides of a section."""
        return self.images[0].shape[1:]

    @property
    def places(self) -> tuple[SectionPlace, ...]:
        """All sections, stack after stack."""
        return tuple(
            SectionPlace(stack, section)
            for stack, volume in enumerate(self.images)
            for section in range(volume.shape[0])
        )

    def choose(
        self, validation: tuple[str, ...], exclude: tuple[str, ...]
    ) -> tuple[list[SectionPlace], list[SectionPlace]]:
        """Training and validation sections.

        Raises:
            ConfigError: a choice is not there or in both lists, or nothing is left for training.
        """
        places = self.places
        held_out = parse_sections(validation, len(places), "--validation-sections")
        excluded = parse_sections(exclude, len(places), "--exclude-sections")
        both = sorted({*held_out} & {*excluded})
        if both:
            raise ConfigError(
                f"section {both[0]} is in both --validation-sections and --exclude-sections; leave it in one of them"
            )
        training = [place for n, place in enumerate(places) if n not in {*held_out, *excluded}]
        if not training:
            raise ConfigError(
                f"all {len(places)} sections are held out or excluded; leave at least one section for training"
            )
        return training, [places[n] for n in held_out]

    def sample(self, places: list[SectionPlace]) -> npt.NDArray[Any]:
        """An even sample of the sections' values, the same at each call."""
        return np.concatenate(
            [sample_volume(volume, [p.section for p in places if p.stack == n]) for n, volume in enumerate(self.images)]
        )

    def read_labels(self, place: SectionPlace) -> SectionLabels:
        """Membrane, cell ids and ignored pixels of a section.

        Raises:
            LabelError: the labels do not fit the label kind.
        """
        volume = self.labels[place.stack]
        return membrane_and_cells(
            read_section(volume, place.section),
            self.label_kind,
            ignore_label=self.ignore_label,
            name=f"labels of {volume.path}, section {place.section},",
        )

    def read_image(self, place: SectionPlace, intensity: IntensityMap, context: int) -> npt.NDArray[np.uint8]:
        """A section with ``context`` sections below and above: (1 + 2 context, y, x) uint8, mirrored in z."""
        volume = self.images[place.stack]
        _, height, width = volume.shape
        box = Box((place.section - context, 0, 0), (place.section + context + 1, height, width))
        return intensity.apply(volume.read(box))


def sample_volume(volume: Volume, sections: Sequence[int]) -> npt.NDArray[Any]:
    """Values of the centres of evenly spaced sections, flat; the same at each call.

    Args:
        volume: what to sample.
        sections: sections to choose from.
    """
    _, height, width = volume.shape
    y, x = max(0, (height - SAMPLE_PX) // 2), max(0, (width - SAMPLE_PX) // 2)
    step = max(1, -(-len(sections) // SAMPLE_SECTIONS))
    boxes = [Box((z, y, x), (z + 1, min(y + SAMPLE_PX, height), min(x + SAMPLE_PX, width))) for z in sections[::step]]
    return np.concatenate([np.empty(0, volume.dtype), *(volume.read(box).ravel() for box in boxes)])


def read_section(volume: Volume, z: int) -> npt.NDArray[Any]:
    """One whole section, (y, x)."""
    _, height, width = volume.shape
    section: npt.NDArray[Any] = volume.read(Box((z, 0, 0), (z + 1, height, width)))[0]
    return section


class SectionMemory:
    """Sections a worker used last, with their labels, up to `KEPT_BYTES`."""

    def __init__(self, stacks: LabelledStacks, intensity: IntensityMap, context: int) -> None:
        self._stacks, self._intensity, self._context = stacks, intensity, context
        self._kept: OrderedDict[SectionPlace, tuple[npt.NDArray[np.uint8], SectionLabels]] = OrderedDict()

    def read(self, place: SectionPlace) -> tuple[npt.NDArray[np.uint8], SectionLabels]:
        """Image (c, y, x) and labels of a section."""
        if place not in self._kept:
            image = self._stacks.read_image(place, self._intensity, self._context)
            labels = self._stacks.read_labels(place)
            self._kept[place] = image, labels
            each = image.nbytes + labels.cell_ids.nbytes + labels.class_map.nbytes
            while len(self._kept) > max(1, KEPT_BYTES // each):
                self._kept.popitem(last=False)
        self._kept.move_to_end(place)
        return self._kept[place]
