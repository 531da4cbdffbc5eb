"""The labelled sections of a run, counted through all stacks, and how a worker reads one."""

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_ray.config.sections import parse_sections
from unet_ray.errors import ConfigError, LabelError
from unet_ray.geometry.box import Box
from unet_ray.numerics.intensity import IntensityMap
from unet_ray.numerics.labels import LabelKind, SectionLabels, class_map, membrane_and_cells
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
    """Image stacks with their label stacks; sides and dtypes may differ from stack to stack.

    Attributes:
        images: image volumes.
        labels: label volumes, one per image volume, of its shape.
        masks: volumes that are above 0 where nothing counts, one per image volume, of its shape; or none.
        label_kind: what label values mean.
        ignore_label: value of unlabelled pixels.
    """

    images: tuple[Volume, ...]
    labels: tuple[Volume, ...]
    masks: tuple[Volume, ...]
    label_kind: LabelKind
    ignore_label: int | None = None

    @classmethod
    def open(
        cls,
        images: Sequence[str],
        labels: Sequence[str],
        label_kind: LabelKind,
        *,
        ignore_label: int | None = None,
        ignore_masks: Sequence[str] = (),
    ) -> "LabelledStacks":
        """Open and pair the stacks.

        Raises:
            ConfigError: not one label stack per image stack, or masks for some stacks only.
            VolumeError: a stack cannot be opened.
            LabelError: labels or masks have another shape than their images.
        """
        if not images or len(images) != len(labels):
            raise ConfigError(
                f"--images names {len(images)} stacks and --labels {len(labels)}; name one label stack per image stack"
            )
        if len(ignore_masks) not in (0, len(images)):
            raise ConfigError(
                f"--images names {len(images)} stacks and --ignore-masks {len(ignore_masks)}; "
                "name one mask stack per image stack, or none"
            )
        opened = cls(
            tuple(open_volume(path) for path in images),
            tuple(open_volume(path) for path in labels),
            tuple(open_volume(path) for path in ignore_masks),
            label_kind,
            ignore_label,
        )
        for word, volumes in (("labels", opened.labels), ("ignore masks", opened.masks)):
            for image, other in zip(opened.images, volumes, strict=False):
                if image.shape != other.shape:
                    raise LabelError(
                        f"{word} {other.path} have shape {other.shape} but images {image.path} {image.shape} "
                        f"(z, y, x); give {word} of the same sections"
                    )
        return opened

    def section_px(self, stack: int) -> tuple[int, int]:
        """(y, x) sides of a stack's sections."""
        return self.images[stack].shape[1:]

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
            ConfigError: a choice is not there or in both lists, nothing is left for training, or
                validation sections differ in their sides.
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
        for n in held_out:
            first, other = places[held_out[0]].stack, places[n].stack
            if self.section_px(other) != self.section_px(first):
                raise ConfigError(
                    f"--validation-sections names section {held_out[0]} of {self.images[first].path}, "
                    f"{self.section_px(first)} px (y, x), and section {n} of {self.images[other].path}, "
                    f"{self.section_px(other)}, but they are stored whole in one array; "
                    "choose validation sections of one size"
                )
        return training, [places[n] for n in held_out]

    def digests(self, place: SectionPlace) -> dict[str, str]:
        """What tells a section's image, label and mask (where there are masks) from others."""
        of = {"image": self.images, "label": self.labels, **({"mask": self.masks} if self.masks else {})}
        return {name: volumes[place.stack].section_digest(place.section) for name, volumes in of.items()}

    def order_digest(self, place: SectionPlace) -> str | None:
        """What tells a section's image from others whatever its grey levels are; see `Volume.order_digest`."""
        return self.images[place.stack].order_digest(place.section)

    def read_class_map(self, place: SectionPlace) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_] | None]:
        """Class map and ignored pixels of a section, as `unet_ray.numerics.labels.class_map` gives them."""
        return class_map(**self._label_arguments(place))

    def read_labels(self, place: SectionPlace) -> SectionLabels:
        """Membrane, cell ids and ignored pixels of a section.

        Raises:
            LabelError: the labels do not fit the label kind.
        """
        return membrane_and_cells(**self._label_arguments(place))

    def _label_arguments(self, place: SectionPlace) -> dict[str, Any]:
        volume = self.labels[place.stack]
        return {
            "labels": read_section(volume, place.section),
            "kind": self.label_kind,
            "ignore_label": self.ignore_label,
            "ignore_mask": read_section(self.masks[place.stack], place.section) > 0 if self.masks else None,
            "name": f"labels of {volume.path}, section {place.section},",
        }

    def read_image(
        self, place: SectionPlace, intensity: Mapping[int, IntensityMap], context: int
    ) -> npt.NDArray[np.uint8]:
        """A section with ``context`` sections below and above: (1 + 2 context, y, x) uint8, mirrored in z."""
        volume = self.images[place.stack]
        _, height, width = volume.shape
        box = Box((place.section - context, 0, 0), (place.section + context + 1, height, width))
        return intensity[place.stack].apply(volume.read(box))


def stack_names(paths: Iterable[str]) -> list[str]:
    """A name per stack: its file's, without the ending, and with a number where an earlier stack has it.

    >>> stack_names(["a/images.tif", "b/images.tif", "s3://bucket/vnc.ome.zarr/"])
    ['images', 'images-2', 'vnc']
    """
    names: list[str] = []
    for path in paths:
        stem = PurePath(path).stem.removesuffix(".ome") or path
        name, number = stem, 1
        while name in names:
            number += 1
            name = f"{stem}-{number}"
        names.append(name)
    return names


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

    def __init__(self, stacks: LabelledStacks, intensity: Mapping[int, IntensityMap], context: int) -> None:
        self._stacks, self._intensity, self._context = stacks, intensity, context
        self._kept: OrderedDict[SectionPlace, tuple[npt.NDArray[np.uint8], SectionLabels]] = OrderedDict()
        self._bytes = 0

    def read(self, place: SectionPlace) -> tuple[npt.NDArray[np.uint8], SectionLabels]:
        """Image (c, y, x) and labels of a section."""
        if place not in self._kept:
            image = self._stacks.read_image(place, self._intensity, self._context)
            self._kept[place] = image, self._stacks.read_labels(place)
            self._bytes += _kept_bytes(*self._kept[place])
            while self._bytes > KEPT_BYTES and len(self._kept) > 1:
                _, oldest = self._kept.popitem(last=False)
                self._bytes -= _kept_bytes(*oldest)
        self._kept.move_to_end(place)
        return self._kept[place]


def _kept_bytes(image: npt.NDArray[np.uint8], labels: SectionLabels) -> int:
    ignore = 0 if labels.ignore is None else labels.ignore.nbytes
    return image.nbytes + labels.cell_ids.nbytes + labels.class_map.nbytes + ignore
