"""Predictions against labels: sections are scored on workers, their counts joined on the driver."""

import json
import sys
import time
from typing import Any

from unet_ray.command import Summary
from unet_ray.config.evaluate import EvaluateConfig
from unet_ray.engine.evaluate_inputs import Inputs
from unet_ray.engine.evaluation import run_evaluation
from unet_ray.engine.labelled_stacks import read_section
from unet_ray.engine.report import Stages, report_page
from unet_ray.report.metrics_csv import metrics_csv
from unet_ray.report.pictures import PanelRow, panels_png
from unet_ray.storage.objects import open_objects

METRICS = "metrics.json"
TABLE = "metrics.csv"
PAGE = "report.html"
PANELS = "sections.png"
MOST_PANELS = 6
# Long lists, which metrics.json has and a summary does not.
NOT_IN_SUMMARY = ("curves", "sections")
HEADLINES = {"v_rand": "V_rand", "v_info": "V_info", "mean_dice": "mean Dice", "pixel_mismatch": "wrong pixels"}


def evaluate(config: EvaluateConfig, stages: Stages | None = None) -> Summary:
    """Score predictions and write the report.

    Args:
        config: what to compare.
        stages: that came before in a pipeline, for the report.

    Returns:
        The summary of the contract: v_rand, v_info, pixel_error, ... of the first prediction's chosen sections,
        ``holdout`` and ``interval``; ``predictions``, the same of each, where there are several.

    Raises:
        InputError: inputs are wrong; nothing was started.
    """
    began = time.time()
    evaluation = run_evaluation(config)
    brief = [
        {key: value for key, value in found.items() if key not in NOT_IN_SUMMARY}
        for found in evaluation.metrics["predictions"]
    ]
    summary: Summary = {
        "status": "complete",
        "seconds": 0.0,
        "startup_seconds": round(evaluation.startup_seconds, 2),
        "sections": evaluation.metrics["sections"],
        **brief[0],
        **({"predictions": brief} if len(brief) > 1 else {}),
    }
    if config.report is not None:
        report = open_objects(config.report)
        report.put(METRICS, json.dumps(evaluation.metrics, indent=1).encode())
        report.put(TABLE, metrics_csv(evaluation.metrics))
        if config.label_kind != "classes":  # the picture is of membranes
            report.put(PANELS, _panels(evaluation.inputs))
        report.put(PAGE, report_page(evaluation, time.time() - began, stages))
        summary["report"] = config.report
    for found in brief:
        _say(_line(found))
        for warning in found["warnings"]:
            _say(f"warning: {warning}")
    return summary | {"seconds": round(time.time() - began, 2)}


def _line(found: dict[str, Any]) -> str:
    """The scores that people look at first."""
    words = []
    for name, shown in HEADLINES.items():
        if name in found:
            interval = found["interval"].get(name)
            between = "" if interval is None else f" ({interval[0]:.4f} to {interval[1]:.4f})"
            words.append(f"{shown} {'not defined' if found[name] is None else f'{found[name]:.4f}'}{between}")
    return f"{found['name']}: {', '.join(words)}; {found['holdout']['sentence']}"


def _say(sentence: str) -> None:
    print(f"evaluate: {sentence}", file=sys.stderr, flush=True)


def _panels(inputs: Inputs) -> bytes:
    """Raw, truth, probability and mask of evenly spaced sections of the first prediction, side by side."""
    prediction = inputs.predictions[0]
    rows = []
    stride = -(-len(inputs.sections) // MOST_PANELS)
    for z in inputs.sections[::stride]:
        membrane = 1 - prediction.read(z)
        rows.append(
            PanelRow(
                section=z,
                raw=membrane if inputs.images is None else read_section(inputs.images, z),
                truth=~inputs.labels.read(z)[0],
                probability=membrane,
                mask=membrane > 0.5,
            )
        )
    return panels_png(rows, voxel_size_nm=prediction.volume.voxel_size_nm)
