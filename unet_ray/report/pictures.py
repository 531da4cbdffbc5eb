"""The pictures of a report as PNG bytes: panels of sections, sheets of patches."""

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Patch, Rectangle
from numpy.typing import NDArray

from unet_ray.colours import BLUE, GREY, ORANGE, RED
from unet_ray.report.figure import STYLE, new_figure, png_bytes
from unet_ray.report.panel_row import PanelRow

_PANEL_IN = 3.4  # 510 pixels: a 512-pixel section at its own resolution


def panels_png(rows: Sequence[PanelRow], *, voxel_size_nm: Sequence[float] | None = None, title: str = "") -> bytes:
    """PNG of raw | truth | probability | mask side by side, one row per section.

    The truth's column is left out where no row has one. Where a row has one,
    its mask shows what is missed and what is too much in colour.

    Args:
        rows: at least one.
        voxel_size_nm: (z, y, x) in nm, for a scale bar; None draws none.
        title: of the whole picture.

    >>> import numpy as np
    >>> section = np.zeros((8, 8), np.uint8)
    >>> panels_png([PanelRow(4, section, section, section)])[1:4]
    b'PNG'
    """
    with_truth = any(row.truth is not None for row in rows)
    names = ["raw", *(["truth"] if with_truth else []), "probability", "mask"]
    shape = np.array(rows[0].raw.shape)
    height = _PANEL_IN * float(np.clip(shape[0] / shape[1], 0.2, 3.0)) + 0.3
    with mpl.rc_context(STYLE):
        figure = new_figure(_PANEL_IN * len(names) + 0.5, height * len(rows) + 0.8)
        grid = figure.subplots(len(rows), len(names), squeeze=False)
        for axes, row in zip(grid, rows, strict=True):
            for ax, name in zip(axes, names, strict=True):
                _bare(ax)
                _panel(ax, name, row)
                ax.set_title(name if ax is not axes[0] else f"section {row.section}  {row.caption}".rstrip())
            if voxel_size_nm is not None:
                _scale_bar(axes[0], row.raw.shape, voxel_size_nm)
        handles = [Patch(facecolor="black", edgecolor="black", label="membrane")]
        if with_truth:
            handles += [Patch(color=RED, label="missed"), Patch(color=BLUE, label="too much")]
        figure.legend(handles=handles, loc="outside lower right", ncols=3)
        if title:
            figure.suptitle(title)
        return png_bytes(figure)


def contact_sheet_png(
    images: Sequence[NDArray[Any]],
    labels: Sequence[NDArray[Any]],
    weights: Sequence[NDArray[Any]] | None,
    captions: Sequence[str],
    *,
    title: str = "",
) -> bytes:
    """PNG of patches: the image with its label's outlines, and below it the weight map.

    Args:
        images: (y, x) each; may be larger than its label by the same margin on both sides, as for
            networks with valid convolutions: the label's place is framed.
        labels: (y, x) class indices each; outlines are drawn between classes.
        weights: (y, x) each, all on one colour scale; None leaves them out.
        captions: one per patch, for example its section and variant.
        title: of the whole sheet.
    """
    columns = min(len(images), 5)
    each = 1 if weights is None else 2
    lines = -(-len(images) // columns)
    with mpl.rc_context(STYLE):
        figure = new_figure(2.4 * columns + 0.9, 2.55 * lines * each + 0.7)
        grid = figure.subplots(lines * each, columns, squeeze=False)
        for ax in grid.flat:
            _bare(ax)
        largest = 1.0 if weights is None else max(float(np.max(weight)) for weight in weights)
        colours = mpl.colormaps["viridis"].with_extremes(bad="0.8")
        for k, (image, label, caption) in enumerate(zip(images, labels, captions, strict=True)):
            line, column = divmod(k, columns)
            ax = grid[line * each, column]
            ax.set_title(caption)
            _outlined(ax, image, label)
            if weights is not None:
                below = grid[line * each + 1, column]
                weight = np.ma.masked_equal(np.asarray(weights[k], np.float32), 0)
                shown = below.imshow(weight, cmap=colours, vmin=0, vmax=largest)
        if weights is not None:
            meaning = "weight of the pixel in the loss (grey: ignored)"
            figure.colorbar(shown, ax=grid, label=meaning, shrink=0.6, aspect=40)
        if title:
            figure.suptitle(title)
        return png_bytes(figure)


def _bare(ax: Axes) -> None:
    ax.set(xticks=[], yticks=[])
    ax.grid(False)
    ax.set_frame_on(False)


def _panel(ax: Axes, name: str, row: PanelRow) -> None:
    if name == "raw":
        low, high = np.percentile(row.raw, (0.5, 99.5))
        ax.imshow(row.raw, cmap="gray", vmin=low, vmax=max(high, low + 1e-6))
    elif name == "truth":
        if row.truth is None:
            ax.imshow(np.full(row.raw.shape, 0.93), cmap="gray", vmin=0, vmax=1)
            ax.text(0.5, 0.5, "none", ha="center", va="center", transform=ax.transAxes, color=GREY)
        else:
            ax.imshow(row.truth != 0, cmap="gray_r", vmin=0, vmax=1)
    elif name == "probability":
        top = 255 if row.probability.dtype == np.uint8 else 1
        ax.imshow(np.asarray(row.probability, np.float32) / top, cmap="gray_r", vmin=0, vmax=1)
    else:
        ax.imshow(_verdict(row.mask != 0, None if row.truth is None else row.truth != 0))


def _verdict(mask: NDArray[np.bool_], truth: NDArray[np.bool_] | None) -> NDArray[np.uint8]:
    """(y, x, 3) colours: membrane black, inside white, and what is wrong in colour."""
    colours = np.repeat(np.where(mask, 0, 255).astype(np.uint8)[..., None], 3, axis=2)
    if truth is not None:
        colours[truth & ~mask] = np.round(255 * np.array(mpl.colors.to_rgb(RED)))
        colours[mask & ~truth] = np.round(255 * np.array(mpl.colors.to_rgb(BLUE)))
    return colours


def _scale_bar(ax: Axes, shape: Sequence[int], voxel_size_nm: Sequence[float]) -> None:
    """A bar of a round length, at most a quarter of the width."""
    nm_per_px = float(voxel_size_nm[2])
    most = shape[1] * nm_per_px / 4
    length = 10.0 ** np.floor(np.log10(most))
    length *= max(step for step in (1, 2, 5) if step * length <= most)
    text = f"{length:g} nm" if length < 1000 else f"{length / 1000:g} µm"
    left, low, thick = 0.04 * shape[1], 0.94 * shape[0], 0.012 * shape[0]
    width = length / nm_per_px
    ax.add_patch(Rectangle((left, low), width, thick, facecolor="white", edgecolor="black", linewidth=0.6))
    box = {"facecolor": "black", "alpha": 0.55, "edgecolor": "none", "pad": 1.5}
    ax.text(left, low - thick, text, color="white", va="bottom", ha="left", fontsize=8, bbox=box)


def _outlined(ax: Axes, image: NDArray[Any], label: NDArray[Any]) -> None:
    # 8 bits as they are: stretched, a patch's brightness and contrast would not show.
    ax.imshow(image, cmap="gray", vmin=0, vmax=255 if image.dtype == np.uint8 else None)
    top, left = ((a - b) / 2 for a, b in zip(image.shape, label.shape, strict=True))
    extent = (left - 0.5, left + label.shape[1] - 0.5, top - 0.5, top + label.shape[0] - 0.5)
    levels = np.arange(int(label.max())) + 0.5
    if len(levels):
        ax.contour(label, levels=levels, colors=ORANGE, linewidths=0.7, extent=extent)
    if label.shape != image.shape:
        frame = (left - 0.5, top - 0.5), label.shape[1], label.shape[0]
        ax.add_patch(Rectangle(*frame, fill=False, edgecolor=BLUE, linewidth=1))
    ax.set(xlim=(-0.5, image.shape[1] - 0.5), ylim=(image.shape[0] - 0.5, -0.5))
