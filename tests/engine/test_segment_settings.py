"""Settings of a segmentation: what rewrites what, what is refused, and grey levels of other volumes."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile

from unet_ray.config.segment import SegmentConfig
from unet_ray.engine import blocks
from unet_ray.engine import segment as engine
from unet_ray.engine.segment import segment
from unet_ray.engine.segment_worker import Job
from unet_ray.errors import (
    ConfigError,
    ModelFileError,
    OutputMismatchError,
    TargetError,
    TileGridError,
    VolumeError,
)
from unet_ray.network.model_file import Normalisation
from unet_ray.numerics.intensity import IntensityMap
from unet_ray.storage.local_objects import LocalObjects
from unet_ray.storage.segmentation import Segmentation
from unet_ray.storage.segmentation_layout import MASK
from unet_ray.storage.volume import open_volume

pytestmark = pytest.mark.usefixtures("ray_cluster")

SHAPE, TILE, THRESHOLD = (2, 40, 50), 16, 0.53
BLOCKS = 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("segment")


@pytest.fixture(scope="module")
def asked(
    folder: Path,
    write_model: Callable[..., str],
    write_zarr: Callable[..., str],
    phantom_image: Callable[..., npt.NDArray[np.uint8]],
) -> dict[str, Any]:
    """Settings of a segmentation, without its output."""
    return {
        "volume": write_zarr(folder / "volume.zarr", phantom_image(SHAPE, 2)),
        "model": write_model(folder / "model", "default", base_channels=4),
        "tile_px": TILE,
        "threshold": THRESHOLD,
        "precision": "float32",
        "threads": 1,
        "workers": 1,
    }


@pytest.fixture(scope="module")
def made(folder: Path, asked: dict[str, Any]) -> Path:
    assert segment(SegmentConfig(**asked, output=f"{folder}/made"))["blocks_written"] == BLOCKS
    return folder / "made"


@pytest.fixture
def output(made: Path, tmp_path: Path) -> Path:
    """A copy of a finished segmentation, times included."""
    shutil.copytree(made, tmp_path / "out.zarr", copy_function=shutil.copy2)
    return tmp_path / "out.zarr"


def test_new_threshold_rewrites_the_mask_alone(
    asked: dict[str, Any],
    output: Path,
    tmp_path: Path,
    shards: Callable[..., dict[str, Any]],
    read_all: Callable[..., npt.NDArray[Any]],
) -> None:
    before, probability = shards(output), read_all(output)
    summary = segment(SegmentConfig(**asked | {"threshold": 0.56}, output=str(output), tiff=f"{tmp_path}/mask.tif"))
    after = shards(output)
    assert (summary["status"], summary["blocks_written"], summary["blocks_skipped"]) == ("complete", 0, BLOCKS)
    assert set(after) == set(before)
    changed = {key for key in before if before[key].digest != after[key].digest}
    assert len(changed) > 3
    assert {key for key in before if before[key] != after[key]} == {key for key in before if key.startswith(MASK)}
    # As if it had been made with this threshold at once.
    assert np.array_equal(read_all(output), probability)
    assert np.array_equal(read_all(f"{output}/{MASK}"), probability > 0.56 * 255)
    assert np.array_equal(tifffile.imread(tmp_path / "mask.tif"), (probability > 0.56 * 255) * np.uint8(255))


def test_a_finished_output_may_be_read_only(
    made: Path,
    output: Path,
    asked: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    shards: Callable[..., dict[str, Any]],
) -> None:
    def refuse(self: LocalObjects, *_: object) -> None:
        raise TargetError(f"{self.root} cannot be written (Read-only file system)")

    for name in ("_put", "delete", "rename"):
        monkeypatch.setattr(LocalObjects, name, refuse)
    before = shards(made)
    again = segment(SegmentConfig(**asked, output=str(made), tiff=str(tmp_path / "mask.tif")))
    assert "nothing to do" in again["note"]
    assert tifffile.imread(tmp_path / "mask.tif").shape == SHAPE
    for other in ({"threshold": 0.4}, {"overwrite": True}, {"output": str(tmp_path / "o.zarr")}):
        with pytest.raises(TargetError, match="Read-only file system"):
            segment(SegmentConfig(**{**asked, "output": str(made), **other}))
    assert shards(made) == before
    next(path for path in (output / "0" / "c").rglob("*") if path.is_file()).unlink()
    monkeypatch.setattr(engine, "cluster", lambda: pytest.fail("a cluster was started"))
    with pytest.raises(TargetError, match="Read-only file system"):
        segment(SegmentConfig(**asked, output=str(output)))


def test_refusals_leave_the_output_alone(
    asked: dict[str, Any],
    output: Path,
    tmp_path: Path,
    write_model: Callable[..., str],
    shards: Callable[..., dict[str, Any]],
) -> None:
    before = shards(output)

    def refused(kind: type[Exception], words: str, **changed: Any) -> None:
        with pytest.raises(kind, match=words):
            segment(SegmentConfig(**asked | {"output": str(output)} | changed))
        assert shards(output) == before

    # The same name, other weights.
    model = tmp_path / "model"
    shutil.copy(asked["model"], model)
    assert segment(SegmentConfig(**asked | {"output": str(output), "model": str(model)}))["blocks_skipped"] == BLOCKS
    write_model(model, "default", base_channels=4, seed=1)
    refused(OutputMismatchError, "was made with model", model=str(model))
    refused(OutputMismatchError, "tile_px 16", tile_px=32)
    refused(OutputMismatchError, "tta none", tta="flips")
    refused(TileGridError, "nearest sides are 28 and 32", tile_px=30, overwrite=True)
    refused(ConfigError, "asks for section 2", sections=("1:3",))
    refused(ModelFileError, "no model file", model=f"{tmp_path}/none")
    refused(VolumeError, "cannot find", volume=f"{tmp_path}/none.tif", overwrite=True)
    # Another's folder is not ours to remove.
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"jpg")
    refused(OutputMismatchError, "is not a segmentation", output=f"{tmp_path}/photos", overwrite=True)
    assert [file.name for file in (tmp_path / "photos").iterdir()] == ["a.jpg"]
    assert not list(output.rglob(".*"))


def test_what_an_output_was_begun_with_is_kept_and_told(
    asked: dict[str, Any], output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Otherwise another machine's CPUs would change bytes, or a flag would have no effect and nobody knew why."""
    lost = output / "0/c/1/2/1"
    lost.unlink()
    given = asked | {"output": str(output), "threads": 2, "tiles_at_once": 3}
    summary = segment(SegmentConfig(**given))
    assert (summary["blocks_written"], summary["tiles_at_once"]) == (1, 1)
    said = capsys.readouterr().err
    for flag, kept in (("--threads 2", "--threads 1"), ("--tiles-at-once 3", "--tiles-at-once 1")):
        assert f"{flag} is not used, for output {output} was begun with {kept}" in said
    lost.unlink()
    segment(SegmentConfig(**asked, output=str(output)))
    assert "is not used" not in capsys.readouterr().err

    # Begun on a machine with more CPUs than this one has.
    lost.unlink()
    stored = Segmentation(str(output))
    stored.set_attributes((stored.attributes() or {}) | {"threads": 64})
    with pytest.raises(ConfigError, match=r"was begun with 64 CPU per worker, .*: use such a node, or .* --overwrite$"):
        segment(SegmentConfig(**given))
    assert "--threads 2 is not used" in capsys.readouterr().err
    assert not lost.exists()


def test_slow_blocks_are_given_the_time_that_the_probe_tells(
    asked: dict[str, Any], output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = Segmentation(str(output))
    stored.set_attributes((stored.attributes() or {}) | {"block_seconds": 880.0})
    (output / "0/c/1/2/1").unlink()
    patiences, stream = list[float](), blocks._stream

    def watched(*arguments: Any) -> Iterator[dict[str, Any]]:
        patiences.append(arguments[-1])
        yield from stream(*arguments)

    monkeypatch.setattr(blocks, "_stream", watched)
    assert segment(SegmentConfig(**asked, output=str(output)))["blocks_written"] == 1
    assert patiences == [20 * 880]


def test_sixteen_bits_by_the_models_or_the_volumes_grey_levels(
    asked: dict[str, Any],
    made: Path,
    tmp_path: Path,
    write_model: Callable[..., str],
    write_zarr: Callable[..., str],
    phantom_image: Callable[..., npt.NDArray[np.uint8]],
    by_plain_loop: Callable[..., Job],
    read_all: Callable[..., npt.NDArray[Any]],
) -> None:
    values = phantom_image(SHAPE, 2).astype(np.uint16) * 100 + 1000
    wide, out = write_zarr(tmp_path / "wide.zarr", values), tmp_path / "out.zarr"
    with pytest.raises(VolumeError, match=r"uint16 voxels but model .* uint8; pass --normalise volume"):
        segment(SegmentConfig(**asked | {"volume": wide}, output=str(out)))
    assert not out.exists()

    # 100 g + 1000 is mapped back to g by a model that was trained on such values.
    models = Normalisation(low=1000, high=26500, dtype="uint16")
    trained = write_model(tmp_path / "trained", "default", base_channels=4, normalisation=models)
    assert segment(SegmentConfig(**asked | {"volume": wide, "model": trained}, output=str(out)))["status"] == "complete"
    assert np.array_equal(read_all(out), read_all(made))

    stretched = IntensityMap.of_sample(values)
    assert stretched.high < 26500
    by_plain_loop(wide, asked["model"], tmp_path / "expected", TILE, THRESHOLD, stretched)
    given = asked | {"volume": wide, "normalise": "volume", "output": f"{tmp_path}/stretched.zarr"}
    assert segment(SegmentConfig(**given))["status"] == "complete"
    assert np.array_equal(read_all(given["output"]), read_all(tmp_path / "expected"))
    assert not np.array_equal(read_all(given["output"]), read_all(made))


def test_views_are_averaged_in_the_job_as_in_the_plain_loop(
    asked: dict[str, Any],
    made: Path,
    tmp_path: Path,
    by_plain_loop: Callable[..., Job],
    read_all: Callable[..., npt.NDArray[Any]],
) -> None:
    summary = segment(SegmentConfig(**asked, output=f"{tmp_path}/out.zarr", tta="dihedral"))
    assert (summary["status"], summary["blocks_written"]) == ("complete", BLOCKS)
    assert summary["seam_max_abs_diff"] <= 1e-6
    by_plain_loop(asked["volume"], asked["model"], tmp_path / "expected", TILE, THRESHOLD, tta="dihedral")
    assert np.array_equal(read_all(f"{tmp_path}/out.zarr"), read_all(tmp_path / "expected"))
    assert not np.array_equal(read_all(f"{tmp_path}/out.zarr"), read_all(made))


def test_voxel_size_must_fit_unless_accepted(
    asked: dict[str, Any],
    tmp_path: Path,
    write_model: Callable[..., str],
    shards: Callable[..., dict[str, Any]],
) -> None:
    image = tmp_path / "v.ome.tif"
    tifffile.imwrite(
        image,
        np.arange(1200, dtype=np.uint8).reshape(1, 30, 40),
        metadata={"axes": "ZYX", **{f"PhysicalSize{a}": s for a, s in zip("ZYX", (50, 8, 8), strict=True)},
                  **{f"PhysicalSize{a}Unit": "nm" for a in "ZYX"}},
    )  # fmt: skip
    assert open_volume(str(image)).voxel_size_nm == (50, 8, 8)
    model = write_model(tmp_path / "m", "default", voxel_size_nm=(50, 4, 4))
    given = asked | {"volume": str(image), "model": model, "output": f"{tmp_path}/o.zarr"}
    with pytest.raises(VolumeError, match="more than 20 % off; rescale the volume or pass --accept-voxel-size"):
        segment(SegmentConfig(**given))
    assert segment(SegmentConfig(**given, accept_voxel_size=True))["status"] == "complete"
    assert open_volume(given["output"]).voxel_size_nm == (50, 8, 8)
    again = segment(SegmentConfig(**given, accept_voxel_size=True))
    assert (again["blocks_written"], again["blocks_skipped"]) == (0, again["blocks"])
    # Another run's flag is no reason to forget the size, and a new one none to compute anything.
    sized = given | {"output": f"{tmp_path}/sized.zarr", "tiff": f"{tmp_path}/mask.tif"}
    segment(SegmentConfig(**sized, voxel_size_nm=(50, 4, 4.5), sections=("0",)))
    assert open_volume(sized["output"]).voxel_size_nm == (50, 4, 4.5)
    before = shards(sized["output"])
    next(Path(sized["output"]).glob("0/c/0/0/0")).unlink()
    segment(SegmentConfig(**sized, accept_voxel_size=True))
    assert open_volume(sized["output"]).voxel_size_nm == (50, 4, 4.5)
    written = shards(sized["output"])
    again = segment(SegmentConfig(**sized, voxel_size_nm=(45, 4, 4)))
    assert (again["blocks_written"], again["status"]) == (0, "complete")
    for image in (sized["output"], f"{sized['output']}/{MASK}", sized["tiff"]):
        assert open_volume(image).voxel_size_nm == (45, 4, 4)
    assert shards(sized["output"]) == written
    assert {key: s.digest for key, s in written.items()} == {key: s.digest for key, s in before.items()}
    # Within 20 %: what is refused is the next thing that is wrong.
    near = write_model(tmp_path / "near", "default", voxel_size_nm=(50, 7, 9))
    with pytest.raises(TileGridError, match="nearest sides are 12 and 16"):
        segment(SegmentConfig(**given | {"model": near, "output": f"{tmp_path}/n.zarr", "tile_px": 13}))
