"""Segmentation on real Ray: the same bytes as a plain loop, whatever happens on the way."""

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile

from unet_ray.config.segment import SegmentConfig
from unet_ray.engine.segment import segment
from unet_ray.engine.segment_worker import Job
from unet_ray.errors import ConfigError, OutputMismatchError, VolumeError
from unet_ray.storage.segmentation import Segmentation
from unet_ray.storage.segmentation_layout import MASK

pytestmark = pytest.mark.usefixtures("ray_cluster")

SHAPE, TILE, THRESHOLD = (3, 130, 150), 32, 0.53
BLOCKS, PER_LAYER = 75, 25
MASK_SHARDS = f"{MASK}/0"


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
    """Settings of a segmentation, without its output; actors of one thread fit into any machine."""
    return {
        "volume": write_zarr(folder / "volume.zarr", phantom_image(SHAPE, 2), chunks=(1, 65, 75)),
        "model": write_model(folder / "model", "default", base_channels=4),
        "tile_px": TILE,
        "threshold": THRESHOLD,
        "precision": "float32",
        "threads": 1,
        "workers": 1,
    }


@pytest.fixture(scope="module")
def plain(
    folder: Path, asked: dict[str, Any], by_plain_loop: Callable[..., Job], shards: Callable[..., dict[str, Any]]
) -> dict[str, str]:
    """Digests of the shards that the plain loop over blocks makes."""
    by_plain_loop(asked["volume"], asked["model"], folder / "plain", TILE, THRESHOLD)
    return digests(shards(folder / "plain"))


@pytest.fixture(scope="module")
def made(folder: Path, asked: dict[str, Any], module_rows: Callable[..., Any]) -> tuple[Path, dict[str, Any], set[int]]:
    """A segmentation by two workers, its summary and the workers' pids; other tests work on copies of it."""
    for name in ("made", "again", "once-more"):  # on a busy machine one may be done before the other has started
        with module_rows() as rows:
            summary = segment(SegmentConfig(**asked | {"workers": 2}, output=f"{folder}/{name}"))
        if len({row["pid"] for row in rows}) > 1:
            break
    return folder / name, summary, {row["pid"] for row in rows}


@pytest.fixture
def output(made: tuple[Path, Any, Any], tmp_path: Path) -> Path:
    """A copy of the finished segmentation, times included."""
    shutil.copytree(made[0], tmp_path / "out.zarr", copy_function=shutil.copy2)
    return tmp_path / "out.zarr"


def digests(found: dict[str, Any]) -> dict[str, str]:
    return {key: shard.digest for key, shard in found.items()}


def records(found: dict[str, Any]) -> dict[str, Any]:
    return {key: shard for key, shard in found.items() if key.startswith("0/c/")}


def test_two_workers_give_the_bytes_of_the_plain_loop(
    made: tuple[Path, dict[str, Any], set[int]],
    asked: dict[str, Any],
    plain: dict[str, str],
    shards: Callable[..., dict[str, Any]],
) -> None:
    out, summary, pids = made
    # Not trivial: two processes other than this one, tiles that overhang, shards that differ.
    assert len(pids) == 2
    assert os.getpid() not in pids
    assert SHAPE[1] % TILE
    assert len(plain) == 2 * BLOCKS
    assert len({digest for key, digest in plain.items() if key.startswith("0/c/")}) == BLOCKS
    assert digests(shards(out)) == plain
    wanted = {"status": "complete", "blocks": BLOCKS, "blocks_written": BLOCKS, "blocks_skipped": 0}
    wanted |= {"blocks_failed": 0, "voxels": np.prod(SHAPE), "output": str(out), "mask_change_share": 0}
    assert {key: summary[key] for key in wanted} == wanted
    assert summary["seam_max_abs_diff"] <= 1e-5
    assert summary["voxels_per_second"] > 0
    assert summary["peak_worker_rss_bytes"] > 2**20
    # What the probe took is what workers ask for.
    probed = Segmentation(str(out)).attributes()["worker_rss_bytes"]
    assert 0.5 < probed / summary["peak_worker_rss_bytes"] < 2
    assert 0 < summary["startup_seconds"] < summary["seconds"]

    before = shards(out)
    again = segment(SegmentConfig(**asked, output=str(out)))
    assert (again["blocks_written"], again["blocks_skipped"], again["status"]) == (0, BLOCKS, "complete")
    assert "nothing to do" in again["note"]
    assert "note" not in summary
    assert shards(out) == before


def test_killed_actor_costs_nothing(
    asked: dict[str, Any],
    plain: dict[str, str],
    tmp_path: Path,
    rows: list[dict[str, Any]],
    shards: Callable[..., dict[str, Any]],
    ray_actors: Callable[[], list[int]],
) -> None:
    out, killed = tmp_path / "out.zarr", list[tuple[int, int]]()

    def kill_one_in_the_middle() -> None:
        until = time.time() + 60
        while time.time() < until:
            there, actors = len(list((out / "0" / "c").glob("*/*/[0-9]"))), ray_actors()
            if there >= 10 and actors:
                pid = actors[0]
                os.kill(pid, signal.SIGKILL)
                killed.append((pid, there))
                return
            time.sleep(0.01)

    killer = threading.Thread(target=kill_one_in_the_middle)
    killer.start()
    summary = segment(SegmentConfig(**asked | {"workers": 2}, output=str(out)))
    killer.join()
    assert killed
    assert killed[0][1] < BLOCKS - 5
    # The killed actor had worked before, or died with blocks in flight; either way others took over.
    assert len({row["pid"] for row in rows} | {killed[0][0]}) >= 2
    assert summary["status"] == "complete"
    assert digests(shards(out)) == plain


def test_verify_repairs_exactly_what_is_damaged(
    asked: dict[str, Any],
    output: Path,
    plain: dict[str, str],
    shards: Callable[..., dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    def shard(z: int, y: int, x: int, array: str = "0") -> Path:
        return output / array / "c" / str(z) / str(y) / str(x)

    def flip(path: Path, place: float) -> None:
        data = bytearray(path.read_bytes())
        data[int(len(data) * place)] ^= 16
        path.write_bytes(data)

    damaged = [(0, 0, 0), (0, 1, 2), (1, 4, 4), (1, 2, 3), (2, 0, 0)]
    mask_damaged = [(2, 2, 2), (2, 3, 1), (0, 3, 3), (0, 4, 0)]
    before = shards(output)
    shard(*damaged[0]).unlink()
    shard(*damaged[1]).write_bytes(b"")
    data = shard(*damaged[2]).read_bytes()
    shard(*damaged[2]).write_bytes(data[: len(data) // 2])
    flip(shard(*damaged[3]), 0.3)  # data
    flip(shard(*damaged[4]), 0.999)  # index
    shard(*mask_damaged[0], MASK_SHARDS).unlink()
    shard(*mask_damaged[1], MASK_SHARDS).write_bytes(b"")
    data = shard(*mask_damaged[2], MASK_SHARDS).read_bytes()
    shard(*mask_damaged[2], MASK_SHARDS).write_bytes(data[:-3])
    flip(shard(*mask_damaged[3], MASK_SHARDS), 0.4)
    assert digests(shards(output)) != plain

    summary = segment(SegmentConfig(**asked, output=str(output), verify=True))
    after = shards(output)
    assert digests(after) == plain
    assert (summary["blocks_written"], summary["blocks_skipped"]) == (len(damaged), BLOCKS - len(damaged))
    untouched = {key for key in before if after[key].written == before[key].written}
    redone = {f"0/c/{z}/{y}/{x}" for z, y, x in damaged}
    redone |= {f"{MASK_SHARDS}/c/{z}/{y}/{x}" for z, y, x in damaged + mask_damaged}
    assert set(before) - untouched == redone
    assert len(list(output.rglob("*.damaged"))) == 5  # what was there and failed is kept aside
    assert capsys.readouterr().err.count("is damaged and will be made again") == 5


@pytest.fixture
def broken_chunk(asked: dict[str, Any], tmp_path: Path) -> tuple[dict[str, Any], Path, bytes]:
    """A copy of the volume, of which one chunk at a corner does not decode any more, as bit rot leaves it."""
    volume = tmp_path / "volume.zarr"
    shutil.copytree(asked["volume"], volume, copy_function=shutil.copy2)
    chunk = volume / "c" / "0" / "0" / "0"
    whole, times = chunk.read_bytes(), chunk.stat()
    chunk.write_bytes(bytes(len(whole)))
    os.utime(chunk, ns=(times.st_atime_ns, times.st_mtime_ns))
    return asked | {"volume": str(volume)}, chunk, whole


def test_unreadable_input_fails_its_blocks_alone(
    broken_chunk: tuple[dict[str, Any], Path, bytes],
    plain: dict[str, str],
    tmp_path: Path,
    shards: Callable[..., dict[str, Any]],
    rows: list[dict[str, Any]],
) -> None:
    given, chunk, whole = broken_chunk
    out = tmp_path / "out.zarr"
    summary = segment(SegmentConfig(**given, output=str(out)))
    # The chunk is 65 x 75; with the halo of 22 the blocks of 32 that read from it are 3 x 4 of 5 x 5.
    failed = {5 * y + x for y in range(3) for x in range(4)}
    assert summary["status"] == "incomplete"
    assert {int(block) for block in summary["failures"]} == failed
    assert summary["blocks_failed"] == len(failed)
    assert summary["blocks_written"] == BLOCKS - len(failed)
    reason = summary["failures"]["0"]
    assert "cannot be read" in reason
    assert given["volume"] in reason
    first = shards(out)
    assert len(records(first)) == BLOCKS - len(failed)
    assert all(plain[key] == shard.digest for key, shard in first.items())

    chunk.write_bytes(whole)
    with pytest.raises(OutputMismatchError, match=r"volume\.\S+ .* --accept-changed-volume"):
        segment(SegmentConfig(**given, output=str(out)))
    rows.clear()
    again = segment(SegmentConfig(**given, output=str(out), accept_changed_volume=True))
    assert {row["block"] for row in rows} == failed
    assert (again["status"], again["blocks_written"], again["blocks_skipped"]) == (
        "complete", len(failed), BLOCKS - len(failed),
    )  # fmt: skip
    after = shards(out)
    assert digests(after) == plain
    assert all(after[key] == shard for key, shard in first.items())


def test_a_choice_of_sections_leaves_the_others_and_a_larger_one_continues(
    asked: dict[str, Any],
    output: Path,
    plain: dict[str, str],
    tmp_path: Path,
    shards: Callable[..., dict[str, Any]],
    read_all: Callable[..., npt.NDArray[Any]],
) -> None:
    for array in ("0", MASK_SHARDS):  # as if only section 1 had been chosen so far
        for z in "02":
            shutil.rmtree(output / array / "c" / z)
    before = shards(output)
    assert len(before) == 2 * PER_LAYER
    tiffs = {"tiff": f"{tmp_path}/mask.tif", "probability_tiff": f"{tmp_path}/probability.tif"}
    summary = segment(SegmentConfig(**asked, **tiffs, output=str(output), sections=("1:3",)))
    assert (summary["blocks"], summary["blocks_written"], summary["blocks_skipped"]) == (
        2 * PER_LAYER, PER_LAYER, PER_LAYER,
    )  # fmt: skip
    after = shards(output)
    assert all(after[key] == shard for key, shard in before.items())
    assert digests(after) == {key: digest for key, digest in plain.items() if key.split("/")[-3] != "0"}
    probability = tifffile.imread(tmp_path / "probability.tif")
    assert np.array_equal(probability, read_all(output)[1:3])
    mask = tifffile.imread(tmp_path / "mask.tif")
    assert np.array_equal(mask, (probability > THRESHOLD * 255) * np.uint8(255))
    assert 0 < mask.mean() < 255


@pytest.mark.parametrize("array", [MASK_SHARDS, "0"])
def test_a_damaged_shard_is_found_by_the_tiff_and_none_is_written(
    array: str, asked: dict[str, Any], output: Path, tmp_path: Path
) -> None:
    tiff = tmp_path / "out.tif"
    tiff.write_bytes(b"before")
    shard = output / array / "c" / "1" / "1" / "0"
    shard.write_bytes(shard.read_bytes()[:-1])
    wanted = {("tiff" if array == MASK_SHARDS else "probability_tiff"): str(tiff)}
    with pytest.raises(VolumeError, match=f"{array}/c/1/1/0 is damaged .*; run the same command with --verify to rep"):
        segment(SegmentConfig(**asked, **wanted, output=str(output)))
    assert [path.name for path in tmp_path.iterdir() if "tif" in path.name] == ["out.tif"]
    assert tiff.read_bytes() == b"before"
    summary = segment(SegmentConfig(**asked, **wanted, output=str(output), verify=True))
    assert summary["status"] == "complete"
    assert len(tifffile.imread(tiff)) == SHAPE[0]


def test_a_region_writes_the_blocks_it_touches_and_its_own_pixels_as_tiff(
    asked: dict[str, Any],
    output: Path,
    plain: dict[str, str],
    tmp_path: Path,
    shards: Callable[..., dict[str, Any]],
    read_all: Callable[..., npt.NDArray[Any]],
) -> None:
    whole = read_all(output)
    out, tiff = tmp_path / "region.zarr", tmp_path / "region.tif"
    roi = {"roi": "1:3,10:40,33:64", "probability_tiff": str(tiff)}
    summary = segment(SegmentConfig(**asked, **roi, output=str(out)))
    # Shards of one tile each: rows 0 and 1, column 1 of each of two sections.
    keys = {f"0/c/{z}/{y}/1" for z in (1, 2) for y in range(SHAPE[1] // TILE) if (y + 1) * TILE > 10 and y * TILE < 40}
    made = records(shards(out))
    assert set(made) == keys
    assert all(plain[key] == shard.digest for key, shard in made.items())
    assert summary["blocks_written"] == len(keys)
    assert np.array_equal(tifffile.imread(tiff), whole[1:3, 10:40, 33:64])
    with pytest.raises(ConfigError, match="--sections names no section of --roi 1:3"):
        segment(SegmentConfig(**asked, **roi, output=str(out), sections=("0",)))
