"""The one style of the report's pictures, and their encoding."""

import html
import io
import re
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from unet_ray.colours import GREY

STYLE: Any = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same picture on every machine
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "image.interpolation": "antialiased",
}
_DPI = 150
PAGE_WIDTH_IN = 4.4
"""Of a page's pictures: their 9 points stay readable on a telephone."""
# Stands for the page's own text colour until the picture is text; SVG's currentColor is none of matplotlib's.
_INK = "#010203"
# Over STYLE, for pictures that a page embeds: they follow its light or dark colours.
PAGE_STYLE: Any = {
    **STYLE,
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "grid.color": GREY,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "unet_ray",
}


def new_figure(width_in: float, height_in: float) -> Figure:
    """Empty figure of a size in inches, to be filled and encoded within ``matplotlib.rc_context(STYLE)``."""
    # Not pyplot, which keeps every figure alive until it is closed and may look for a display.
    figure = Figure(figsize=(width_in, height_in), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def png_bytes(figure: Figure) -> bytes:
    """The figure encoded as PNG; equal figures give equal bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def svg_text(figure: Figure, label: str) -> str:
    """The figure as an SVG element for a page, as wide as its place, in the page's text colour.

    Args:
        figure: drawn within ``matplotlib.rc_context(PAGE_STYLE)``, and to be encoded within it.
        label: what the picture shows, for those who do not see it.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    drawn = buffer.getvalue()
    drawn = drawn[drawn.index("<svg") :].replace(_INK, "currentColor")
    opening = re.sub(r'\s(width|height)="[^"]*pt"', "", drawn[: drawn.index(">")])
    return f'{opening} role="img" aria-label="{html.escape(label)}"{drawn[drawn.index(">") :]}'
