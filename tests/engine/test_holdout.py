"""An evaluation tells which of its sections the model has seen, by the fingerprints of their images."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from unet_ray.config.evaluate import EvaluateConfig
from unet_ray.config.segment import SegmentConfig
from unet_ray.engine.evaluate import METRICS, PAGE, evaluate
from unet_ray.engine.segment import segment
from unet_ray.errors import ModelFileError
from unet_ray.geometry.box import Box
from unet_ray.network.model_file import TrainingSection
from unet_ray.numerics.phantom import phantom_block
from unet_ray.storage.segmentation import Segmentation
from unet_ray.storage.volume import open_volume

pytestmark = pytest.mark.usefixtures("ray_cluster")

SHAPE = (5, 64, 72)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("holdout")


@pytest.fixture(scope="module")
def images(folder: Path, write_zarr: Callable[..., str]) -> str:
    return write_zarr(folder / "images.zarr", phantom_block(Box.of_shape(SHAPE), 6).image)


@pytest.fixture(scope="module")
def labels(folder: Path, write_zarr: Callable[..., str]) -> str:
    return write_zarr(folder / "labels.zarr", phantom_block(Box.of_shape(SHAPE), 6).membrane)


@pytest.fixture(scope="module")
def model(folder: Path, images: str, write_model: Callable[..., str]) -> str:
    """Trained on sections 0 and 1, chosen by 1 (which a model it was begun from was trained on) and 2."""
    shown = open_volume(images)
    sections = tuple(
        TrainingSection(
            fingerprint=shown.section_digest(z), grey_order=shown.order_digest(z), stack=0, section=z, role=role
        )
        for z, role in ((0, "train"), (1, "train"), (1, "validation"), (2, "validation"))
    )
    return write_model(folder / "model.safetensors", training_sections=sections)


@pytest.fixture(scope="module")
def other_model(folder: Path, write_model: Callable[..., str]) -> str:
    """One of which nobody knows what it has seen."""
    return write_model(folder / "other.safetensors", seed=1)


@pytest.fixture(scope="module")
def segmentation(folder: Path, images: str, model: str) -> str:
    output = str(folder / "segmentation.zarr")
    given = {"volume": images, "model": model, "tile_px": 32, "precision": "float32", "threads": 1, "workers": 1}
    segment(SegmentConfig(**given, output=output))
    return output


@pytest.fixture(scope="module")
def foreign(folder: Path, write_zarr: Callable[..., str]) -> str:
    values = np.random.default_rng(0).integers(0, 256, SHAPE, dtype=np.uint8)
    return write_zarr(folder / "foreign.zarr", values)


@pytest.fixture
def scored(labels: str) -> Callable[..., dict[str, Any]]:
    """scored(prediction, *sections, **settings): the summary."""

    def score(prediction: Any, *sections: str, **settings: Any) -> dict[str, Any]:
        given = {"labels": labels, "label_kind": "membrane", "bootstrap": 0, "workers": 1}
        return evaluate(EvaluateConfig(prediction=prediction, sections=sections, **given, **settings))

    return score


def test_what_a_segmentation_tells(
    segmentation: str, scored: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its volume is where it was, so nothing else needs to be named."""
    found = scored(segmentation, report=str(tmp_path / "report"))
    assert found["holdout"] == {
        "status": "trained",
        "trained_sections": [0, 1],
        "chose_the_model": [2],
        "sentence": "trained on sections 0 1; sections 2 chose the model",
    }
    trained, chose = found["warnings"]
    assert "segmentation was TRAINED on 2 of the scored sections (0 1)" in trained
    assert "was chosen by 1 of the scored sections (2)" in chose
    said = capsys.readouterr().err.splitlines()
    assert {f"evaluate: warning: {trained}", f"evaluate: warning: {chose}"} <= {*said}
    (written,) = json.loads((tmp_path / "report" / METRICS).read_text())["predictions"]
    assert written["holdout"] == found["holdout"]
    assert [row["holdout"] for row in written["sections"]] == [
        "trained", "trained", "chose the model", "held out", "held out",
    ]  # fmt: skip

    assert scored(segmentation, "2:5")["holdout"]["status"] == "chose the model"
    held_out = scored(f"{segmentation}/labels/membrane", "3", "4", report=str(tmp_path / "of-a-part"))
    # The viewer is told of the whole.
    assert f"--segmentation {segmentation}<" in (tmp_path / "of-a-part" / PAGE).read_text()
    assert (held_out["holdout"]["status"], held_out["holdout"]["sentence"]) == ("held out", "held out")
    assert held_out["warnings"] == []
    # Sections that fix a threshold may be any.
    assert scored(segmentation, "3", threshold_sections=("0", "2"))["holdout"] == held_out["holdout"]


def test_what_nobody_can_tell(
    segmentation: str,
    foreign: str,
    other_model: str,
    images: str,
    scored: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unknown(*arguments: Any, **settings: Any) -> str:
        found = scored(*arguments, "0", **settings)
        assert (found["holdout"]["status"], found["holdout"]["trained_sections"]) == ("unknown", [])
        sentence: str = found["holdout"]["sentence"]
        return sentence

    assert "nothing tells which model made it; name the model with --model" in unknown(foreign)
    assert "does not tell which sections it was trained on" in unknown(foreign, model=other_model)
    # As segmentations from before it was recorded.
    stored = Segmentation(segmentation).attributes()
    assert stored is not None
    for key, words in (("training_sections", "name the model with --model"), ("sources", "name them with --images")):
        old = {name: value for name, value in stored.items() if name != key}
        monkeypatch.setattr(Segmentation, "attributes", lambda self, old=old: old)
        assert words in unknown(segmentation)
    assert scored(segmentation, "0", images=images)["holdout"]["status"] == "trained"


def test_a_model_that_is_named(
    foreign: str, segmentation: str, model: str, other_model: str, images: str, scored: Callable[..., Any]
) -> None:
    assert scored(foreign, "0", model=model)["holdout"]["status"] == "unknown"
    found = scored(foreign, model=model, images=images)["holdout"]
    assert (found["trained_sections"], found["chose_the_model"]) == ([0, 1], [2])
    with pytest.raises(ModelFileError, match=r"--model .*other.safetensors did not make --prediction .*segmentation"):
        scored(segmentation, model=other_model)
    each = scored((foreign, segmentation), "1", model=(other_model, model), images=images)["predictions"]
    assert [found["holdout"]["status"] for found in each] == ["unknown", "trained"]


def test_a_volume_that_moved_or_changed(
    segmentation: str,
    images: str,
    scored: Callable[..., Any],
    tmp_path: Path,
    write_zarr: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown: npt.NDArray[Any] = phantom_block(Box.of_shape(SHAPE), 6).image
    stored = Segmentation(segmentation).attributes()
    assert stored is not None
    moved = stored | {"sources": {"volume": str(tmp_path / "nowhere.zarr")}}
    changed = stored | {"sources": {"volume": write_zarr(tmp_path / "changed.zarr", shown + np.uint8(1))}}
    for attributes in (moved, changed):
        monkeypatch.setattr(Segmentation, "attributes", lambda self, attributes=attributes: attributes)
        assert scored(segmentation, "0")["holdout"]["status"] == "unknown"
        assert scored(segmentation, "0", images=images)["holdout"]["status"] == "trained"
    monkeypatch.undo()
    # Images that were cut are not what the model saw; the volume still is.
    cut = write_zarr(tmp_path / "cut.zarr", np.roll(shown, 1, axis=2))
    assert scored(segmentation, "0", images=cut)["holdout"]["status"] == "trained"


def test_images_that_were_stored_anew(
    foreign: str,
    images: str,
    model: str,
    scored: Callable[..., Any],
    tmp_path: Path,
    write_zarr: Callable[..., str],
    write_model: Callable[..., str],
) -> None:
    shown = phantom_block(Box.of_shape(SHAPE), 6).image
    anew = {
        "brighter": shown.astype(np.uint16) + 300,
        "16 bit": shown.astype(np.uint16) * 257,
        "0 to 1": shown / np.float32(255),
        "gamma, dark for bright": -((shown / 255.0) ** 0.6),
    }
    for name, values in anew.items():
        found = scored(foreign, "1:4", model=model, images=write_zarr(tmp_path / f"{name}.zarr", values))["holdout"]
        assert (found["trained_sections"], found["chose_the_model"]) == ([1], [2]), name
    # Where levels became one, or pixels moved, it is another image.
    for name, values in (("halved", shown // 2), ("moved", np.roll(shown, 1, axis=2))):
        found = scored(foreign, "1", "2", model=model, images=write_zarr(tmp_path / f"{name}.zarr", values))["holdout"]
        assert found["status"] == "held out", name
    # A model that was trained before the order was noted knows the very pixels.
    told = tuple(
        TrainingSection(fingerprint=open_volume(images).section_digest(z), stack=0, section=z, role="train")
        for z in (0, 1)
    )
    old = write_model(tmp_path / "old.safetensors", training_sections=told)
    assert scored(foreign, "1", model=old, images=images)["holdout"]["status"] == "trained"
    brighter = str(tmp_path / "brighter.zarr")
    assert scored(foreign, "1", model=old, images=brighter)["holdout"]["status"] == "held out"
