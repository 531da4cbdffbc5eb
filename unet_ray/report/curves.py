"""The picture of a training run: loss, pixel mismatch and learning rate over its steps."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from unet_ray.colours import BLUE, GREEN, GREY, ORANGE, RED
from unet_ray.report.figure import PAGE_STYLE, PAGE_WIDTH_IN, STYLE, new_figure, png_bytes, svg_text

_MOST_POINTS = 4000  # of a training curve; more than the picture has columns


def curves_png(rows: Sequence[Mapping[str, Any]], best_epoch: int | None = None) -> bytes:
    """PNG of a training run's loss, pixel mismatch and learning rate over its steps.

    Args:
        rows: rows of ``metrics.jsonl`` in their order: ``{"event": "step", "step", "epoch",
            "loss", "learning_rate"}`` and ``{"event": "validation", "epoch", "step", "loss",
            "pixel_mismatch", "v_rand", "v_info"}``. Rows of other events and values that are not finite are left out.
        best_epoch: whose model is kept; None: that of the lowest validation loss.

    >>> row = {"event": "step", "step": 1, "epoch": 0, "loss": 0.7, "learning_rate": 1e-3}
    >>> curves_png([row])[1:4]
    b'PNG'
    """
    with mpl.rc_context(STYLE):
        return png_bytes(_curves(rows, best_epoch, width_in=8.0))


def curves_svg(rows: Sequence[Mapping[str, Any]], best_epoch: int | None = None) -> str:
    """The same as `curves_png`, narrower, as an SVG element for a page."""
    with mpl.rc_context(PAGE_STYLE):
        figure = _curves(rows, best_epoch, width_in=PAGE_WIDTH_IN)
        return svg_text(figure, "Loss, validation scores and learning rate over the training steps")


def _curves(rows: Sequence[Mapping[str, Any]], best_epoch: int | None, width_in: float) -> Figure:
    steps = [row for row in rows if row.get("event") == "step"]
    checks = [row for row in rows if row.get("event") == "validation"]
    error = _series(checks, "pixel_mismatch")
    cells = [(name, _series(checks, key)) for name, key in (("V_rand", "v_rand"), ("V_info", "v_info"))]
    cells = [(name, series) for name, series in cells if len(series[0])]
    count = 2 + bool(len(error[0])) + bool(cells)
    figure = new_figure(width_in, 3.2 + 1.5 * (count - 1))
    axes = figure.subplots(count, 1, sharex=True, height_ratios=[3.2, *[1.3] * (count - 1)])
    # Of a loss of several terms the one that validation knows, too.
    term = "loss_cross_entropy" if any("loss_cross_entropy" in row for row in steps) else "loss"
    _loss(axes[0], _series(steps, term), checks, best_epoch)
    if len(error[0]):
        axes[1].plot(*error, "o-", color=GREEN, markersize=3)
        axes[1].set(ylabel="validation\npixel mismatch")
    for (name, series), colour in zip(cells, (BLUE, ORANGE), strict=False):
        axes[-2].plot(*series, "o-", color=colour, markersize=3, label=name)
    if cells:
        axes[-2].set(ylabel="validation\nF-score")
        axes[-2].legend()
    rate = _series(steps, "learning_rate")
    axes[-1].plot(*rate, color=GREY)
    if len(rate[1]) and rate[1].min() > 0:
        axes[-1].set_yscale("log")
    axes[-1].set(xlabel="step", ylabel="learning rate")
    axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def _series(rows: Sequence[Mapping[str, Any]], key: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Steps and finite values of ``key``."""
    pairs = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
    x, y = np.array(pairs, np.float64).reshape(-1, 2).T
    keep = np.isfinite(y)
    return x[keep], y[keep]


def _loss(
    ax: Axes,
    training: tuple[NDArray[np.float64], NDArray[np.float64]],
    checks: Sequence[Mapping[str, Any]],
    best_epoch: int | None,
) -> None:
    x, y = training
    thin = slice(None, None, max(1, len(x) // _MOST_POINTS))
    ax.plot(x[thin], y[thin], color=BLUE, alpha=0.25, linewidth=0.8)
    ax.plot(x[thin], _smooth(y, len(y) // 80)[thin], color=BLUE)
    at, loss = _series(checks, "loss")
    handles = [Line2D([], [], color=BLUE, label="training, smoothed (faint: each step)")]
    if len(at):
        ax.plot(at, loss, "o-", color=ORANGE, markersize=3)
        handles.append(Line2D([], [], color=ORANGE, marker="o", markersize=3, label="validation"))
        epochs = [next(row["epoch"] for row in checks if row["step"] == step) for step in at]
        best = epochs.index(best_epoch) if best_epoch in epochs else int(np.argmin(loss))
        epoch = epochs[best]
        ax.plot(at[best], loss[best], "*", color=RED, markersize=11)
        ax.axvline(at[best], color=RED, linewidth=0.8, linestyle=":")
        label = f"best: epoch {epoch}, {loss[best]:.4g}"
        handles.append(Line2D([], [], color=RED, marker="*", linestyle="", markersize=9, label=label))
    if not len(x) and not len(at):
        ax.text(0.5, 0.5, "no step yet", ha="center", va="center", transform=ax.transAxes, color=GREY)
    every = np.concatenate([y, loss])
    if len(every) and every.min() > 0 and every.max() > 20 * every.min():
        ax.set_yscale("log")
    ax.set(ylabel="loss (per pixel, weighted)")
    ax.legend(handles=handles)


def _smooth(values: NDArray[np.float64], steps: int) -> NDArray[np.float64]:
    """Mean over the ``steps`` before and after each value; fewer at both ends, so that it has no lag."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    at = np.arange(len(values))
    first, last = np.maximum(at - steps, 0), np.minimum(at + steps + 1, len(values))
    mean: NDArray[np.float64] = (total[last] - total[first]) / (last - first)
    return mean
