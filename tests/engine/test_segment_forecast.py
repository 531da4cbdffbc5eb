"""A dry run tells what a segmentation takes, and leaves no trace."""

import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from unet_ray.config.segment import SegmentConfig
from unet_ray.engine import pyramid, segment_forecast, segment_remainder, segment_start, segment_worker
from unet_ray.engine.block_work import TRIES
from unet_ray.engine.segment import segment
from unet_ray.engine.segment_forecast import Measured, measure, spread
from unet_ray.engine.segment_remainder import Remainder, remainder
from unet_ray.engine.segment_request import open_request
from unet_ray.engine.segment_worker import Job
from unet_ray.errors import VolumeError
from unet_ray.geometry.block_set import BlockSet

SHAPE, TILE, BLOCKS = (2, 130, 150), 32, 50


@pytest.fixture(scope="module")
def asked(
    tmp_path_factory: pytest.TempPathFactory,
    write_model: Callable[..., str],
    write_zarr: Callable[..., str],
    phantom_image: Callable[..., npt.NDArray[np.uint8]],
) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("forecast")
    return {
        "volume": write_zarr(folder / "volume.zarr", phantom_image(SHAPE, 2)),
        "model": write_model(folder / "model", "default", base_channels=4),
        "tile_px": TILE, "precision": "float32", "threads": 1, "workers": 1,
    }  # fmt: skip


@pytest.mark.usefixtures("ray_cluster")
def test_bytes_are_those_that_are_then_written_and_nothing_is_before(
    asked: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.zarr"
    told = segment(SegmentConfig(**asked, output=str(out), dry_run=True, price_per_node_hour=36000.0))
    assert not out.exists()
    assert (told["dry_run"], told["blocks"], told["blocks_skipped"]) == (True, BLOCKS, 0)
    assert told["forecast_cost"] == pytest.approx(10 * told["forecast_seconds"], abs=1)  # one node
    assert "segment: forecast: " in capsys.readouterr().err
    parts = told["forecast_startup_seconds"] + told["forecast_block_seconds"]
    assert 0 < told["forecast_startup_seconds"] < told["seconds"]
    assert told["forecast_seconds"] == pytest.approx(parts, abs=0.2)  # a section is one chunk: no further levels
    made = segment(SegmentConfig(**asked, output=str(out)))
    written = sum(path.stat().st_size for path in out.rglob("c/**/*") if path.is_file())
    assert told["forecast_bytes"] == pytest.approx(written, rel=0.2)
    # Not a timed test: so small a volume takes little beside the start of a worker, and its forecast nothing of that.
    assert told["forecast_block_seconds"] < 10 * (made["seconds"] - made["startup_seconds"])
    before = sorted(path.stat().st_mtime_ns for path in out.rglob("*"))
    again = segment(SegmentConfig(**asked, output=str(out), dry_run=True, verify=True))
    assert "nothing is left" in again["note"]
    assert sorted(path.stat().st_mtime_ns for path in out.rglob("*")) == before


@pytest.mark.usefixtures("ray_cluster")
def test_a_volume_that_cannot_be_read_is_one_sentence(asked: dict[str, Any], tmp_path: Path) -> None:
    volume = tmp_path / "volume.zarr"
    shutil.copytree(asked["volume"], volume)
    for chunk in volume.glob("c/0/**/*"):  # the probe reads section 1
        if chunk.is_file():
            chunk.write_bytes(bytes(chunk.stat().st_size))
    with pytest.raises(VolumeError, match="cannot be read") as caught:
        segment(SegmentConfig(**asked | {"volume": str(volume)}, output=f"{tmp_path}/out.zarr", dry_run=True))
    assert type(caught.value) is VolumeError, "Ray's own, which wraps it, holds the worker's traceback"
    assert not (tmp_path / "out.zarr").exists()


@pytest.mark.usefixtures("ray_cluster")
def test_blocks_are_measured_in_processes_that_did_not_probe(
    asked: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The probe computes in one piece and in float32, and what it took stays with its process."""
    pids: list[int] = []

    def probe_and_tell(job: Job, asked: str) -> tuple[Any, int]:
        return segment_worker.probe_on_worker(job, asked), os.getpid()

    def spy(job: Job, function: Any, *arguments: Any, **options: Any) -> Any:
        if function is not segment_worker.probe_on_worker:
            return segment_worker.on_worker(job, function, *arguments, **options)
        found, pid = segment_worker.on_worker(job, probe_and_tell, *arguments, **options)
        pids.append(pid)
        return found

    monkeypatch.setattr(segment_start, "on_worker", spy)
    segment(SegmentConfig(**asked, output=str(tmp_path / "out.zarr"), dry_run=True))
    (pid,) = pids
    limit = time.monotonic() + 20
    while Path(f"/proc/{pid}").exists() and time.monotonic() < limit:
        time.sleep(0.1)
    assert not Path(f"/proc/{pid}").exists()


@pytest.mark.usefixtures("ray_cluster")
def test_workers_are_measured_side_by_side(
    asked: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[list[Any], list[Measured]]] = []
    at_once = segment_forecast.on_workers

    def measure_and_tell(job: Job, precision: Any, blocks: list[int], tiff: Any) -> tuple[Measured, bool]:
        return measure(job, precision, blocks, tiff), "ray.data" in sys.modules

    def spy(job: Job, function: Any, calls: list[Any], node: str | None) -> list[Measured]:
        assert node is not None
        assert function is measure
        told = at_once(job, measure_and_tell, calls, node)
        assert all(loaded for _, loaded in told), "it is part of the memory that an actor takes"
        seen.append((calls, [one for one, _ in told]))
        return seen[-1][1]

    monkeypatch.setattr(segment_forecast, "on_workers", spy)
    told = segment(SegmentConfig(**asked | {"workers": 3}, output=str(tmp_path / "out.zarr"), dry_run=True))
    ((calls, found),) = seen
    measured = [block for _, _, blocks, _ in calls for block in blocks]
    assert [len(blocks) for _, _, blocks, _ in calls] == [segment_forecast.MOST_BLOCKS] * 3
    assert sorted(set(measured)) == spread(range(BLOCKS), 3 * segment_forecast.MOST_BLOCKS)
    per_tile = sum(one.seconds for one in found) / sum(one.tiles for one in found)
    slowest_start = max(one.startup_seconds for one in found)
    assert told["forecast_block_seconds"] == pytest.approx(slowest_start + BLOCKS * per_tile / 3, abs=0.1)
    assert BLOCKS > 3 * segment_forecast.MOST_BLOCKS
    grown = segment_forecast.MEMORY_GROWTH * max(one.worker_rss_bytes for one in found)
    assert told["forecast_worker_rss_bytes"] == round(grown)
    few = asked | {"workers": 3, "roi": "0:1,0:64,0:64"}
    told = segment(SegmentConfig(**few, output=str(tmp_path / "out.zarr"), dry_run=True))
    assert told["forecast_worker_rss_bytes"] == max(one.worker_rss_bytes for one in seen[1][1])


def test_blocks_that_take_long_are_few(
    asked: dict[str, Any], tmp_path: Path, by_plain_loop: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = by_plain_loop(asked["volume"], asked["model"], tmp_path / "out.zarr", TILE, 0.5)
    several = measure(job, "float32", spread(range(BLOCKS)))
    assert several.tiles == segment_forecast.MOST_BLOCKS - 2  # two warmed up
    assert several.bytes > several.voxels / 100
    monkeypatch.setattr(segment_forecast, "SECONDS", 0.0)
    alone = measure(job, "float32", spread(range(BLOCKS)))
    assert (alone.tiles, alone.startup_seconds) == (1, 0.0)
    assert alone.voxels < several.voxels


def test_a_block_that_fails_to_the_end_ends_the_forecast_by_its_own_error(
    asked: dict[str, Any], tmp_path: Path, by_plain_loop: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = by_plain_loop(asked["volume"], asked["model"], tmp_path / "out.zarr", TILE, 0.5)
    encode, tries = segment_worker.SegmentWorker.encode, list[int]()

    def fails(worker: segment_worker.SegmentWorker, block: int, result: Any) -> Any:
        tries.append(block)
        if block == 3 or (block == 1 and tries.count(1) == 1):
            raise MemoryError(f"block {block}")
        return encode(worker, block, result)

    monkeypatch.setattr(segment_worker.SegmentWorker, "encode", fails)
    with pytest.raises(MemoryError, match="block 3"):
        measure(job, "float32", [0, 1, 2, 3])
    assert (tries.count(1), tries.count(3)) == (2, TRIES)
    assert measure(job, "float32", [0, 1, 2]).blocks == 1


def test_chosen_blocks_are_spread_and_each_once() -> None:
    for blocks in range(1, 30):
        chosen = spread(range(blocks))
        assert len(set(chosen)) == len(chosen) == min(blocks, segment_forecast.MOST_BLOCKS)
        assert set(chosen) <= set(range(blocks))


@pytest.mark.parametrize("classes", [None, 3])
def test_tiff_files_take_what_their_own_pixels_take(
    asked: dict[str, Any],
    tmp_path: Path,
    write_model: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    classes: int | None,
) -> None:
    """Of the chosen sections' region, whatever blocks are to do; probabilities once per class."""
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    model = write_model(tmp_path / "model", classes=classes)
    given = asked | {"model": model, "output": f"{tmp_path}/out.zarr", "sections": ("1",), "roi": ":,10:110,50:"}
    files = {"tiff": f"{tmp_path}/labels.tif", "probability_tiff": f"{tmp_path}/probability.tif"}

    def left(**changed: Any) -> Remainder:
        request = open_request(SegmentConfig(**given | changed))
        return remainder(request, BlockSet(request.job.layout.blocks.num_blocks, [0]), list(request.chosen()))

    layout = open_request(SegmentConfig(**given)).job.layout
    label = "mask" if classes is None else "classes"
    assert (left(**files).tiff, left(**files).tiff_pixels) == ((label, "probability"), 100 * 100)
    assert not left()
    assert left(tiff=files["tiff"])
    page = segment_remainder.TIFF_MVOXEL_SECONDS * 0.01 / 4
    pages = 1 + (classes or 1)
    assert [left(**dict(list(files.items())[:n])).seconds(layout, 9) for n in range(3)] == pytest.approx(
        [0, page, pages * page]
    )


@pytest.mark.usefixtures("ray_cluster")
def test_what_is_left_when_all_blocks_are_done_is_told(
    asked: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = asked | {"output": f"{tmp_path}/out.zarr"}
    files = {"tiff": f"{tmp_path}/mask.tif", "probability_tiff": f"{tmp_path}/probability.tif"}
    new = segment(SegmentConfig(**given, **files, dry_run=True))
    segment(SegmentConfig(**given))
    before = sorted(path.stat().st_mtime_ns for path in Path(given["output"]).rglob("*"))
    told = segment(SegmentConfig(**given, **files, dry_run=True, price_per_node_hour=36000.0))
    assert "for what is left, 2 TIFF files; 0.0 MB and " in capsys.readouterr().err
    assert "note" not in told
    assert (told["blocks_skipped"], told["forecast_block_seconds"], told["forecast_bytes"]) == (BLOCKS, 0, 0)
    assert told["forecast_cost"] == pytest.approx(10 * told["forecast_seconds"], abs=1)
    labels = segment(SegmentConfig(**given | {"threshold": 0.4}, dry_run=True))
    assert f"for what is left, {BLOCKS} label images; 0.0 MB;" in f"{capsys.readouterr().err.rstrip()};"
    assert labels["forecast_seconds"] >= pyramid.BLOCK_SECONDS * BLOCKS
    assert sorted(path.stat().st_mtime_ns for path in Path(given["output"]).rglob("*")) == before
    assert not any(Path(path).exists() for path in files.values())
    segment(SegmentConfig(**given, **files))
    # The files are of one tile each, those that were looked at of 32 px.
    written = sum(Path(path).stat().st_size for path in files.values())
    assert new["forecast_tiff_bytes"] == pytest.approx(written, rel=0.4)
    assert told["forecast_tiff_bytes"] == pytest.approx(written, rel=0.4)
