"""Predicted membranes thinned to lines, so that their thickness costs nothing in V_rand and V_info.

Source: what the ISBI 2012 challenge calls border thinning, the two-level flooding watershed in the
organisers' Java classes (fiji/Trainable_Segmentation), in its order of visiting: the order decides ties.
"""

import numpy as np
import numpy.typing as npt

from unet_ray.numerics.compiled import compiled

DAM, OUTSIDE, QUEUED, UNVISITED = 0, -1, -2, -3


def thin_borders(labels: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """Grow segments into the membrane until only dams between two of them remain.

    Flooding from the segments, 4-connected, first in first out. The queue starts with the membrane pixels
    beside a segment, column by column; each looks left, up, right and down, and joins the first segment
    it meets. Meeting a second one it becomes a dam. A dam stays a dam or joins a segment by one flag,
    shared by the whole section; nothing but this order gives the challenge's pixels.

    Args:
        labels: (y, x), 0 = membrane, segments from 1: 4-connected components, as `label_cells` gives them.

    Returns:
        (y, x) int32: 0 = dam, mostly one pixel wide, else the segment's label. Without any segment the
        whole section is segment 1. Neighbours outside the section are passed over.

    >>> thin_borders(np.array([[1, 0, 0, 0, 0, 2]], np.int32)).tolist()
    [[1, 1, 1, 0, 2, 2]]
    """
    if not labels.any():
        return np.ones_like(labels)
    flooded = np.where(labels > 0, labels, np.int32(UNVISITED))
    flooded = np.pad(flooded, 1, constant_values=OUTSIDE)
    _flood(flooded)
    return np.ascontiguousarray(flooded[1:-1, 1:-1])


@compiled
def _flood(image: npt.NDArray[np.int32]) -> None:
    height, width = image.shape
    flat = image.reshape(-1)
    steps = (-1, -width, 1, width)
    queue = np.empty(flat.size, np.int32)
    end = 0
    for x in range(1, width - 1):
        for y in range(1, height - 1):
            pixel = y * width + x
            if flat[pixel] == UNVISITED:
                for step in steps:
                    if flat[pixel + step] > 0:
                        flat[pixel] = QUEUED
                        queue[end] = pixel
                        end += 1
                        break
    joinable = False
    place = 0
    while place < end:
        pixel = queue[place]
        place += 1
        own = QUEUED
        for step in steps:
            other = flat[pixel + step]
            if other > 0:
                if own == QUEUED or (own == DAM and joinable):
                    own = other
                elif own > 0 and own != other:
                    own = DAM
                    joinable = False
            elif other == DAM:
                if own == QUEUED:
                    own = DAM
                    joinable = True
            elif other == UNVISITED:
                flat[pixel + step] = QUEUED
                queue[end] = pixel + step
                end += 1
        flat[pixel] = own
