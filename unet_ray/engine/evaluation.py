"""An evaluation while it is in memory: what it found, what it read, and pictures of it."""

import time
from dataclasses import dataclass
from typing import Any

from unet_ray.config.evaluate import EvaluateConfig
from unet_ray.engine.cluster import cluster
from unet_ray.engine.evaluate_inputs import Inputs, open_inputs
from unet_ray.engine.run_facts import hardware
from unet_ray.report.layers import SectionLayers
from unet_ray.report.panel_row import PanelRow
from unet_ray.report.published import PUBLISHED
from unet_ray.storage.open_objects import open_objects
from unet_ray.storage.targets import check_folder_target

# Files of the report.
METRICS = "metrics.json"
TABLE = "metrics.csv"
PAGE = "report.html"
PANELS = "sections.png"
# What the check of the inputs does not need: compiled loops, and all that draws.
LATER = ("unet_ray.engine.findings", "unet_ray.engine.section_pictures", "unet_ray.engine.report")


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found, with what it read still open.

    Attributes:
        inputs: predictions, labels, images and the chosen sections.
        metrics: what ``metrics.json`` holds: config, sections, predictions (in the order of the inputs'), published.
        startup_seconds: from the call to the first section's start.
        hardware: in words.
        pictures: of some sections, where a report was asked for.
        panels: likewise, side by side; none of several classes.
    """

    inputs: Inputs
    metrics: dict[str, Any]
    startup_seconds: float
    hardware: str
    pictures: tuple[SectionLayers, ...]
    panels: tuple[PanelRow, ...]


def run_evaluation(config: EvaluateConfig) -> Evaluation:
    """Score predictions; nothing is written.

    Raises:
        InputError: inputs are wrong, or the report cannot be written; nothing was started.
    """
    began = time.time()
    inputs = open_inputs(config)
    if config.report is not None:
        paths = {
            "--prediction": config.prediction, "--labels": (config.labels,), "--ignore-masks": (config.ignore_masks,),
            "--images": (config.images,),
        }  # fmt: skip
        read = [(flag, path) for flag, given in paths.items() for path in given]
        check_folder_target("--report", config.report, (METRICS, TABLE, PAGE, PANELS), read)
        open_objects(config.report).require_writable()
    of_classes = config.label_kind == "classes"
    with cluster(meanwhile=LATER):
        from unet_ray.engine.findings import class_findings, membrane_findings
        from unet_ray.engine.section_pictures import panels, pictures
        from unet_ray.engine.section_scoring import count_classes, score_all, score_one, with_full_scales
        from unet_ray.report.page import ranked_sections

        if not of_classes:
            inputs = with_full_scales(inputs, config.workers)
        scored = score_all(inputs, config.workers, count_classes if of_classes else score_one)
        findings = class_findings if of_classes else membrane_findings
        predictions = [
            findings(config, inputs, prediction, of_sections)
            for prediction, of_sections in zip(inputs.predictions, scored, strict=True)
        ]
        shown: tuple[SectionLayers, ...] = ()
        side_by_side: tuple[PanelRow, ...] = ()
        if config.report is not None:
            shown = pictures(inputs, ranked_sections(predictions[0]["sections"]), config.workers)
            if not of_classes:
                side_by_side = panels(inputs, config.workers)
        found_on = hardware()
    metrics = {
        "config": config.model_dump(mode="json"),
        "sections": list(inputs.sections),
        "predictions": predictions,
        "published": {} if of_classes else PUBLISHED,
    }
    started = min(one.started for of_sections in scored for one in of_sections.values())
    return Evaluation(inputs, metrics, started - began, found_on, shown, side_by_side)
