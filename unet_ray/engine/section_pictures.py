"""Pictures of scored sections, made where the sections are read."""

from collections.abc import Sequence

import numpy as np

from unet_ray.colours import class_colour
from unet_ray.engine.evaluate_inputs import Inputs, Labels, Prediction
from unet_ray.engine.labelled_stacks import read_section
from unet_ray.engine.section_tasks import in_tasks
from unet_ray.numerics.error_map import error_map
from unet_ray.numerics.labels import MAX_CLASSES
from unet_ray.report.layers import SectionLayers, class_layers, section_layers
from unet_ray.report.panel_row import PanelRow
from unet_ray.storage.volume import Volume

MOST_PICTURES = 12
"""A page of some megabytes; the best and the worst section come on top."""
MOST_PANELS = 6
PANEL_PX = 1024
"""A panel has half of that; of a larger section every second, third, ... pixel travels to the driver."""


def pictures(inputs: Inputs, ranked: Sequence[int], workers: int | None) -> tuple[SectionLayers, ...]:
    """Layers of evenly spaced sections of the first prediction, and of the best and the worst.

    Args:
        inputs: of the evaluation.
        ranked: sections from the best to the worst.
        workers: sections at once, at most; None: as many as there are CPUs.
    """
    calls = [(inputs.predictions[0], inputs.labels, inputs.images, z) for z in chosen(inputs.sections, ranked)]
    made = dict(in_tasks(class_picture if inputs.labels.kind == "classes" else picture, calls, workers))
    return tuple(made[number] for number in range(len(calls)))


def chosen(sections: Sequence[int], ranked: Sequence[int]) -> list[int]:
    """Sections that are shown, ascending.

    >>> chosen(range(100), [7, 50, 3])
    [0, 3, 7, 9, 18, 27, 36, 45, 54, 63, 72, 81, 90, 99]
    >>> chosen([4, 9], [9, 4])
    [4, 9]
    """
    count = min(MOST_PICTURES, len(sections))
    spread = [sections[k * (len(sections) - 1) // max(count - 1, 1)] for k in range(count)]
    return sorted({*spread, *ranked[:1], *ranked[-1:]})


def picture(prediction: Prediction, labels: Labels, images: Volume | None, z: int) -> SectionLayers:
    """Layers of one section; where nobody labelled it nothing is wrong."""
    cells, ignore = labels.read(z)
    probability = prediction.read(z)
    errors = error_map(probability, cells)
    if ignore is not None:
        errors[ignore] = 0
    raw = None if images is None else read_section(images, z)
    return section_layers(z, raw=raw, truth=~cells, probability=np.float32(1) - probability, errors=errors)


def class_picture(prediction: Prediction, labels: Labels, images: Volume | None, z: int) -> SectionLayers:
    """Layers of one section of several classes."""
    truth, ignore = labels.read_classes(z)
    predicted = read_section(prediction.volume, z)
    raw = None if images is None else read_section(images, z)
    colours = [class_colour(index) for index in range(MAX_CLASSES)]
    return class_layers(z, raw=raw, truth=truth, predicted=predicted, ignore=ignore, colours=colours)


def panels(inputs: Inputs, workers: int | None) -> tuple[PanelRow, ...]:
    """Raw, truth, probability and mask of evenly spaced sections of the first prediction."""
    stride = -(-len(inputs.sections) // MOST_PANELS)
    calls = [(inputs.predictions[0], inputs.labels, inputs.images, z) for z in inputs.sections[::stride]]
    made = dict(in_tasks(panel, calls, workers))
    return tuple(made[number] for number in range(len(calls)))


def panel(prediction: Prediction, labels: Labels, images: Volume | None, z: int) -> PanelRow:
    """A row of one section; without images the probability stands for them."""
    factor = _panel_factor(prediction.volume)
    thin = np.s_[::factor, ::factor]
    membrane = 1 - prediction.read(z)[thin]
    return PanelRow(
        section=z,
        raw=membrane if images is None else read_section(images, z)[thin],
        truth=~labels.read(z)[0][thin],
        probability=membrane,
        mask=membrane > 0.5,
    )


def panel_voxel_nm(inputs: Inputs) -> tuple[float, float, float] | None:
    """Sides (z, y, x) of a panel's pixel, as far as the first prediction's volume tells them."""
    volume = inputs.predictions[0].volume
    if volume.voxel_size_nm is None:
        return None
    z, y, x = volume.voxel_size_nm
    return z, y * _panel_factor(volume), x * _panel_factor(volume)


def _panel_factor(volume: Volume) -> int:
    return -(-max(volume.shape[1:]) // PANEL_PX)
