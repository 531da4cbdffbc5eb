"""Sections of predictions, scored on workers wherever a CPU is free."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import ray

from unet_ray.engine.cluster import fetched, pool_size
from unet_ray.engine.evaluate_inputs import Inputs, Labels, Prediction
from unet_ray.engine.holdout import Status
from unet_ray.engine.labelled_stacks import read_section
from unet_ray.numerics.class_scores import confusion
from unet_ray.numerics.metrics import score_section
from unet_ray.report.progress import Progress


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
    task = ray.remote(num_cpus=1)(score)
    at_once = pool_size(workers, cpus_each=1)
    scored = [dict[int, Scored]() for _ in inputs.predictions]
    waiting = [(number, z) for z in (*inputs.sections, *inputs.fixing) for number in range(len(scored))][::-1]
    running = dict[Any, tuple[int, int]]()
    with Progress("evaluate", total=len(waiting), unit="sections") as progress:
        while waiting or running:
            while waiting and len(running) < at_once:
                number, z = waiting.pop()
                reference = task.remote(inputs.predictions[number], inputs.labels, z, z in inputs.sections)
                running[reference] = number, z
            ready, _ = ray.wait(list(running), timeout=1.0)
            for reference in ready:
                number, z = running.pop(reference)
                scored[number][z] = fetched(reference)
                progress.advance(1)
    return scored
