"""The finished segmentation as TIFF."""

import os
from typing import Any

import numpy.typing as npt

from unet_ray.config.segment import SegmentConfig
from unet_ray.geometry.box import Box
from unet_ray.storage.segmentation import Segmentation
from unet_ray.storage.segmentation_layout import SegmentationLayout
from unet_ray.storage.tiff import Kind, write_tiff
from unet_ray.storage.volume import Volume


def export_tiff(config: SegmentConfig, layout: SegmentationLayout, sections: tuple[int, ...], region: Box) -> None:
    """Write the TIFF files that were asked for, of a region's sections, as streams from the finished output.

    Args:
        config: names the files and their kind.
        layout: of the output.
        sections: that are written, in this order.
        region: whose rows and columns are written.
    """
    _, top, left = region.start
    _, height, width = region.shape
    output = Segmentation(config.output)
    label: Kind = "mask" if layout.classes == 1 else "classes"
    probability: Kind = "challenge" if config.tiff_format == "challenge" else "probability"
    for path, kind in ((config.tiff, label), (config.probability_tiff, probability)):
        if path is None:
            continue
        stored = [output.open_label(layout)] if kind == label else output.open_probabilities(layout)

        def read_rows(page: int, start: int, stop: int, stored: list[Volume] = stored) -> npt.NDArray[Any]:
            place, channel = divmod(page, len(stored))
            box = Box((sections[place], top + start, left), (sections[place] + 1, top + stop, left + width))
            rows: npt.NDArray[Any] = stored[channel].read(box)[0]
            return rows

        write_tiff(
            path,
            read_rows,
            shape=(len(sections), height, width),
            kind=kind,
            channels=len(stored),
            voxel_size_nm=stored[0].voxel_size_nm,
            threads=os.cpu_count() or 1,
        )
