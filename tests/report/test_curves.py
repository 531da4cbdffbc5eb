"""Training curves: decoded again; smoothing against a plain loop."""

import io
import math

import matplotlib.image
import numpy as np

from unet_ray.colours import BLUE, GREEN, ORANGE, RED
from unet_ray.report.curves import _smooth, curves_png


def pixels(png: bytes) -> np.ndarray:
    return np.round(255 * matplotlib.image.imread(io.BytesIO(png), format="png")[..., :3]).astype(int)


def where(picture: np.ndarray, colour: str) -> np.ndarray:
    rgb = [int(colour[k : k + 2], 16) for k in (1, 3, 5)]
    return np.argwhere(np.abs(picture - rgb).max(axis=2) <= 2)


def run(checks: list[float], pixel_mismatch: float | None = 0.1) -> list[dict]:
    rows = []
    for epoch, loss in enumerate(checks):
        for step in range(20 * epoch + 1, 20 * epoch + 21):
            rows.append({"event": "step", "step": step, "epoch": epoch, "loss": 0.5, "learning_rate": 1e-3})
        rows.append({"event": "validation", "epoch": epoch, "step": step, "loss": loss})
        if pixel_mismatch is not None:
            rows[-1]["pixel_mismatch"] = pixel_mismatch
    return rows


def test_the_best_epoch_is_marked_where_the_loss_is_least() -> None:
    early, late = (pixels(curves_png(run(losses))) for losses in ([0.9, 0.2, 0.8, 0.7], [0.9, 0.8, 0.7, 0.2]))

    # The dotted line through the best step; the star in the legend is at the same place in both.
    def middle(picture: np.ndarray) -> float:
        found = where(picture[: picture.shape[0] // 2], RED)[:, 1]
        return float(np.bincount(found).argmax())

    assert middle(early) < middle(late) - 200
    for colour in (BLUE, ORANGE, GREEN):
        assert len(where(early, colour)) > 100


def test_without_validation_or_pixel_mismatch_or_rows_there_is_still_a_picture() -> None:
    steps = [row for row in run([0.5]) if row["event"] == "step"]
    assert len(where(pixels(curves_png(steps)), ORANGE)) == 0
    assert len(where(pixels(curves_png(run([0.5, 0.4], None))), GREEN)) == 0
    assert pixels(curves_png([])).std() > 1


def test_training_is_drawn_by_the_term_that_validation_has_too() -> None:
    rows = run([0.5, 0.4])
    several = [
        row | {"loss": 0.9, "loss_cross_entropy": 0.5, "loss_dice": 0.8} if row["event"] == "step" else row
        for row in rows
    ]
    assert curves_png(several) == curves_png(rows)


def test_values_that_are_not_finite_and_other_events_are_left_out() -> None:
    rows = run([0.5, 0.4])
    odd = [
        {"event": "step", "step": 41, "epoch": 2, "loss": math.nan},
        {"event": "validation", "step": 41, "epoch": 2, "loss": -math.inf},
        {"event": "restart", "step": 41},
    ]
    assert curves_png(rows + odd) == curves_png(rows)


def test_smoothing_is_the_mean_around() -> None:
    values = np.random.default_rng(0).normal(size=50)
    expected = [values[max(0, k - 3) : k + 4].mean() for k in range(50)]
    np.testing.assert_allclose(_smooth(values, 3), expected, rtol=1e-12)
    np.testing.assert_allclose(_smooth(values, 0), values, rtol=1e-12)
