"""The report of an evaluation, or of a pipeline whose last stage it was."""

import json
import shlex
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from unet_ray.colours import class_colour
from unet_ray.command import Summary
from unet_ray.engine.bottleneck import bottleneck
from unet_ray.engine.evaluate_inputs import segmentation_at
from unet_ray.engine.evaluation import Evaluation
from unet_ray.engine.past_runs import past_runs
from unet_ray.engine.run_facts import command_line, versions
from unet_ray.engine.run_writer import read_rows
from unet_ray.numerics.labels import MAX_CLASSES
from unet_ray.report.page import Certificate, Facts, Report, Training, report_html
from unet_ray.report.progress import duration, number
from unet_ray.storage.open_objects import open_objects
from unet_ray.storage.patch_cache import CONTACT_SHEET, PatchCache
from unet_ray.storage.segmentation import Segmentation


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
    took = {} if stages is None else _times(stages)
    times = ", ".join(f"{name} {spent}" for name, spent in {**took, "evaluate": duration(seconds)}.items())
    page = Report(
        title=first.path if stages is None else stages.title,
        made=time.strftime("%d %B %Y, %H:%M %Z"),
        metrics=evaluation.metrics,
        sections=evaluation.pictures,
        classes=_class_colours(evaluation),
        command=command_line(),
        facts=[("Versions", versions()), ("Hardware", evaluation.hardware), ("Time (minutes:seconds)", times)],
        settings=yaml.safe_dump(json.loads(json.dumps(settings)), sort_keys=False),
        next_steps=_next_steps(evaluation, stages),
        training=None if stages is None else _training(stages),
        certificate=_certificate(first.path if stages is None else stages.segmentation),
    )
    return report_html(page).encode()


def _class_colours(evaluation: Evaluation) -> list[tuple[int, int, int]]:
    """Of the classes that are scored; none where membranes are."""
    found = evaluation.metrics["predictions"][0]
    return [class_colour(index) for index in range(MAX_CLASSES) if f"dice_{index}" in found]


def _times(stages: Stages) -> dict[str, str]:
    """What each stage took before the evaluation, by whichever runs did its work."""
    cache, segmentation = PatchCache(stages.cache), Segmentation(stages.segmentation)
    blocks = {"augment": cache.plan().blocks, "segment": segmentation.blocks_done()}
    past = {"augment": past_runs(cache.objects), "segment": past_runs(segmentation.objects)}
    times = {}
    for name, summary in stages.summaries.items():
        if name in past:
            seconds, runs = past[name].seconds, past[name].runs
            least = "more than " if past[name].blocks < blocks[name] else ""
        else:  # runs from before this was noted tell nothing
            seconds, runs, least = summary.get("seconds_of_all_runs", 0.0), 1, ""
        several = f" in {runs} runs" if runs > 1 else ""
        earlier = " (done earlier)" if "note" in summary else ""
        times[name] = f"{least}{duration(seconds)}{several}{earlier}" if seconds else "done earlier"
    return times


def _training(stages: Stages) -> Training:
    summary = stages.summaries["train"]
    rows = read_rows(open_objects(stages.run))
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
    return Training(facts, rows, summary["best_epoch"], open_objects(stages.cache).get(CONTACT_SHEET))


def _certificate(path: str) -> Certificate | None:
    """Of a segmentation of ours; another's tells nothing."""
    segmentation = segmentation_at(path)
    stored = None if segmentation is None else segmentation.attributes()
    if segmentation is None or stored is None:
        return None
    made = stored["made_with"]
    facts: list[tuple[str, str]] = [
        ("Volume", " x ".join(str(side) for side in made["shape"]) + " voxels (z, y, x)"),
        ("Tiles", f"{made['tile_px']} px, {stored.get('tiles_at_once', 1)} at once, averaged views: {made['tta']}"),
        ("Made on", stored["resolved_on"]),
    ]
    past = past_runs(segmentation.objects)
    if not past.runs:
        return Certificate(facts, stored.get("seam"), "", {})
    in_runs = "one run" if past.runs == 1 else f"{past.runs} runs"
    speed = f"{number(past.units / max(past.busy_seconds, 1e-9) / 1e6)} Mvox/s from the first block to the last"
    facts += [
        ("Blocks", f"{past.blocks:,} written in {in_runs}{_untold(past.blocks, segmentation.blocks_done())}"),
        ("Speed", speed),
        ("Memory of the largest worker", f"{past.peak_worker_rss_bytes / 1e9:.2f} GB"),
    ]
    waited = bottleneck(past.stage_seconds, past.worker_seconds)
    return Certificate(facts, stored.get("seam"), waited["verdict"], waited["shares"])


def _untold(told: int, done: int) -> str:
    """What is missing from the figures of a segmentation: runs that were killed, or are older than the figures."""
    return f"; {done - told:,} more by runs that did not live to tell" if done > told else ""


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
