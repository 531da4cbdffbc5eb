"""Several classes, and probabilities in half precision, through real Ray."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
import zarr

from unet_ray.config.evaluate import EvaluateConfig
from unet_ray.config.segment import SegmentConfig
from unet_ray.engine import segment_plan
from unet_ray.engine.evaluate import evaluate
from unet_ray.engine.segment import segment
from unet_ray.engine.segment_worker import Job
from unet_ray.errors import ConfigError, OutputMismatchError, VolumeError
from unet_ray.numerics.downsample import downsample
from unet_ray.storage.segmentation_layout import CLASSES, MASK

pytestmark = pytest.mark.usefixtures("ray_cluster")

# 45 x 39 px in shards of 16: levels of 45 x 39, 23 x 20 and 12 x 10 px.
SHAPE, TILE, LEVELS, THRESHOLD = (2, 45, 39), 16, 3, 0.46
BLOCKS, ABOVE = 2 * 3 * 3, 2 * (2 * 2 + 1)
KINDS = ["classes", "half"]


@pytest.fixture(autouse=True)
def small_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segment_plan, "LARGEST_CHUNK_PX", 16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("classes")


@pytest.fixture(scope="module")
def asked(
    folder: Path,
    write_model: Callable[..., str],
    write_zarr: Callable[..., str],
    phantom_image: Callable[..., npt.NDArray[np.uint8]],
) -> dict[str, dict[str, Any]]:
    """Settings of two segmentations, without their outputs: three classes, and a membrane in float16."""
    # The seed gives weights of which every class comes out, at every level.
    three = write_model(folder / "three", "default", base_channels=4, classes=3, seed=9)
    both = {
        "volume": write_zarr(folder / "volume.zarr", phantom_image(SHAPE, 2)),
        "tile_px": TILE, "precision": "float32", "threads": 1, "workers": 1,
    }  # fmt: skip
    membrane = write_model(folder / "membrane", "default", base_channels=4)
    return {
        "classes": both | {"model": three},
        "half": both | {"model": membrane, "probability_dtype": "float16", "threshold": THRESHOLD},
    }


@pytest.fixture(scope="module")
def made(folder: Path, asked: dict[str, Any]) -> dict[str, tuple[Path, dict[str, Any]]]:
    """Both segmentations by two workers, and their summaries."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segment_plan, "LARGEST_CHUNK_PX", 16)
        return {
            kind: (folder / f"{kind}.zarr", segment(SegmentConfig(**asked[kind] | {"workers": 2}, output=str(out))))
            for kind in KINDS
            for out in [folder / f"{kind}.zarr"]
        }


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def output(kind: str, made: dict[str, tuple[Path, Any]], tmp_path: Path) -> Path:
    """A copy of a finished segmentation, times included."""
    shutil.copytree(made[kind][0], tmp_path / "out.zarr", copy_function=shutil.copy2)
    return tmp_path / "out.zarr"


def array(out: Path, key: str) -> npt.NDArray[Any]:
    return np.asarray(zarr.open_array(str(out / key), mode="r")[...])


def label_of(kind: str, probability: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return probability.argmax(axis=0) if kind == "classes" else probability.astype(np.float64) > THRESHOLD


def digests(found: dict[str, Any]) -> dict[str, str]:
    return {key: shard.digest for key, shard in found.items()}


def test_the_job_gives_the_bytes_of_the_plain_loop(
    kind: str,
    asked: dict[str, dict[str, Any]],
    made: dict[str, tuple[Path, dict[str, Any]]],
    tmp_path: Path,
    by_plain_loop: Callable[..., Job],
    shards: Callable[..., dict[str, Any]],
) -> None:
    out, summary = made[kind]
    dtype = "uint8" if kind == "classes" else "float16"
    by_plain_loop(asked[kind]["volume"], asked[kind]["model"], tmp_path / "plain", TILE, THRESHOLD, dtype=dtype)
    plain, found = digests(shards(tmp_path / "plain")), digests(shards(out))
    label = CLASSES if kind == "classes" else MASK
    assert len(plain) == 2 * BLOCKS
    assert {key for key in plain if key.startswith(label)} == {key for key in found if key.startswith(f"{label}/0/")}
    assert plain == {key: found[key] for key in plain}
    assert (summary["status"], summary["blocks_written"], summary["blocks"]) == ("complete", BLOCKS, BLOCKS)
    assert (summary["pyramid_levels"], summary["pyramid_blocks_written"]) == (LEVELS, ABOVE)
    assert summary["seam_max_abs_diff"] <= 1e-5
    made_with = zarr.open_group(str(out), mode="r").attrs["unet_ray_segmentation"]["made_with"]
    assert made_with.get("probability_dtype") == (None if kind == "classes" else "float16")
    again = segment(SegmentConfig(**asked[kind], output=str(out)))
    assert (again["blocks_written"], again["blocks_skipped"], again["pyramid_blocks_written"]) == (0, BLOCKS, 0)


def test_each_level_is_the_mean_and_its_labels_are_of_that_mean(
    kind: str, made: dict[str, tuple[Path, dict[str, Any]]]
) -> None:
    out, several = made[kind][0], kind == "classes"
    expected = array(out, "0")
    assert expected.shape == ((3, *SHAPE) if several else SHAPE)
    for level in range(LEVELS):
        if level:
            means = [downsample(one, (1, 2, 2)) for one in (expected if several else expected[None])]
            expected = np.stack(means) if several else means[0]
        found, labels = array(out, str(level)), array(out, f"{CLASSES if several else MASK}/{level}")
        assert found.dtype == (np.uint8 if several else np.float16)
        assert np.array_equal(found, expected)
        assert np.array_equal(labels, label_of(kind, found))
        assert len(np.unique(labels)) == (3 if several else 2)


def test_a_repair_makes_what_was_lost_and_what_was_made_from_it(
    kind: str, asked: dict[str, dict[str, Any]], output: Path, shards: Callable[..., dict[str, Any]]
) -> None:
    before = shards(output)
    lead, label = ("0/", CLASSES) if kind == "classes" else ("", MASK)

    def flip(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[len(data) // 3] ^= 2
        path.write_bytes(data)

    flip(output / f"0/c/{lead}1/2/0")  # its ancestors are 1/1/0 and 1/0/0
    (output / f"0/c/{lead}1/0/1").unlink()  # 1/0/0 and 1/0/0
    flip(output / f"{label}/0/c/0/1/1")
    (output / f"{label}/1/c/0/1/1").write_bytes(b"")
    flip(output / f"1/c/{lead}0/0/0")
    summary = segment(SegmentConfig(**asked[kind], output=str(output), verify=True))
    assert (summary["status"], summary["blocks_written"], summary["pyramid_blocks_written"]) == ("complete", 2, 4)
    after = shards(output)
    assert digests(after) == digests(before)
    records = {("0", "1/2/0"), ("0", "1/0/1"), ("1", "1/1/0"), ("1", "1/0/0"), ("2", "1/0/0"), ("1", "0/0/0")}
    rewritten = {f"{level}/c/{lead}{place}" for level, place in records}
    rewritten |= {f"{label}/{level}/c/{place}" for level, place in records | {("0", "0/1/1"), ("1", "0/1/1")}}
    assert {key for key in before if before[key].written != after[key].written} == rewritten


def test_a_region_continues_to_the_whole_and_is_exported(
    kind: str,
    asked: dict[str, dict[str, Any]],
    made: dict[str, tuple[Path, Any]],
    tmp_path: Path,
    shards: Callable[..., dict[str, Any]],
) -> None:
    out, several = tmp_path / "out.zarr", kind == "classes"
    whole, whole_label = (array(made[kind][0], key) for key in ("0", f"{CLASSES if several else MASK}/0"))
    tiffs = {"tiff": f"{tmp_path}/label.tif", "probability_tiff": f"{tmp_path}/p.tif", "roi": ":,3:30,10:16"}
    told = segment(SegmentConfig(**asked[kind], output=str(out), roi=":,3:30,10:16", dry_run=True))
    assert not out.exists()
    first = segment(SegmentConfig(**asked[kind], **tiffs, output=str(out)))
    assert (first["blocks_written"], first["blocks"]) == (4, 4)
    written = shards(out)
    assert told["forecast_bytes"] == pytest.approx(sum((out / key).stat().st_size for key in written), rel=0.7)
    region = (..., slice(3, 30), slice(10, 16))
    label = tifffile.imread(tmp_path / "label.tif")
    assert np.array_equal(label, whole_label[region] * np.uint8(1 if several else 255))
    with tifffile.TiffFile(tmp_path / "p.tif") as tif:
        assert tif.series[0].axes == ("ZCYX" if several else "ZYX")
        probability = tif.asarray()
        assert ('Channel ID="Channel:0:2"' in tif.ome_metadata) == several
    if several:
        assert np.array_equal(probability, np.moveaxis(whole[region], 0, 1))
    else:
        assert probability.dtype == np.uint8
        assert np.abs(probability - 255 * whole[region].astype(np.float64)).max() < 0.5 + 1e-4
    second = segment(SegmentConfig(**asked[kind], output=str(out)))
    assert (second["blocks_written"], second["blocks_skipped"]) == (BLOCKS - 4, 4)
    after = shards(out)
    assert digests(after) == digests(shards(made[kind][0]))
    assert all(after[key] == shard for key, shard in written.items())


def test_what_is_for_membranes_is_refused(
    asked: dict[str, dict[str, Any]], made: dict[str, tuple[Path, Any]], tmp_path: Path
) -> None:
    given = asked["classes"] | {"output": f"{tmp_path}/out.zarr"}
    with pytest.raises(ConfigError, match=r"--threshold 0.7 is for a mask .* 3 classes .* leave --threshold out"):
        segment(SegmentConfig(**given, threshold=0.7))
    with pytest.raises(ConfigError, match=r"--tiff-format challenge .* 3 classes apart; leave it out"):
        segment(SegmentConfig(**given, tiff_format="challenge", probability_tiff=f"{tmp_path}/a.tif"))
    assert not list(tmp_path.iterdir())
    out = made["classes"][0]
    for prediction in (out, out / "0", out / CLASSES, out / CLASSES / "0"):
        with pytest.raises(
            ConfigError, match=r"tells 3 classes apart, but --label-kind interior scores membranes; give"
        ):
            evaluate(EvaluateConfig(prediction=str(prediction), labels=str(out / CLASSES)))


def test_views_are_averaged_for_classes_too(
    asked: dict[str, dict[str, Any]],
    made: dict[str, tuple[Path, Any]],
    tmp_path: Path,
    by_plain_loop: Callable[..., Job],
) -> None:
    given = asked["classes"]
    segment(SegmentConfig(**given, output=f"{tmp_path}/out.zarr", tta="dihedral"))
    by_plain_loop(given["volume"], given["model"], tmp_path / "plain", TILE, THRESHOLD, tta="dihedral")
    found = array(tmp_path / "out.zarr", "0")
    assert np.array_equal(found, array(tmp_path / "plain", "0"))
    assert not np.array_equal(found, array(made["classes"][0], "0"))


@pytest.mark.slow
def test_half_precision_is_another_output_and_scores_like_the_bytes(
    asked: dict[str, dict[str, Any]],
    made: dict[str, tuple[Path, Any]],
    tmp_path: Path,
    write_zarr: Callable[..., str],
) -> None:
    half, given = made["half"][0], asked["half"]
    byte = {**given, "probability_dtype": "uint8"}
    with pytest.raises(OutputMismatchError, match=r"probability_dtype float16 \(now uint8\); choose a new path"):
        segment(SegmentConfig(**byte, output=str(half)))
    segment(SegmentConfig(**byte, output=f"{tmp_path}/byte.zarr"))
    with pytest.raises(OutputMismatchError, match=r"probability_dtype uint8 \(now float16\)"):
        segment(SegmentConfig(**given, output=f"{tmp_path}/byte.zarr"))
    # As outputs of before there was a choice.
    root = zarr.open_group(f"{tmp_path}/byte.zarr", mode="r").attrs["unet_ray_segmentation"]
    assert root["made_with"].keys() == {
        "format_version", "shape", "volume", "model", "intensity", "tta", "tile_px", "precision",
    }  # fmt: skip
    exact, rounded = array(half, "0").astype(np.float64), array(tmp_path / "byte.zarr", "0")
    assert np.abs(255 * exact - rounded).max() < 0.5 + 255 * 2.0**-11
    assert len(np.unique(exact)) > len(np.unique(rounded))

    # A new threshold makes the masks again and leaves the probabilities.
    out = tmp_path / "half.zarr"
    shutil.copytree(half, out)
    edge = float(np.sort(exact.ravel())[exact.size // 2])
    segment(SegmentConfig(**given | {"threshold": edge}, output=str(out), probability_tiff=f"{tmp_path}/challenge.tif",
                          tiff_format="challenge"))  # fmt: skip
    assert np.array_equal(array(out, f"{MASK}/0"), exact > edge)
    assert np.array_equal(array(out, "0"), array(half, "0"))
    assert np.array_equal(tifffile.imread(tmp_path / "challenge.tif"), 1 - exact.astype(np.float32))

    labels = write_zarr(tmp_path / "labels.zarr", np.where(exact > edge, 255, 0).astype(np.uint8))
    scores = {
        name: evaluate(EvaluateConfig(prediction=str(path), labels=labels, label_kind="membrane"))
        for name, path in (("half", half), ("byte", tmp_path / "byte.zarr"))
    }
    assert scores["half"]["pixel_error"] == pytest.approx(scores["byte"]["pixel_error"], abs=0.05)
    assert scores["half"]["dice"] == pytest.approx(scores["byte"]["dice"], abs=0.05)


def test_a_mask_and_several_tiles_at_once_serve_every_kind(
    kind: str,
    asked: dict[str, dict[str, Any]],
    made: dict[str, tuple[Path, Any]],
    tmp_path: Path,
    write_zarr: Callable[..., str],
) -> None:
    inside = np.zeros(SHAPE, np.uint8)
    inside[0, 5:30, 3:37] = 1
    mask = write_zarr(tmp_path / "mask.zarr", inside)
    given = asked[kind] | {"mask": mask, "tiles_at_once": 3, "output": f"{tmp_path}/out.zarr"}
    summary = segment(SegmentConfig(**given))
    assert (summary["tiles_at_once"], summary["tiles_masked"] > 0) == (3, True)
    found, whole = array(tmp_path / "out.zarr", "0"), array(made[kind][0], "0")
    assert not found[..., inside == 0].any()
    # Several at once may round the last bit differently.
    apart = np.abs(found.astype(float) - whole.astype(float))[..., inside == 1]
    assert apart.max() <= (1 if kind == "classes" else 2**-10)
    assert found[..., inside == 1].any()
    label = array(tmp_path / "out.zarr", f"{CLASSES if kind == 'classes' else MASK}/0")
    assert np.array_equal(label, label_of(kind, found))


def test_classes_are_scored_by_class(
    asked: dict[str, dict[str, Any]],
    made: dict[str, tuple[Path, Any]],
    tmp_path: Path,
    write_zarr: Callable[..., str],
) -> None:
    out = made["classes"][0]
    predicted = array(out, f"{CLASSES}/0")
    truth = np.where(np.random.default_rng(0).random(SHAPE) < 0.3, 2, predicted).astype(np.uint8)
    truth[:, :5] = 9  # nobody labelled that
    labels = write_zarr(tmp_path / "labels.zarr", truth)
    report = tmp_path / "report"
    given = {"labels": labels, "label_kind": "classes", "ignore_label": 9}
    found = evaluate(EvaluateConfig(prediction=str(out), report=str(report), **given))
    known, same = truth < 9, truth == predicted
    assert found["pixel_mismatch"] == pytest.approx(1 - same[known].mean())
    assert 0.05 < found["pixel_mismatch"] < 0.35
    for c in range(3):
        both, a, b = (known & (truth == c) & same).sum(), (truth == c).sum(), (known & (predicted == c)).sum()
        assert b > 0, "the class comes out"
        assert found[f"dice_{c}"] == pytest.approx(2 * both / (a + b))
        assert found[f"iou_{c}"] == pytest.approx(both / (a + b - both))
    assert found["mean_dice"] == pytest.approx(np.mean([found[f"dice_{c}"] for c in range(3)]))
    assert "dice_3" not in found
    assert found["kind"] == "classes"
    assert sorted(path.name for path in report.iterdir()) == ["metrics.csv", "metrics.json", "report.html"]
    page = (report / "report.html").read_text()
    assert re.findall(r'<figure id="section-(\d+)"', page) == [str(z) for z in range(SHAPE[0])]
    assert re.findall(r"</span> class (\d)<", page) == ["0", "1", "2"]
    # Whichever part is named; and a mask's classes are 0 and 1.
    for part in (out / "0", out / CLASSES, out / CLASSES / "0"):
        assert evaluate(EvaluateConfig(prediction=str(part), **given))["mean_dice"] == found["mean_dice"]
    half = evaluate(EvaluateConfig(prediction=str(made["half"][0]), **given))
    mask = array(made["half"][0], f"{MASK}/0")
    assert half["pixel_mismatch"] == pytest.approx(1 - (mask == truth)[known].mean())
    probabilities = write_zarr(tmp_path / "p.zarr", np.zeros(SHAPE, np.float32))
    with pytest.raises(VolumeError, match="whole numbers from 0 to 31, but this one has float32"):
        evaluate(EvaluateConfig(prediction=probabilities, **given))
    with pytest.raises(ValueError, match="no thresholds and no polarity"):
        EvaluateConfig(prediction="p", threshold_sections=("1",), **given)
