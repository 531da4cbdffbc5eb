"""Scores over thresholds and over sections, as pictures of a page."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from unet_ray.colours import BLUE, GREEN, GREY, ORANGE, RED
from unet_ray.report.figure import PAGE_STYLE, PAGE_WIDTH_IN, new_figure, svg_text

COLOURS = (BLUE, ORANGE, GREEN, RED, GREY)
LINES = ("-", "--", ":", "-.")
# Curve, its thresholds, what is drawn, whether the highest is best.
THRESHOLD_CURVES = (
    ("v_rand", "thresholds", "V_rand, thinned", True),
    ("v_info", "thresholds", "V_info, thinned", True),
    ("pixel_mismatch", "thresholds", "wrong pixels", False),
    ("warping_error", "warping_thresholds", "warping error", False),
)


def threshold_curves_svg(predictions: Sequence[Mapping[str, Any]]) -> list[str]:
    """Four scores over the threshold of cell probability, a picture each; the best is marked.

    Args:
        predictions: as in ``metrics.json``: each with ``name`` and ``curves``. A curve that is not there, or
            not defined, is left out.
    """
    pictures = []
    with mpl.rc_context(PAGE_STYLE):
        for key, thresholds, title, highest in THRESHOLD_CURVES:
            figure = new_figure(2.8, 2.3)
            ax = figure.subplots()
            for k, prediction in enumerate(predictions):
                curves = prediction["curves"]
                pairs = zip(curves.get(thresholds) or (), curves.get(key) or (), strict=True)
                x, y = np.array([pair for pair in pairs if pair[1] is not None], float).reshape(-1, 2).T
                if len(y):
                    colour, line = COLOURS[k % len(COLOURS)], LINES[k // len(COLOURS) % len(LINES)]
                    ax.plot(x, y, color=colour, linestyle=line, marker="o", markersize=2.5, label=prediction["name"])
                    best = int(np.argmax(y) if highest else np.argmin(y))
                    ax.plot(x[best], y[best], "*", color=colour, markersize=10)
            ax.set(title=title, xlim=(-0.03, 1.03), xlabel="threshold of cell probability")
            if len(predictions) > 1:
                ax.legend(fontsize=7)
            pictures.append(svg_text(figure, f"{title} over the threshold of cell probability"))
    return pictures


def section_scores_svg(predictions: Sequence[Mapping[str, Any]]) -> str:
    """V_rand and V_info of each section, at the thresholds of the whole stack.

    Args:
        predictions: as in ``metrics.json``: each with ``name`` and ``sections``, rows with ``section``,
            ``v_rand`` and ``v_info``.
    """
    with mpl.rc_context(PAGE_STYLE):
        figure = new_figure(PAGE_WIDTH_IN, 3.6)
        for ax, (key, title) in zip(
            figure.subplots(2, 1, sharex=True),
            (("v_rand", "V_rand, thinned"), ("v_info", "V_info, thinned")),
            strict=True,
        ):
            for k, prediction in enumerate(predictions):
                _sections(ax, prediction, key, COLOURS[k % len(COLOURS)])
            ax.set_ylabel(title)
            ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.axes[-1].set_xlabel("section")
        _legend(figure, len(predictions))
        return svg_text(figure, "V_rand and V_info of each section")


def _sections(ax: Axes, prediction: Mapping[str, Any], key: str, colour: str) -> None:
    found = [(row["section"], row[key]) for row in prediction["sections"] if row.get(key) is not None]
    if not found:
        return
    x, y = np.array(found, float).T
    ax.plot(x, y, "o", color=colour, markersize=4, label=prediction["name"])
    ax.axhline(y.mean(), color=colour, linewidth=0.8, linestyle="--")


def _legend(figure: Figure, predictions: int) -> None:
    """One legend for all axes, where there is more than one line to tell apart."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    if predictions > 1 and handles:
        figure.legend(handles, labels, loc="outside upper center", ncols=min(3, len(handles)))
