"""Which pixels count in an evaluation: kinds of labels, what nobody labelled, and labels that tell little."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile

from tests.engine.evaluate.scored import SHAPE, same, scores_of
from unet_ray.config.evaluate import EvaluateConfig
from unet_ray.engine.evaluate import evaluate
from unet_ray.errors import LabelError
from unet_ray.numerics.metrics import score_section
from unet_ray.numerics.stack_scores import combine
from unet_ray.numerics.thresholds import cell_probability

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.mark.usefixtures("here")
def test_polarity_and_kinds_of_labels(
    labels: Path,
    membrane: npt.NDArray[np.uint8],
    probability: npt.NDArray[np.uint8],
    tmp_path: Path,
    write_zarr: Callable[..., str],
) -> None:
    # The challenge's submission: 32-bit float, 1 = cell.
    cells = ((255 - probability) / np.float32(255)).astype(np.float32)
    submission, ours = tmp_path / "submission.tif", write_zarr(tmp_path / "ours.zarr", probability)
    tifffile.imwrite(submission, cells, photometric="minisblack")
    expected = scores_of(probability, membrane)
    assert same(evaluate(EvaluateConfig(prediction=ours, labels=str(labels))), expected)
    as_cells = evaluate(EvaluateConfig(prediction=str(submission), labels=str(labels), prediction_kind="interior"))
    assert same(as_cells, expected)
    as_membrane = evaluate(EvaluateConfig(prediction=str(submission), labels=str(labels)))
    assert as_membrane["pixel_mismatch"] == pytest.approx(1 - expected["pixel_mismatch"], abs=0.01)
    bright = write_zarr(tmp_path / "bright.zarr", membrane * np.uint8(255))
    assert same(evaluate(EvaluateConfig(prediction=ours, labels=bright, label_kind="membrane")), expected)
    values = write_zarr(tmp_path / "values.zarr", probability)
    with pytest.raises(LabelError, match="different values"):
        evaluate(EvaluateConfig(prediction=ours, labels=values))


@pytest.mark.usefixtures("here")
def test_a_turned_prediction_is_warned_of(
    labels: Path,
    probability: npt.NDArray[np.uint8],
    tmp_path: Path,
    write_zarr: Callable[..., str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = {"prediction": write_zarr(tmp_path / "p.zarr", probability), "labels": str(labels)}
    assert evaluate(EvaluateConfig(**given))["warnings"] == []
    assert "warning" not in capsys.readouterr().err
    (warning,) = evaluate(EvaluateConfig(**given, prediction_kind="interior"))["warnings"]
    assert "p looks turned round" in warning
    assert warning.endswith("pass --prediction-kind membrane")
    assert f"evaluate: warning: {warning}" in capsys.readouterr().err.splitlines()


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("value", "settings", "said"),
    [
        (0, {}, ["hold no cell interior in the scored sections under --label-kind interior"]),
        (0, {"label_kind": "instances"}, ["hold no cell interior in the scored sections under --label-kind instances"]),
        (255, {}, ["hold no membrane in the scored sections under --label-kind interior"]),
        (0, {"label_kind": "membrane"}, ["hold no membrane in the scored sections under --label-kind membrane"]),
        (None, {"ignore_label": 7}, ["no pixel has the value of --ignore-label 7, so nothing is ignored"]),
        (None, {"ignore_label": 255}, ["hold no cell interior"]),
        (None, {}, []),
    ],
)
def test_labels_that_tell_little_are_warned_of(
    labels: Path, probability: npt.NDArray[np.uint8], tmp_path: Path, write_zarr: Callable[..., str],
    value: int | None, settings: dict[str, Any], said: list[str],
) -> None:  # fmt: skip
    path = labels
    if value is not None:
        path = tmp_path / "flat.tif"
        tifffile.imwrite(path, np.full(SHAPE, value, np.uint8), photometric="minisblack")
    prediction = write_zarr(tmp_path / "p.zarr", probability)
    warnings = evaluate(EvaluateConfig(prediction=prediction, labels=str(path), **settings))["warnings"]
    assert len(warnings) == len(said)
    for warning, words in zip(warnings, said, strict=True):
        assert words in warning


@pytest.mark.usefixtures("here")
def test_pixels_that_nobody_labelled(
    membrane: npt.NDArray[np.uint8], probability: npt.NDArray[np.uint8], tmp_path: Path, write_zarr: Callable[..., str]
) -> None:
    ignore = np.zeros(SHAPE, bool)
    ignore[:, 20:50, 30:60] = True
    values = np.where(ignore, 7, (1 - membrane) * 255).astype(np.uint8)
    prediction = write_zarr(tmp_path / "p.zarr", probability)
    given = {"prediction": prediction, "labels": write_zarr(tmp_path / "l.zarr", values)}
    found = evaluate(EvaluateConfig(**given, ignore_label=7))
    scored = [
        score_section(cell_probability(probability[z]), membrane[z] == 0, ignore=ignore[z]) for z in range(len(ignore))
    ]
    assert same(found, combine(scored).summary())
    assert not same(found, scores_of(probability, membrane))
    with pytest.raises(LabelError, match="hold 3 different values"):
        evaluate(EvaluateConfig(**given))
    values[2] = 7
    unlabelled = write_zarr(tmp_path / "u.zarr", values)
    with pytest.raises(LabelError, match=r"u.zarr, section 2, have no pixel that is not --ignore-label 7; leave"):
        evaluate(EvaluateConfig(prediction=prediction, labels=unlabelled, ignore_label=7))


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("value", [1, 255])
def test_masks_of_pixels_that_nobody_labelled(
    membrane: npt.NDArray[np.uint8],
    probability: npt.NDArray[np.uint8],
    labels: Path,
    tmp_path: Path,
    write_zarr: Callable[..., str],
    value: int,
) -> None:
    """What the mask leaves out and what the label leaves out is the same, and both together are either."""
    ignore = np.zeros(SHAPE, bool)
    ignore[:, 20:50, 30:60] = True
    mask = write_zarr(tmp_path / "m.zarr", ignore.astype(np.uint8) * np.uint8(value))
    prediction = write_zarr(tmp_path / "p.zarr", probability)
    scored = [
        score_section(cell_probability(probability[z]), membrane[z] == 0, ignore=ignore[z]) for z in range(len(ignore))
    ]
    expected = combine(scored).summary()
    assert same(evaluate(EvaluateConfig(prediction=prediction, labels=str(labels), ignore_masks=mask)), expected)
    assert not same(expected, scores_of(probability, membrane))
    left, right = ignore.copy(), ignore.copy()
    left[..., 45:], right[..., :45] = False, False
    halves = {
        "labels": write_zarr(tmp_path / "l.zarr", np.where(left, 7, (1 - membrane) * 255).astype(np.uint8)),
        "ignore_masks": write_zarr(tmp_path / "r.zarr", right),
    }
    assert same(evaluate(EvaluateConfig(prediction=prediction, ignore_label=7, **halves)), expected)


@pytest.mark.usefixtures("here")
def test_ignore_masks_that_do_not_fit(
    probability: npt.NDArray[np.uint8], labels: Path, tmp_path: Path, write_zarr: Callable[..., str]
) -> None:
    given = {"prediction": write_zarr(tmp_path / "p.zarr", probability), "labels": str(labels)}
    other = write_zarr(tmp_path / "other.zarr", np.zeros((4, 96, 111), np.uint8))
    with pytest.raises(
        LabelError, match=r"ignore masks .*other.zarr have shape \(4, 96, 111\) but labels .*labels.tif"
    ):
        evaluate(EvaluateConfig(**given, ignore_masks=other))
    everything = np.zeros(SHAPE, np.uint8)
    everything[2] = 1
    mask = write_zarr(tmp_path / "all.zarr", everything)
    with pytest.raises(LabelError, match=r"section 2, have no pixel that is not above 0 in --ignore-masks .*all.zarr"):
        evaluate(EvaluateConfig(**given, ignore_masks=mask))
    sections = ("0:2", "3")
    assert evaluate(EvaluateConfig(**given, ignore_masks=mask, sections=sections))["sections"] == [0, 1, 3]
