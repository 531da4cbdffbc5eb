"""Evaluation on real Ray equals the plain loop over sections, in every form of the prediction."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile

from unet_ray.config.evaluate import EvaluateConfig
from unet_ray.config.segment import SegmentConfig
from unet_ray.engine import evaluate as engine
from unet_ray.engine.evaluate import METRICS, PANELS, evaluate
from unet_ray.errors import ConfigError, LabelError, VolumeError
from unet_ray.geometry.box import Box
from unet_ray.numerics.metrics import score_section
from unet_ray.numerics.phantom import phantom_block
from unet_ray.numerics.stack_scores import combine
from unet_ray.numerics.thresholds import cell_probability

pytestmark = pytest.mark.usefixtures("ray_cluster")

SHAPE = (4, 96, 112)


@pytest.fixture(scope="module")
def membrane() -> npt.NDArray[np.uint8]:
    """The truth, 1 = membrane."""
    return phantom_block(Box.of_shape(SHAPE), 6).membrane


@pytest.fixture(scope="module")
def probability(membrane: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Membrane probability, 0..255: the truth, shifted and noisy, so that no score is 0 or 1."""
    noise = np.random.default_rng(1).normal(0, 60, SHAPE)
    return np.clip(np.roll(membrane, 2, axis=2) * 150.0 + 50 + noise, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def labels(membrane: npt.NDArray[np.uint8], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In the form of the challenge: 255 = interior."""
    path = tmp_path_factory.mktemp("labels") / "labels.tif"
    tifffile.imwrite(path, (1 - membrane) * np.uint8(255), photometric="minisblack")
    return path


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sections are scored in this process: what differs between inputs needs no cluster again."""

    def score(config: Any, prediction: Any, labels: Any, sections: tuple[int, ...], full_scale: Any) -> Any:
        kinds = config.prediction_kind, config.label_kind
        return {z: engine._score_one(prediction, labels, z, *kinds, full_scale) for z in sections}

    monkeypatch.setattr(engine, "_score", score)


def scores_of(
    prediction: npt.NDArray[Any], membrane: npt.NDArray[np.uint8], sections: Any = range(4), **how: Any
) -> dict[str, Any]:
    scored = [score_section(cell_probability(prediction[z], **how), membrane[z] == 0) for z in sections]
    return combine(scored).summary()


def same(summary: dict[str, Any], expected: dict[str, Any]) -> bool:
    return {name: summary[name] for name in expected} == expected


def test_two_workers_score_as_the_plain_loop(
    labels: Path,
    membrane: npt.NDArray[np.uint8],
    probability: npt.NDArray[np.uint8],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    write_zarr: Callable[..., str],
) -> None:
    # Workers take this function by value from here; it leaves the pid of who scored.
    score_one, marks = engine._score_one, tmp_path / "marks"
    marks.mkdir()

    def marked(*arguments: Any) -> Any:
        (marks / f"{os.getpid()}-{arguments[2]}").touch()
        return score_one(*arguments)

    monkeypatch.setattr(engine, "_score_one", marked)
    prediction = write_zarr(tmp_path / "p.zarr", probability)
    given = {"prediction": prediction, "labels": str(labels), "images": prediction}
    report = tmp_path / "report"
    summary = evaluate(EvaluateConfig(**given, sections=("0", "2:4"), report=str(report), workers=2))
    who = [path.name.split("-") for path in marks.iterdir()]
    assert sorted(int(z) for _, z in who) == [0, 2, 3]
    assert str(os.getpid()) not in {pid for pid, _ in who}
    assert len({pid for pid, _ in who}) == 2

    expected = scores_of(probability, membrane, (0, 2, 3))
    assert same(summary, expected)
    # Not trivial: imperfect, and other sections would score otherwise.
    assert 0.1 < summary["v_rand"] < 0.99
    assert not same(summary, scores_of(probability, membrane))
    contract = (
        "v_rand v_info v_rand_threshold v_info_threshold v_rand_unthinned v_info_unthinned rand_error pixel_error "
        "pixel_mismatch adapted_rand_error warping_error dice status seconds startup_seconds"
    )
    assert set(contract.split()) <= set(summary)
    assert (summary["status"], summary["sections"], summary["report"]) == ("complete", [0, 2, 3], str(report))
    written = json.loads((report / METRICS).read_text())
    assert same(written, expected)
    assert [row["section"] for row in written["sections"]] == [0, 2, 3]
    assert (report / PANELS).read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("here")
def test_a_threshold_that_other_sections_fixed(
    labels: Path, membrane: npt.NDArray[np.uint8], tmp_path: Path, write_zarr: Callable[..., str]
) -> None:
    """Sections 0 and 1 say 0.25 where the others say 0.65: what is best there is not what is best here."""
    rng = np.random.default_rng(5)
    low, high = np.array([40, 40, 140, 140])[:, None, None], np.array([90, 90, 190, 190])[:, None, None]
    values = np.where(membrane > 0, high, low) + rng.integers(-30, 30, membrane.shape)
    given = {"prediction": write_zarr(tmp_path / "p.zarr", values.astype(np.uint8)), "labels": str(labels)}
    alone = evaluate(EvaluateConfig(**given, sections=("2:4",)))
    report = tmp_path / "report"
    found = evaluate(EvaluateConfig(**given, sections=("2:4",), threshold_sections=("0:2",), report=str(report)))
    assert same(found, {name: value for name, value in alone.items() if name not in ("seconds", "startup_seconds")})
    others = combine([score_section(cell_probability(values[z].astype(np.uint8)), membrane[z] == 0) for z in (0, 1)])
    both = others.curves["v_rand"] + others.curves["v_info"]
    assert found["fixed_threshold"] == pytest.approx(0.1 * int(np.argmax(both)))
    written = json.loads((report / METRICS).read_text())
    for name in ("v_rand", "v_info", "pixel_mismatch"):
        at_fixed = written["curves"][name][int(np.argmax(both))]
        assert found[f"{name}_at_fixed_threshold"] == written[f"{name}_at_fixed_threshold"] == at_fixed
    assert found["v_rand_at_fixed_threshold"] < found["v_rand"] - 0.05
    with pytest.raises(ConfigError, match="--threshold-sections names section 2, which is scored itself"):
        evaluate(EvaluateConfig(**given, sections=("2:4",), threshold_sections=("1:3",)))


@pytest.mark.usefixtures("here")
def test_every_form_of_a_mask_scores_alike(
    labels: Path,
    membrane: npt.NDArray[np.uint8],
    probability: npt.NDArray[np.uint8],
    tmp_path: Path,
    write_zarr: Callable[..., str],
) -> None:
    mask = (probability > 127).astype(np.uint8)
    tiff = tmp_path / "mask.tif"
    tifffile.imwrite(tiff, mask * np.uint8(255), photometric="minisblack")
    expected = scores_of(mask, membrane, full_scale=1)
    assert 0 < expected["pixel_mismatch"] < 0.5
    forms = {
        "0 and 1": write_zarr(tmp_path / "one.zarr", mask),
        "0 and 255": write_zarr(tmp_path / "full.zarr", mask * np.uint8(255)),
        "bool": write_zarr(tmp_path / "bool.zarr", mask.astype(bool)),
        "float": write_zarr(tmp_path / "float.zarr", mask.astype(np.float32)),
        "TIFF": str(tiff),
    }
    for form, path in forms.items():
        assert same(evaluate(EvaluateConfig(prediction=path, labels=str(labels))), expected), form


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


def test_errors_of_a_worker_reach_the_user_as_they_are(labels: Path, tmp_path: Path) -> None:
    raw = tmp_path / "raw.tif"
    tifffile.imwrite(raw, np.full(SHAPE, 3.5, np.float32), photometric="minisblack")
    with pytest.raises(VolumeError, match="has to lie between 0 and 1") as caught:
        evaluate(EvaluateConfig(prediction=str(raw), labels=str(labels)))
    assert "Traceback" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.usefixtures("here")
def test_unwritten_blocks_are_refused(
    labels: Path,
    tmp_path: Path,
    write_model: Callable[..., str],
    write_zarr: Callable[..., str],
    membrane: npt.NDArray[np.uint8],
    by_plain_loop: Callable[..., Any],
) -> None:
    volume, out = write_zarr(tmp_path / "v.zarr", membrane * np.uint8(90)), tmp_path / "out.zarr"
    job = by_plain_loop(volume, write_model(tmp_path / "m"), out, 48, SegmentConfig.model_fields["threshold"].default)
    assert job.layout.blocks.counts == (4, 2, 3)
    assert evaluate(EvaluateConfig(prediction=str(out), labels=str(labels)))["status"] == "complete"
    shutil.rmtree(out / "0" / "c" / "2" / "1")
    (out / "0" / "c" / "3" / "0" / "0").write_bytes(b"")
    with pytest.raises(VolumeError, match="has 4 blocks unwritten"):
        evaluate(EvaluateConfig(prediction=str(out), labels=str(labels)))
    with pytest.raises(VolumeError, match="has 1 blocks unwritten"):
        evaluate(EvaluateConfig(prediction=str(out), labels=str(labels), sections=("0", "3")))
    # Sections that are whole can be scored.
    assert evaluate(EvaluateConfig(prediction=str(out), labels=str(labels), sections=("0:2",)))["sections"] == [0, 1]
