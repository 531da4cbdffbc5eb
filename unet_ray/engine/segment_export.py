"""The finished segmentation as TIFF."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_ray.config.segment import SegmentConfig
from unet_ray.geometry.box import Box
from unet_ray.storage.segmentation import Segmentation
from unet_ray.storage.segmentation_layout import SegmentationLayout
from unet_ray.storage.tiff import Kind, write_tiff

# In an object store a chunk's request takes far longer than its decoding.
READERS = 16

ReadBox = Callable[[Box], npt.NDArray[Any]]


def export_tiff(config: SegmentConfig, layout: SegmentationLayout, sections: tuple[int, ...], region: Box) -> None:
    """Write the TIFF files that were asked for, of a region's sections, as streams from the finished output.

    Args:
        config: names the files and their kind.
        layout: of the output.
        sections: that are written, in this order.
        region: whose rows and columns are written.
    """
    if config.tiff is None and config.probability_tiff is None:
        return
    with ThreadPoolExecutor(READERS, "chunks") as pool:
        _export(config, layout, sections, region, pool)


def _export(
    config: SegmentConfig, layout: SegmentationLayout, sections: tuple[int, ...], region: Box, pool: ThreadPoolExecutor
) -> None:
    _, height, width = region.shape
    output = Segmentation(config.output)
    label: Kind = "mask" if layout.classes == 1 else "classes"
    probability: Kind = "challenge" if config.tiff_format == "challenge" else "probability"
    for path, kind in ((config.tiff, label), (config.probability_tiff, probability)):
        if path is None:
            continue
        read = [output.label_reader(layout, pool)] if kind == label else output.probability_readers(layout, pool)
        write_tiff(
            path,
            _Rows(read, sections, region, layout.chunk[1]),
            shape=(len(sections), height, width),
            kind=kind,
            channels=len(read),
            voxel_size_nm=layout.voxel_size_nm,
            threads=os.cpu_count() or 1,
        )


class _Rows:
    """Reads a page's rows for `write_tiff`, whose bands are not those of the chunks, and each row of chunks once."""

    def __init__(self, read: list[ReadBox], sections: tuple[int, ...], region: Box, chunk_px: int) -> None:
        self._read, self._sections, self._region, self._chunk_px = read, sections, region, chunk_px
        self._left = 0, 0, np.empty((0, 0), np.uint8)  # page, its first row, and rows that were not asked for yet

    def __call__(self, page: int, start: int, stop: int) -> npt.NDArray[Any]:
        page_left, first, rows = self._left
        if (page_left, first) != (page, start):
            rows = rows[:0]
        parts = [rows]
        if (missing := start + len(rows)) < stop:
            _, top, left = self._region.start
            _, bottom, right = self._region.stop
            place, channel = divmod(page, len(self._read))
            # To the end of the chunks that hold the last row.
            until = min(-(-(top + stop) // self._chunk_px) * self._chunk_px, bottom)
            box = Box((self._sections[place], top + missing, left), (self._sections[place] + 1, until, right))
            parts.append(self._read[channel](box)[0])
        found = parts[-1] if len(parts[0]) == 0 else np.concatenate(parts)
        self._left = page, stop, found[stop - start :]
        return found[: stop - start]
