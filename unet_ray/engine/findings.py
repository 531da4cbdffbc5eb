"""What an evaluation says of one prediction, from the scores of its sections."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from unet_ray.config.evaluate import EvaluateConfig
from unet_ray.engine.evaluate_inputs import Inputs, Prediction
from unet_ray.engine.holdout import holdout, holdout_warnings
from unet_ray.engine.section_scoring import Scored
from unet_ray.numerics.bootstrap import bootstrap
from unet_ray.numerics.class_scores import bootstrap_classes, class_scores
from unet_ray.numerics.metrics import SectionScores
from unet_ray.numerics.polarity import balanced_accuracies, looks_inverted
from unet_ray.numerics.stack_scores import combine
from unet_ray.numerics.thresholds import THRESHOLDS

# One prediction's sections by number, those that fix a threshold included.
BySection = Mapping[int, Scored]
Found = dict[str, Any]


def membrane_findings(
    config: EvaluateConfig, inputs: Inputs, prediction: Prediction, scored: BySection
) -> dict[str, Any]:
    """A prediction's part of ``metrics.json``: the scores of the challenge."""
    of_sections = [scored[z].scores for z in inputs.sections]
    scores = combine(of_sections)
    fixed: dict[str, Any] = {}
    place: int | None = None
    if inputs.fixing:
        place = combine([scored[z].scores for z in inputs.fixing]).common_threshold
        at_fixed = {f"{name}_at_fixed_threshold": score for name, score in scores.at_threshold(place).items()}
        fixed = {"fixed_threshold": float(THRESHOLDS[place]), **at_fixed}
    joined = scores.to_json()
    rows, curves = joined.pop("sections"), joined.pop("curves")
    intervals = bootstrap(of_sections, resamples=config.bootstrap, fixed=place) if config.bootstrap else {}
    found = _said_of(inputs, prediction, scored, rows, curves, {**joined, **fixed}, intervals)
    found["warnings"] += [*_label_warnings(inputs, of_sections), *_polarity_warnings(prediction, of_sections)]
    return found


def class_findings(config: EvaluateConfig, inputs: Inputs, prediction: Prediction, scored: BySection) -> Found:
    """A prediction's part of ``metrics.json``: Dice and IoU of each class, and wrong pixels."""
    counts = np.stack([scored[z].scores for z in inputs.sections])
    # Up to the highest class that labels or prediction have.
    there = np.flatnonzero(counts.sum(axis=(0, 1)) + counts.sum(axis=(0, 2)))
    counts = counts[:, : there[-1] + 1, : there[-1] + 1]
    of_sections = class_scores(counts)
    rows = [{name: _defined(values[i]) for name, values in of_sections.items()} for i in range(len(counts))]
    scores = {name: _defined(value) for name, value in class_scores(counts.sum(axis=0)).items()}
    intervals = bootstrap_classes(counts, resamples=config.bootstrap) if config.bootstrap else {}
    return _said_of(inputs, prediction, scored, rows, {}, scores, intervals) | {"kind": "classes"}


def _said_of(
    inputs: Inputs,
    prediction: Prediction,
    scored: BySection,
    rows: Sequence[dict[str, Any]],
    curves: dict[str, Any],
    scores: dict[str, Any],
    intervals: Mapping[str, Any],
) -> Found:
    statuses = {z: scored[z].status for z in inputs.sections}
    held = holdout(statuses, prediction.training.unknown)
    return {
        "name": prediction.name,
        "prediction": prediction.path,
        "kind": prediction.kind,
        "holdout": held,
        "warnings": list(holdout_warnings(prediction.name, held)),
        **scores,
        "interval": intervals,
        "curves": curves,
        "sections": [
            {"section": z, "holdout": statuses[z], **row} for z, row in zip(inputs.sections, rows, strict=True)
        ],
    }


def _label_warnings(inputs: Inputs, sections: Sequence[SectionScores]) -> Iterator[str]:
    """What makes scores mean little, whatever is predicted."""
    labels = inputs.labels
    for kind, there in (
        ("cell interior", any(section.tp[0] + section.fn[0] for section in sections)),
        ("membrane", any(section.fp[0] + section.tn[0] for section in sections)),
    ):
        if not there:
            yield (
                f"labels {labels.volume.path} hold no {kind} in the scored sections under --label-kind {labels.kind}, "
                "so the scores tell nothing of it; check --labels and --label-kind"
            )
    everything = all(section.pixels == section.shape[0] * section.shape[1] for section in sections)
    if labels.ignore_label is not None and labels.masks is None and everything:
        yield f"no pixel has the value of --ignore-label {labels.ignore_label}, so nothing is ignored"


def _polarity_warnings(prediction: Prediction, sections: Sequence[SectionScores]) -> Iterator[str]:
    if looks_inverted(sections):
        declared, turned = balanced_accuracies(sections)
        other = "interior" if prediction.kind == "membrane" else "membrane"
        yield (
            f"{prediction.name} looks turned round: with high values for {other} instead of {prediction.kind} "
            f"{turned:.0%} of the cell and membrane pixels are right instead of {declared:.0%}; if that is what they "
            f"mean, pass --prediction-kind {other}"
        )


def _defined(value: Any) -> float | None:
    return None if math.isnan(value) else float(value)
