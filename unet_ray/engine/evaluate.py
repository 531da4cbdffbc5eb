"""Predictions against labels: sections are scored on workers, their counts joined on the driver."""

import json
import sys
import time
from typing import TYPE_CHECKING, Any

from unet_ray.command import Summary
from unet_ray.config.evaluate import EvaluateConfig
from unet_ray.engine.evaluation import METRICS, PAGE, PANELS, TABLE, run_evaluation
from unet_ray.report.metrics_csv import metrics_csv
from unet_ray.storage.open_objects import open_objects

if TYPE_CHECKING:
    from unet_ray.engine.report import Stages

# Long lists, which metrics.json has and a summary does not.
NOT_IN_SUMMARY = ("curves", "sections")
HEADLINES = {"v_rand": "V_rand", "v_info": "V_info", "mean_dice": "mean Dice", "pixel_mismatch": "wrong pixels"}


def evaluate(config: EvaluateConfig, stages: "Stages | None" = None) -> Summary:
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
        # Loaded while Ray started.
        from unet_ray.engine.report import report_page
        from unet_ray.engine.section_pictures import panel_voxel_nm
        from unet_ray.report.pictures import panels_png

        report = open_objects(config.report)
        page = report_page(evaluation, time.time() - began, stages)  # first: what it reads may be damaged
        report.put(METRICS, json.dumps(evaluation.metrics, indent=1).encode())
        report.put(TABLE, metrics_csv(evaluation.metrics))
        if evaluation.panels:
            report.put(PANELS, panels_png(evaluation.panels, voxel_size_nm=panel_voxel_nm(evaluation.inputs)))
        report.put(PAGE, page)
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
