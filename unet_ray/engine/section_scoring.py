"""Sections of predictions, scored on workers wherever a CPU is free."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

from unet_ray.engine.evaluate_inputs import Inputs, Labels, Prediction
from unet_ray.engine.holdout import Status
from unet_ray.engine.labelled_stacks import read_section
from unet_ray.engine.section_tasks import in_tasks
from unet_ray.numerics.class_scores import confusion
from unet_ray.numerics.metrics import score_section
from unet_ray.report.progress import Progress
from unet_ray.storage.volume import Volume


class Scored(NamedTuple):
    """A section of a prediction: its scores, what it was to the model, and when its scoring started."""

    scores: Any
    status: Status
    started: float


Score = Callable[[Prediction, Labels, int, bool], Scored]


def score_one(prediction: Prediction, labels: Labels, z: int, is_scored: bool) -> Scored:
    """Score one section; of one that only fixes a threshold nobody asks what it was to the model."""
    started = time.time()
    cells, ignore = labels.read(z)
    scores = score_section(prediction.read(z), cells, ignore=ignore)
    return Scored(scores, prediction.training.status(z) if is_scored else "unknown", started)


def count_classes(prediction: Prediction, labels: Labels, z: int, is_scored: bool) -> Scored:
    """Confusion counts of one section of classes."""
    started = time.time()
    truth, ignore = labels.read_classes(z)
    counts = confusion(read_section(prediction.volume, z), truth, ignore)
    return Scored(counts, prediction.training.status(z) if is_scored else "unknown", started)


def score_all(inputs: Inputs, workers: int | None, score: Score) -> list[dict[int, Scored]]:
    """What ``score`` found in each prediction's sections, by their numbers; at most ``workers`` at once.

    Numbers travel to the workers, and counts come back: a worker holds one section, the driver none.
    """
    scored = [dict[int, Scored]() for _ in inputs.predictions]
    places = [(number, z) for z in (*inputs.sections, *inputs.fixing) for number in range(len(scored))]
    calls = [(inputs.predictions[number], inputs.labels, z, z in inputs.sections) for number, z in places]
    with Progress("evaluate", total=len(calls), unit="sections") as progress:
        for call, found in in_tasks(score, calls, workers):
            number, z = places[call]
            scored[number][z] = found
            progress.advance(1)
    return scored


def with_full_scales(inputs: Inputs, workers: int | None) -> Inputs:
    """The inputs with 1 as the full scale of predictions that are masks of 0 and 1 in a type of whole numbers.

    Whether they are no section tells alone, so before the scoring all are looked at, or the first few where one
    exceeds 1: a probability's first section does.
    """
    sections = (*inputs.sections, *inputs.fixing)
    predictions = []
    for prediction in inputs.predictions:
        if prediction.volume.dtype.kind in "ui":
            calls = [(prediction.volume, z) for z in sections]
            if all(largest <= 1 for _, largest in in_tasks(largest_value, calls, workers)):
                prediction = replace(prediction, full_scale=1.0)
        predictions.append(prediction)
    return replace(inputs, predictions=tuple(predictions))


def largest_value(volume: Volume, z: int) -> int:
    """Of one section of whole numbers."""
    return int(read_section(volume, z).max())
