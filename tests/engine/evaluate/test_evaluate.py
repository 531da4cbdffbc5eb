"""Evaluation on real Ray equals the plain loop over sections, in every form of the prediction."""

import csv
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

from tests.engine.evaluate.scored import SHAPE, same, scores_of
from unet_ray.config.evaluate import EvaluateConfig
from unet_ray.config.segment import SegmentConfig
from unet_ray.engine import section_pictures, section_scoring
from unet_ray.engine.evaluate import METRICS, PAGE, PANELS, TABLE, evaluate
from unet_ray.engine.evaluate_inputs import open_inputs
from unet_ray.engine.evaluation import run_evaluation
from unet_ray.errors import ConfigError, VolumeError
from unet_ray.geometry.box import Box
from unet_ray.numerics.bootstrap import bootstrap
from unet_ray.numerics.metrics import score_section
from unet_ray.numerics.stack_scores import combine
from unet_ray.numerics.thresholds import cell_probability
from unet_ray.report.published import PUBLISHED
from unet_ray.storage.volume import Volume

pytestmark = pytest.mark.usefixtures("ray_cluster")


def test_the_driver_reads_no_section(
    labels: Path,
    membrane: npt.NDArray[np.uint8],
    probability: npt.NDArray[np.uint8],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    write_zarr: Callable[..., str],
) -> None:
    """Neither for a picture nor to tell a mask of 0 and 1 from a probability: a volume may be larger than a machine."""
    mask = (probability > 127).astype(np.uint8)
    # Of this mask one section alone tells that 255 means 1: with 1 as its full scale section 3 would be all membrane.
    faint = np.zeros_like(mask)
    faint[:3], faint[3] = mask[:3] * np.uint8(255), 1
    paths = tuple(write_zarr(tmp_path / f"{name}.zarr", a) for name, a in (("m", mask), ("f", faint)))

    def read(*_: Any) -> None:
        raise AssertionError("the driver has read voxels")

    monkeypatch.setattr(Volume, "read", read)
    report = tmp_path / "report"
    given = {"prediction": paths, "labels": str(labels), "images": paths[0], "report": str(report), "workers": 2}
    found = evaluate(EvaluateConfig(**given))["predictions"]
    assert (report / PANELS).read_bytes().startswith(b"\x89PNG")
    assert same(found[0], scores_of(mask, membrane, full_scale=1))
    assert same(found[1], scores_of(faint, membrane))
    assert found[0]["pixel_mismatch"] != found[1]["pixel_mismatch"]


def test_two_workers_score_as_the_plain_loop(
    labels: Path,
    membrane: npt.NDArray[np.uint8],
    probability: npt.NDArray[np.uint8],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    write_zarr: Callable[..., str],
) -> None:
    # Workers take this function by value from here; it leaves the pid of who scored.
    score_one, marks = section_scoring.score_one, tmp_path / "marks"
    marks.mkdir()

    def marked(*arguments: Any) -> Any:
        (marks / f"{os.getpid()}-{arguments[2]}").touch()
        return score_one(*arguments)

    monkeypatch.setattr(section_scoring, "score_one", marked)
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
    assert written.keys() == {"config", "sections", "predictions", "published"}
    assert (written["sections"], written["published"]) == ([0, 2, 3], PUBLISHED)
    (stack,) = written["predictions"]
    assert same(stack, expected)
    assert [row["section"] for row in stack["sections"]] == [0, 2, 3]
    assert (stack["name"], stack["prediction"], stack["kind"], stack["warnings"]) == ("p", prediction, "membrane", [])
    assert "predictions" not in summary
    for key in ("name", "holdout", "warnings", "interval"):
        assert json.loads(json.dumps(summary[key])) == stack[key], key
    assert (report / PANELS).read_bytes().startswith(b"\x89PNG")
    page = (report / PAGE).read_text()
    assert all(f'id="section-{z}"' in page for z in (0, 2, 3))
    assert 'id="section-1"' not in page
    assert f"{summary['v_rand']:.4f}" in page
    assert f"python jobs/view.py --volume {prediction}<" in page  # not ours: the viewer takes it as a volume


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
    differs = ("seconds", "startup_seconds", "interval")
    assert same(found, {name: value for name, value in alone.items() if name not in differs})
    assert same(found["interval"], alone["interval"])
    assert "v_rand_at_fixed_threshold" in found["interval"]
    others = combine([score_section(cell_probability(values[z].astype(np.uint8)), membrane[z] == 0) for z in (0, 1)])
    place = others.common_threshold
    assert found["fixed_threshold"] == pytest.approx(0.1 * place)
    (written,) = json.loads((report / METRICS).read_text())["predictions"]
    for name in ("v_rand", "v_info", "pixel_mismatch"):
        at_fixed = written["curves"][name][place]
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
        "0 and 1, signed": write_zarr(tmp_path / "signed.zarr", mask.astype(np.int64)),
        "0 and 255": write_zarr(tmp_path / "full.zarr", mask * np.uint8(255)),
        "bool": write_zarr(tmp_path / "bool.zarr", mask.astype(bool)),
        "float": write_zarr(tmp_path / "float.zarr", mask.astype(np.float32)),
        "TIFF": str(tiff),
    }
    for form, path in forms.items():
        assert same(evaluate(EvaluateConfig(prediction=path, labels=str(labels))), expected), form
    signed = write_zarr(tmp_path / "no-mask.zarr", 100 * mask.astype(np.int16))
    with pytest.raises(VolumeError, match=r"^--prediction .*no-mask.zarr, section \d: .* holds int16 values"):
        evaluate(EvaluateConfig(prediction=signed, labels=str(labels)))


def test_errors_of_a_worker_reach_the_user_as_they_are(labels: Path, tmp_path: Path) -> None:
    raw = tmp_path / "raw.tif"
    tifffile.imwrite(raw, np.full(SHAPE, 3.5, np.float32), photometric="minisblack")
    with pytest.raises(VolumeError, match=r"raw.tif, section \d: a prediction has to lie between 0 and 1") as caught:
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
    for part in (out, out / "0", out / "labels" / "membrane", out / "labels" / "membrane" / "0"):
        with pytest.raises(VolumeError, match="has 4 blocks unwritten"):
            evaluate(EvaluateConfig(prediction=str(part), labels=str(labels)))
    with pytest.raises(VolumeError, match="has 1 blocks unwritten"):
        evaluate(EvaluateConfig(prediction=str(out), labels=str(labels), sections=("0", "3")))
    # Sections that are whole can be scored.
    assert evaluate(EvaluateConfig(prediction=str(out), labels=str(labels), sections=("0:2",)))["sections"] == [0, 1]


@pytest.mark.usefixtures("here")
def test_several_predictions_side_by_side(
    labels: Path,
    membrane: npt.NDArray[np.uint8],
    probability: npt.NDArray[np.uint8],
    tmp_path: Path,
    write_zarr: Callable[..., str],
) -> None:
    """Each is scored as it would be alone, in its own polarity."""
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    paths = (
        write_zarr(tmp_path / "a" / "p.zarr", probability),
        write_zarr(tmp_path / "b" / "p.zarr", 255 - np.roll(probability, 3, axis=1)),
        write_zarr(tmp_path / "mask.zarr", membrane),
    )
    kinds = ("membrane", "interior", "membrane")
    report = tmp_path / "report"
    given = {"labels": str(labels), "sections": ("1:4",), "threshold_sections": ("0",)}
    found = evaluate(EvaluateConfig(prediction=paths, prediction_kind=kinds, report=str(report), **given))
    assert [stack["name"] for stack in found["predictions"]] == ["p", "p-2", "mask"]
    written = json.loads((report / METRICS).read_text())
    for stack, path, kind, brief in zip(written["predictions"], paths, kinds, found["predictions"], strict=True):
        alone = evaluate(EvaluateConfig(prediction=path, prediction_kind=kind, **given))
        scores = {key: value for key, value in brief.items() if key not in ("name", "holdout", "warnings")}
        assert same(alone, scores)
        assert {key: stack[key] for key in brief} == json.loads(json.dumps(brief))
        assert (stack["prediction"], stack["kind"]) == (path, kind)
    assert same(found, found["predictions"][0])
    assert len({stack["v_rand"] for stack in found["predictions"]}) == 3
    assert (found["predictions"][2]["v_rand"], found["predictions"][2]["interval"]["v_rand"]) == (1, (1, 1))

    rows = list(csv.DictReader((report / TABLE).read_text().splitlines()))
    assert [(row["prediction"], row["section"]) for row in rows] == [
        (name, section) for name in ("p", "p-2", "mask") for section in ("1", "2", "3", "all")
    ]
    for stack, last in zip(written["predictions"], rows[3::4], strict=True):
        assert float(last["v_rand"]) == stack["v_rand"]
        assert [float(last["v_rand_low"]), float(last["v_rand_high"])] == stack["interval"]["v_rand"]
        assert float(last["v_rand_at_fixed_threshold"]) == stack["v_rand_at_fixed_threshold"]
    assert [float(row["dice"]) for row in rows[:3]] == [row["dice"] for row in written["predictions"][0]["sections"]]
    # One kind does for all.
    all_membrane = evaluate(EvaluateConfig(prediction=paths[::2], **given))
    assert same(all_membrane["predictions"][1], {"v_rand": 1.0, "kind": "membrane"})


def test_as_many_kinds_as_predictions() -> None:
    given = {"prediction": ("a", "b", "c"), "labels": "l"}
    with pytest.raises(ValueError, match="--prediction-kind is given 2 times for 3 predictions; give one for all or"):
        EvaluateConfig(**given, prediction_kind=("membrane", "interior"))
    with pytest.raises(ValueError, match="--model is given 2 times for 3 predictions"):
        EvaluateConfig(**given, model=("m", "n"))
    with pytest.raises(ValueError, match="names nothing"):
        EvaluateConfig(prediction=(), labels="l")


@pytest.mark.usefixtures("here")
def test_intervals_are_those_of_the_sections(
    labels: Path,
    membrane: npt.NDArray[np.uint8],
    probability: npt.NDArray[np.uint8],
    tmp_path: Path,
    write_zarr: Callable[..., str],
) -> None:
    given = {"prediction": write_zarr(tmp_path / "p.zarr", probability), "labels": str(labels)}
    found = evaluate(EvaluateConfig(**given, bootstrap=50))["interval"]
    scored = [score_section(cell_probability(probability[z]), membrane[z] == 0) for z in range(4)]
    assert found == bootstrap(scored, resamples=50)
    assert found["v_rand"][0] < found["v_rand"][1]
    assert evaluate(EvaluateConfig(**given, bootstrap=0))["interval"] == {}
    assert set(evaluate(EvaluateConfig(**given, sections=("2",)))["interval"].values()) == {None}


@pytest.mark.usefixtures("here")
def test_no_more_than_a_section_is_read_at_once(
    labels: Path,
    probability: npt.NDArray[np.uint8],
    tmp_path: Path,
    write_zarr: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By whatever part of it: scoring, the search for a mask's full scale, pictures."""
    read, depths = Volume.read, list[int]()

    def noted(volume: Volume, box: Box) -> npt.NDArray[Any]:
        depths.append(box.shape[0])
        return read(volume, box)

    monkeypatch.setattr(Volume, "read", noted)
    mask = write_zarr(tmp_path / "p.zarr", (probability > 127).astype(np.uint8))
    evaluate(EvaluateConfig(prediction=mask, labels=str(labels), images=mask, report=str(tmp_path / "report")))
    assert len(depths) > 3 * 4
    assert set(depths) == {1}


def test_panels_of_large_sections_are_thinned_out(
    monkeypatch: pytest.MonkeyPatch, write_zarr: Callable[..., str], tmp_path: Path, labels: Path
) -> None:
    """Rows travel to the driver, and a picture has no more pixels than it has."""
    values = np.arange(SHAPE[0] * SHAPE[1] * SHAPE[2]).reshape(SHAPE) / np.prod(SHAPE)
    prediction = write_zarr(tmp_path / "p.zarr", values.astype(np.float32))
    inputs = open_inputs(EvaluateConfig(prediction=prediction, labels=str(labels)))
    whole = section_pictures.panel(inputs.predictions[0], inputs.labels, None, 1)
    monkeypatch.setattr(section_pictures, "PANEL_PX", 100)  # sections are 96 x 112
    thinned = section_pictures.panel(inputs.predictions[0], inputs.labels, None, 1)
    assert thinned.truth is not None
    assert thinned.truth.shape == thinned.raw.shape == (48, 56)
    assert np.array_equal(thinned.probability, whole.probability[::2, ::2])
    assert section_pictures.panel_voxel_nm(inputs) is None
    (one,) = inputs.predictions
    monkeypatch.setattr(one.volume, "voxel_size_nm", (50.0, 4.0, 4.0))
    assert section_pictures.panel_voxel_nm(inputs) == (50, 8, 8)


@pytest.mark.usefixtures("here")
def test_what_it_read_stays_open(
    labels: Path, membrane: npt.NDArray[np.uint8], tmp_path: Path, write_zarr: Callable[..., str]
) -> None:
    """For those who go on with it, such as a report."""
    mask = write_zarr(tmp_path / "p.zarr", membrane)
    found = run_evaluation(EvaluateConfig(prediction=mask, labels=str(labels), images=mask, sections=("1", "3")))
    (prediction,) = found.inputs.predictions
    assert (prediction.full_scale, found.inputs.sections) == (1, (1, 3))
    cells, ignore = found.inputs.labels.read(3)
    assert ignore is None
    assert np.array_equal(cells, membrane[3] == 0)
    assert np.array_equal(prediction.read(3), cells)
    assert found.inputs.images is not None
    assert json.loads(json.dumps(found.metrics, allow_nan=False))["predictions"][0]["v_rand"] == 1
    assert found.startup_seconds > 0
