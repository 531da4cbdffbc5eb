"""A prediction against labels: sections are scored on workers, their counts joined on the driver."""

import json
import re
import time
from typing import Any

import numpy as np
import numpy.typing as npt
import ray

from unet_ray.command import Summary
from unet_ray.config.evaluate import EvaluateConfig
from unet_ray.config.sections import parse_sections
from unet_ray.engine.cluster import cluster, fetched, pool_size
from unet_ray.engine.labelled_stacks import read_section
from unet_ray.errors import ConfigError, LabelError, OutputMismatchError, VolumeError
from unet_ray.numerics.labels import LabelKind, membrane_and_cells
from unet_ray.numerics.metrics import SectionScores, score_section
from unet_ray.numerics.stack_scores import StackScores, combine
from unet_ray.numerics.thresholds import THRESHOLDS, Polarity, cell_probability
from unet_ray.report.pictures import PanelRow, panels_png
from unet_ray.report.progress import Progress
from unet_ray.storage.objects import open_objects
from unet_ray.storage.segmentation import CLASSES, Segmentation
from unet_ray.storage.volume import Volume, open_volume

METRICS = "metrics.json"
PANELS = "sections.png"
MOST_PANELS = 6


def evaluate(config: EvaluateConfig) -> Summary:
    """Score a prediction.

    Returns:
        The summary of the contract: v_rand, v_info, pixel_error, ... of the chosen sections.

    Raises:
        InputError: inputs are wrong; nothing was started.
    """
    began = time.time()
    _refuse_classes(config.prediction)
    prediction, labels = open_volume(config.prediction), open_volume(config.labels)
    if prediction.shape != labels.shape:
        raise LabelError(
            f"--prediction {config.prediction} has shape {prediction.shape} but --labels {config.labels} "
            f"{labels.shape} (z, y, x); give labels of the same sections"
        )
    images = None if config.images is None else open_volume(config.images)
    if images is not None and images.shape != labels.shape:
        raise VolumeError(
            f"--images {config.images} has shape {images.shape} but --labels {labels.shape}; give the same sections"
        )
    depth = labels.shape[0]
    sections = parse_sections(config.sections, depth, "--sections") or tuple(range(depth))
    fixing = parse_sections(config.threshold_sections, depth, "--threshold-sections")
    if shared := sorted(set(fixing) & set(sections)):
        raise ConfigError(
            f"--threshold-sections names section {shared[0]}, which is scored itself; a threshold that was fixed "
            "before has to come from other sections: take it out there or name the others with --sections"
        )
    _refuse_unwritten(config.prediction, (*sections, *fixing))
    report = None if config.report is None else open_objects(config.report)
    if report is not None:
        report.require_writable()
    full_scale = _full_scale(prediction, (*sections, *fixing))
    with cluster():
        scored = _score(config, prediction, labels, (*sections, *fixing), full_scale)
    scores = combine([scored[z][0] for z in sections])
    fixed: dict[str, Any] = {}
    if fixing:
        number = combine([scored[z][0] for z in fixing]).common_threshold
        at_fixed = {f"{name}_at_fixed_threshold": score for name, score in scores.at_threshold(number).items()}
        fixed = {"fixed_threshold": float(THRESHOLDS[number]), **at_fixed}
    summary: Summary = {
        "status": "complete",
        "seconds": 0.0,
        "startup_seconds": round(min(started for _, started in scored.values()) - began, 2),
        "sections": list(sections),
        **scores.summary(),
        **fixed,
    }
    if report is not None:
        report.put(METRICS, _metrics_json(config, sections, scores, fixed))
        report.put(PANELS, _panels(config, images, prediction, labels, sections, full_scale))
        summary["report"] = config.report
    return summary | {"seconds": round(time.time() - began, 2)}


def _segmentation(path: str) -> Segmentation | None:
    """The segmentation of ours at a path, if there is one."""
    try:
        segmentation = Segmentation(path)
        return None if segmentation.attributes() is None else segmentation
    except (OutputMismatchError, OSError):
        return None  # another's zarr, or a file


def _refuse_classes(path: str) -> None:
    """Several classes have no membrane to score; as a mask their indices would be read as probabilities."""
    # The segmentation, one of its arrays, or its label image.
    segmentation = _segmentation(re.sub(rf"(/{CLASSES})?(/\d+)?/*$", "", path))
    if segmentation is not None and segmentation.classes() > 1:
        raise ConfigError(
            f"--prediction {path} tells {segmentation.classes()} classes apart, but evaluate scores membranes; give a "
            f"segmentation by a model of at most 2 classes, or compare {CLASSES} with your labels by other means"
        )


def _refuse_unwritten(path: str, sections: tuple[int, ...]) -> None:
    """A segmentation of ours must be complete where it is scored: unwritten blocks would read as 0."""
    segmentation = _segmentation(path)
    missing = 0 if segmentation is None else segmentation.unwritten_blocks(sections)
    if missing:
        raise VolumeError(
            f"--prediction {path} has {missing} blocks unwritten in the chosen sections; run the same jobs/segment.py "
            "command again to finish them"
        )


def _full_scale(prediction: Volume, sections: tuple[int, ...]) -> float | None:
    """1 for whole numbers that never exceed it (a mask of 0 and 1), None where the dtype says it."""
    if prediction.dtype.kind not in "ui":
        return None
    return 1.0 if all(read_section(prediction, z).max() <= 1 for z in sections) else None


def true_cells(labels: Volume, kind: LabelKind, z: int) -> npt.NDArray[np.bool_]:
    """Where a section's labels say cell interior, (y, x)."""
    name = f"labels of {labels.path}, section {z},"
    cells: npt.NDArray[np.bool_] = membrane_and_cells(read_section(labels, z), kind, name=name).class_map == 0
    return cells


def _score_one(
    prediction: Volume, labels: Volume, z: int, polarity: Polarity, kind: LabelKind, full_scale: float | None
) -> tuple[SectionScores, float]:
    started = time.time()
    cells = cell_probability(read_section(prediction, z), polarity, full_scale)
    return score_section(cells, true_cells(labels, kind, z)), started


def _score(
    config: EvaluateConfig, prediction: Volume, labels: Volume, sections: tuple[int, ...], full_scale: float | None
) -> dict[int, tuple[SectionScores, float]]:
    """Scores of each section, computed wherever a CPU is free; at most ``workers`` at once."""
    task = ray.remote(num_cpus=1)(_score_one)
    at_once = pool_size(config.workers, cpus_each=1)
    waiting, running = list(reversed(sections)), dict[Any, int]()
    scored: dict[int, tuple[SectionScores, float]] = {}
    with Progress("evaluate", total=len(sections), unit="sections") as progress:
        while waiting or running:
            while waiting and len(running) < at_once:
                z = waiting.pop()
                reference = task.remote(prediction, labels, z, config.prediction_kind, config.label_kind, full_scale)
                running[reference] = z
            ready, _ = ray.wait(list(running), timeout=1.0)
            for reference in ready:
                z = running.pop(reference)
                scored[z] = fetched(reference)
                progress.advance(1)
    return scored


def _metrics_json(
    config: EvaluateConfig, sections: tuple[int, ...], scores: StackScores, fixed: dict[str, Any]
) -> bytes:
    found = scores.to_json()
    for z, row in zip(sections, found["sections"], strict=True):
        row["section"] = z
    return json.dumps({"config": config.model_dump(mode="json"), **fixed, **found}, indent=1).encode()


def _panels(
    config: EvaluateConfig,
    images: Volume | None,
    prediction: Volume,
    labels: Volume,
    sections: tuple[int, ...],
    full_scale: float | None,
) -> bytes:
    """Raw, truth, probability and mask of evenly spaced sections, side by side."""
    rows = []
    stride = -(-len(sections) // MOST_PANELS)
    for z in sections[::stride]:
        membrane = 1 - cell_probability(read_section(prediction, z), config.prediction_kind, full_scale)
        rows.append(
            PanelRow(
                section=z,
                raw=membrane if images is None else read_section(images, z),
                truth=~true_cells(labels, config.label_kind, z),
                probability=membrane,
                mask=membrane > 0.5,
            )
        )
    return panels_png(rows, voxel_size_nm=prediction.voxel_size_nm)
