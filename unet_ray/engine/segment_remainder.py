"""What is left of a segmentation when its blocks are done: label images, levels of lower resolution, TIFF files."""

import os
from collections.abc import Collection
from dataclasses import dataclass, field

from unet_ray.engine.pyramid import missing_above, missing_masks, seconds_for
from unet_ray.engine.segment_request import Request
from unet_ray.geometry.block_set import BlockSet
from unet_ray.storage.segmentation_layout import SegmentationLayout
from unet_ray.storage.tiff import Kind

# What one CPU takes to export a megavoxel of a mask. Measured; of noisy probabilities it is up to 0.035.
TIFF_MVOXEL_SECONDS = 0.02
# Kinds of TIFF with one page per section, whatever the classes.
LABELS: tuple[Kind, ...] = ("mask", "classes")


@dataclass(frozen=True)
class Remainder:
    """What is made after the blocks of level 0.

    Attributes:
        labels: by level, blocks whose label image alone is made.
        above: by level, blocks of lower resolution.
        tiff: kinds of the TIFF files.
        tiff_pixels: that each of them covers, all its sections together.
    """

    labels: dict[int, list[int]] = field(default_factory=dict)
    above: dict[int, list[int]] = field(default_factory=dict)
    tiff: tuple[Kind, ...] = ()
    tiff_pixels: int = 0

    def __bool__(self) -> bool:
        return bool(self.labels or self.above or self.tiff)

    def on_cluster(self) -> bool:
        """Whether anything of it is made by the cluster; TIFF files are written by the driver."""
        return bool(self.labels or self.above)

    def voxels(self, layout: SegmentationLayout) -> int:
        """Voxels of lower resolution."""
        return sum(layout.grid(level).voxels_of(blocks) for level, blocks in self.above.items())

    def seconds(self, layout: SegmentationLayout, cpus: int) -> float:
        """What it takes, about, with so many CPUs of the cluster."""
        blocks = [
            seconds_for(layout.grid(level), todo, cpus)
            for made in (self.labels, self.above)
            for level, todo in made.items()
        ]
        pages = sum(1 if kind in LABELS else layout.classes for kind in self.tiff)
        return sum(blocks) + pages * TIFF_MVOXEL_SECONDS * self.tiff_pixels / 1e6 / (os.cpu_count() or 1)

    def __str__(self) -> str:
        labels, above = (sum(map(len, made.values())) for made in (self.labels, self.above))
        parts = [
            (labels, "label image", ""),
            (above, "block", " of lower resolution"),
            (len(self.tiff), "TIFF file", ""),
        ]
        return ", ".join(f"{count:,} {noun}{'s' * (count > 1)}{more}" for count, noun, more in parts if count)


def remainder(request: Request, done: BlockSet, todo: Collection[int]) -> Remainder:
    """What a run has to make beside the blocks of level 0 that are to do; nothing is read but listings."""
    config, layout, stored = request.config, request.job.layout, request.stored
    output = None if stored is None else request.job.output
    labels: dict[int, list[int]] = {}
    if stored is not None:
        anew = layout.classes == 1 and stored["threshold"] != config.threshold
        labels = dict(missing_masks(request.job.output, layout, anew=anew))
    label: Kind = "mask" if layout.classes == 1 else "classes"
    probability: Kind = "challenge" if config.tiff_format == "challenge" else "probability"
    files = {config.tiff: label, config.probability_tiff: probability}
    _, height, width = request.region.shape
    return Remainder(
        labels=labels,
        above=missing_above(output, layout, done, todo),
        tiff=tuple(kind for path, kind in files.items() if path is not None),
        tiff_pixels=len(request.sections) * height * width,
    )
