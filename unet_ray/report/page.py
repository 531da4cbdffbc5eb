"""The report of a run as one HTML file that needs nothing beside it."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

from unet_ray.colours import BLUE, RED
from unet_ray.report.curves import curves_svg
from unet_ray.report.layers import SectionLayers, smaller
from unet_ray.report.score_plots import section_scores_svg, threshold_curves_svg

# Key of the score, its name, what it is, which end is best.
SCORES = (
    ("v_rand", "V_rand", "foreground-restricted Rand F-score after border thinning", "1"),
    ("v_info", "V_info", "information F-score after border thinning", "1"),
    ("warping_error", "Warping error", "share of pixels that split or merge cells after warping", "0"),
    ("pixel_error", "Pixel error", "1 - best F-score of cell pixels (ISBI 2012)", "0"),
    ("rand_error", "Rand error", "1 - best F-score of pairs, not thinned (ISBI 2012)", "0"),
    ("pixel_mismatch", "Wrong pixels", "share of pixels that are wrong at 0.5", "0"),
    ("dice", "Dice", "of membrane pixels at 0.5", "1"),
    ("adapted_rand_error", "Adapted Rand error", "scikit-image's, 4-connected cells at 0.5", "0"),
    ("voi", "VOI", "variation of information, nats, of splits and mergers", "0"),
    ("v_rand_unthinned", "V_rand, not thinned", "at its own best threshold", "1"),
    ("v_info_unthinned", "V_info, not thinned", "at its own best threshold", "1"),
)
HEADLINE = ("v_rand", "v_info", "pixel_mismatch", "warping_error", "mean_dice", "mean_iou")
# Of the table of sections.
COLUMNS = ("v_rand", "v_info", "mean_dice", "pixel_mismatch")
CAPTIONS = ("v_rand", "v_info", "mean_dice")
LAYERS = {
    "raw": "Raw", "truth": "Truth", "probability": "Probability", "mask": "Mask", "prediction": "Prediction",
    "errors": "Errors",
}  # fmt: skip

Facts = Sequence[tuple[str, str]]
"""Pairs of what and how much, in the order of being read."""


@dataclass(frozen=True, slots=True)
class Training:
    """How the model came about."""

    facts: Facts
    rows: Sequence[Mapping[str, Any]]
    """Of ``metrics.jsonl``."""
    best_epoch: int | None
    contact_sheet: bytes | None
    """PNG of augmented patches."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """How the segmentation was made, and the proof that its tiles fit."""

    facts: Facts
    seam: Mapping[str, Any] | None
    """``seam_max_abs_diff``, ``mask_change_share``, ``precision``, ``note``; None where none was kept."""
    verdict: str
    """What the run waited for, one sentence; empty where nothing was computed."""
    shares: Mapping[str, float]
    """Of the workers' time, by stage; empty likewise."""


@dataclass(frozen=True, slots=True)
class Report:
    """What a page shows; None leaves a part out."""

    title: str
    made: str
    """When, as a date that people read."""
    metrics: Mapping[str, Any]
    """What ``metrics.json`` holds."""
    sections: Sequence[SectionLayers]
    """Of the first prediction, in the order of their numbers."""
    command: str
    facts: Facts
    """Versions, hardware, times."""
    settings: str
    """The resolved settings, YAML."""
    next_steps: Facts
    """What can be done now, and the command for it."""
    classes: Sequence[tuple[int, int, int]] = ()
    """Colours of the classes in the sections' layers, 0 to 255 each; none where membranes are scored."""
    training: Training | None = None
    certificate: Certificate | None = None


def report_html(report: Report) -> str:
    """The page.

    Everything is inside: pictures as data, style and script as text, so it can be mailed and needs no network.
    """
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: resources.files(__package__).joinpath(name).read_text("utf-8")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "score": score_text,
        "published": lambda score: f"{score:.6f}".rstrip("0"),
        "data": _data_url,
        "share": lambda share: f"{100 * share:.1f} %",
    }
    training = report.training
    predictions = report.metrics["predictions"]
    membranes = "v_rand" in predictions[0]
    scores = SCORES if membranes else _class_rows(predictions)
    return environment.get_template("page.html").render(
        report=report,
        predictions=predictions,
        scores=scores,
        headline=[row for row in scores if row[0] in HEADLINE],
        # Of a section's caption.
        captions=[(key, name) for key, name, _, _ in scores if key in CAPTIONS],
        columns=[(key, name) for key, name, _, _ in scores if key in COLUMNS],
        layers={name: text for name, text in LAYERS.items() if any(name in s.layers for s in report.sections)},
        published_columns=_published_columns,
        ranked=ranked_sections(predictions[0]["sections"]),
        red=RED,
        blue=BLUE,
        # matplotlib's, and ours around it: nothing of the user's is in there unescaped.
        contact_sheet=smaller(training.contact_sheet) if training and training.contact_sheet else None,
        curves=Markup(curves_svg(training.rows, training.best_epoch)) if training and training.rows else None,
        thresholds=[Markup(picture) for picture in threshold_curves_svg(predictions)] if membranes else [],
        section_scores=Markup(section_scores_svg(predictions)) if membranes else None,
    )


def ranked_sections(rows: Sequence[Mapping[str, Any]]) -> list[int]:
    """Sections from the best to the worst, by the sum of V_rand and V_info, or by the mean Dice of several classes.

    Sections where it is not defined are left out.

    >>> ranked_sections([{"section": 4, "v_rand": 0.9, "v_info": 0.9}, {"section": 9, "v_rand": 1, "v_info": 0.9}])
    [9, 4]
    """
    ranks = ("mean_dice",) if rows and "mean_dice" in rows[0] else ("v_rand", "v_info")
    known = [row for row in rows if all(row.get(name) is not None for name in ranks)]
    return [int(row["section"]) for row in sorted(known, key=lambda row: -sum(row[name] for name in ranks))]


def _class_rows(predictions: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str, str]]:
    """The scores of several classes, as many as there are."""
    keys = dict.fromkeys(
        key for p in predictions for key in p if key.startswith(("mean_", "dice_", "iou_")) or key == "pixel_mismatch"
    )
    names = {"dice": "Dice", "iou": "IoU"}
    rows = []
    for key in keys:
        kind, _, of = key.partition("_")
        if kind == "pixel":
            rows.append((key, "Wrong pixels", "share of pixels of another class", "0"))
        elif kind == "mean":
            rows.append((key, f"Mean {names[of]}", "over the classes that are there", "1"))
        else:
            rows.append((key, f"{names[kind]}, class {of}", "counted over all sections", "1"))
    return rows


def _published_columns(table: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Keys and names of the scores that a table of published ones has."""
    return [(key, name) for key, name, _, _ in SCORES if any(key in row for row in table["rows"])]


def score_text(value: float | None) -> str:
    """A score in as many digits as say something.

    >>> score_text(0.97279), score_text(0.001256), score_text(0.0), score_text(None)
    ('0.9728', '0.00126', '0', 'not defined')
    """
    if value is None:
        return "not defined"
    if value == 0:
        return "0"
    return f"{value:.4f}" if abs(value) >= 0.01 else f"{value:.3g}"


def _data_url(encoded: bytes) -> str:
    kind = "png" if encoded.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(encoded).decode()}"
