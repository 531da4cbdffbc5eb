"""The report of an evaluation, or of a pipeline whose last stage it was."""

import json
import shlex
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from unet_ray.command import Summary
from unet_ray.engine.augment import PICTURE
from unet_ray.engine.evaluate_inputs import segmentation_at
from unet_ray.engine.evaluation import Evaluation
from unet_ray.engine.run_facts import command_line, versions
from unet_ray.report.page import Certificate, Facts, Report, Training, report_html
from unet_ray.report.progress import duration, number
from unet_ray.storage.objects import open_objects


@dataclass(frozen=True)
class Stages:
    """What a pipeline did before the evaluation.

    Attributes:
        title: of the report.
        settings: the resolved config.
        summaries: of the stages, by their names, in order.
        cache: path of the patch cache.
        run: path of the run directory.
        volume: path of what was segmented.
        segmentation: path of its output.
    """

    title: str
    settings: Mapping[str, Any]
    summaries: Mapping[str, Summary]
    cache: str
    run: str
    volume: str
    segmentation: str


def report_page(evaluation: Evaluation, seconds: float, stages: Stages | None = None) -> bytes:
    """``report.html`` of an evaluation.

    Args:
        evaluation: finished.
        seconds: the evaluation took.
        stages: before it, where a pipeline had some.
    """
    first = evaluation.inputs.predictions[0]
    settings = evaluation.metrics["config"] if stages is None else stages.settings
    took = {} if stages is None else {name: summary["seconds"] for name, summary in stages.summaries.items()}
    times = ", ".join(f"{name} {duration(spent)}" for name, spent in {**took, "evaluate": seconds}.items())
    page = Report(
        title=first.path if stages is None else stages.title,
        made=time.strftime("%d %B %Y, %H:%M %Z"),
        metrics=evaluation.metrics,
        sections=evaluation.pictures,
        command=command_line(),
        facts=[("Versions", versions()), ("Hardware", evaluation.hardware), ("Time (minutes:seconds)", times)],
        settings=yaml.safe_dump(json.loads(json.dumps(settings)), sort_keys=False),
        next_steps=_next_steps(evaluation, stages),
        training=None if stages is None else _training(stages),
        certificate=_certificate(first.path if stages is None else stages.segmentation, stages),
    )
    return report_html(page).encode()


def _training(stages: Stages) -> Training:
    summary = stages.summaries["train"]
    logged = open_objects(stages.run).get("metrics.jsonl") or b""
    rows = [json.loads(line) for line in logged.splitlines()]
    augmented = stages.summaries["augment"]
    facts = [
        ("Patches", f"{augmented['patches']:,}"),
        ("Epochs, steps", f"{summary['epochs']}, {summary['steps']:,}"),
        *([("Patches per second", number(summary["samples_per_second"]))] if summary.get("samples_per_second") else []),
        ("Precision", summary["precision"]),
        ("Model kept", f"of epoch {summary['best_epoch']}, {summary['model']}"),
        *[
            (f"Validation: {name.replace('_', ' ')}", f"{value:.4f}")
            for name, value in (summary.get("validation") or {}).items()
            if value is not None
        ],
    ]
    return Training(facts, rows, summary["best_epoch"], open_objects(stages.cache).get(PICTURE))


def _certificate(path: str, stages: Stages | None) -> Certificate | None:
    """Of a segmentation of ours; another's tells nothing."""
    segmentation = segmentation_at(path)
    stored = None if segmentation is None else segmentation.attributes()
    if stored is None:
        return None
    made = stored["made_with"]
    summary: Mapping[str, Any] = {} if stages is None else stages.summaries["segment"]
    facts: list[tuple[str, str]] = [
        ("Volume", " x ".join(str(side) for side in made["shape"]) + " voxels (z, y, x)"),
        ("Tiles", f"{made['tile_px']} px, {stored.get('tiles_at_once', 1)} at once, averaged views: {made['tta']}"),
        ("Made on", stored["resolved_on"]),
    ]
    if summary.get("blocks_written"):
        speed = f"{number(summary['voxels_per_second'] / 1e6)} Mvox/s from the first block to the last"
        facts += [
            ("Blocks", f"{summary['blocks_written']:,} written, {summary['blocks_skipped']:,} there before"),
            ("Speed", speed),
            ("Memory of the largest worker", f"{summary['peak_worker_rss_bytes'] / 1e9:.2f} GB"),
        ]
    waited: Mapping[str, Any] = summary.get("bottleneck") or {}
    return Certificate(facts, stored.get("seam"), waited.get("verdict", ""), waited.get("shares", {}))


def _next_steps(evaluation: Evaluation, stages: Stages | None) -> Facts:
    inputs = evaluation.inputs
    if stages is None:
        path = inputs.predictions[0].path
        ours = segmentation_at(path)
        shown = f"--volume {shlex.quote(path)}"  # another's prediction is a volume like any other
        if ours is not None:
            volume = "" if inputs.images is None else f"--volume {shlex.quote(inputs.images.path)} "
            shown = f"{volume}--segmentation {shlex.quote(ours.path)}"
        return [("Look at it", f"python jobs/view.py {shown}")]
    model = shlex.quote(stages.summaries["train"]["model"])
    volume, segmentation = shlex.quote(stages.volume), shlex.quote(stages.segmentation)
    epochs = stages.summaries["train"]["epochs"]
    return [
        ("Look at the volume", f"python jobs/view.py --volume {volume} --segmentation {segmentation}"),
        ("Segment another volume", f"python jobs/segment.py --volume VOLUME --model {model} --output OUTPUT.zarr"),
        (
            "Train on from this model",
            f"python jobs/train.py --cache {shlex.quote(stages.cache)} --run ANOTHER_RUN --initial-model {model} "
            f"--epochs {2 * epochs}",
        ),
        ("Make sure that all is there; what is done is not done again", command_line()),
    ]
