"""Choosing tile side and tiles at once by what the hardware needs for them; running out of memory on the way."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import zarr
from hypothesis import given
from hypothesis import strategies as st

from unet_ray.config.network import network_config
from unet_ray.config.segment import SegmentConfig
from unet_ray.engine import calibration, cluster, segment_start, segment_worker
from unet_ray.engine.calibration import calibrate, choose
from unet_ray.engine.machines import Machine
from unet_ray.engine.segment_plan import computed_px, layout_for, resolve_tile_px, tile_sides
from unet_ray.engine.segment_request import Request, open_request
from unet_ray.engine.segment_start import largest_tile_px
from unet_ray.engine.segment_worker import Job, SegmentWorker, block_seconds, on_worker, probe_on_worker
from unet_ray.errors import UnetRayError
from unet_ray.geometry.tiles import BlockGrid
from unet_ray.numerics.intensity import IntensityMap
from unet_ray.storage.segmentation import Segmentation
from unet_ray.storage.volume import open_volume

NETWORK = network_config("default")
FACTOR, HALO = 16, 96


def clock(monkeypatch: pytest.MonkeyPatch, pixels_per_second: Callable[[int, int], float]) -> list[tuple[int, ...]]:
    """Let a pass take what a function of (window side, tiles) says; what was asked for."""
    asked: list[tuple[int, ...]] = []

    def seconds(predict: Callable[[Any], object], windows: npt.NDArray[np.uint8]) -> float:
        asked.append(windows.shape)
        predict(windows)
        tiles, _, side, _ = windows.shape
        return tiles * side * side / pixels_per_second(side, tiles)

    monkeypatch.setattr(calibration, "_seconds", seconds)
    return asked


def nothing(windows: npt.NDArray[np.uint8]) -> None:
    pass


@given(st.integers(1, 3000), st.integers(1, 3000), st.floats(1e3, 1e9))
def test_where_all_sides_are_as_fast_the_least_overhang_wins(height: int, width: int, rate: float) -> None:
    volume = (3, height, width)
    found = choose({(256, 1): rate, (512, 1): rate}, volume, tile_sides(volume, FACTOR), HALO)
    assert found.tile_px == resolve_tile_px("auto", volume, NETWORK)


@given(
    st.integers(1, 3000),
    st.integers(1, 3000),
    st.dictionaries(st.sampled_from((256, 512, 768, 1024)), st.floats(1e3, 1e9), min_size=2),
)
def test_no_side_would_take_less_time(height: int, width: int, rates: dict[int, float]) -> None:
    volume = (1, height, width)
    found = choose({(side, 1): rate for side, rate in rates.items()}, volume, tile_sides(volume, FACTOR), HALO)
    sides = sorted(rates)

    def seconds(side: int) -> float:
        return computed_px(volume, side, HALO) / float(np.interp(side, sides, [rates[s] for s in sides]))

    assert seconds(found.tile_px) == min(seconds(side) for side in tile_sides(volume, FACTOR))


def test_a_cpu_whose_cache_holds_small_windows_gets_small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    clock(monkeypatch, lambda side, _: 1e6 if side < 500 else 0.3e6)
    found = calibrate(nothing, (500, 1416, 1416), NETWORK, "cpu")
    assert found.tile_px < 350
    assert found.tiles_at_once == 1
    assert set(found.pixels_per_second) == {"256 x 1", "512 x 1", "768 x 1", "1024 x 1"}


def test_a_side_above_those_timed_is_timed_before_it_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """1424 px take a section of 1416 in one piece, with 0.78 of the pixels of four tiles of 720."""
    volume, timed = (500, 1416, 1416), ["256 x 1", "512 x 1", "768 x 1", "1024 x 1"]
    clock(monkeypatch, lambda *_: 1e6)
    assert calibrate(nothing, volume, NETWORK, "cpu").tile_px == 720
    found = calibrate(nothing, volume, NETWORK, "cpu", largest_px=2048)
    assert (found.tile_px, list(found.pixels_per_second)) == (1424, [*timed, "1424 x 1"])
    # On the window, halo included.
    clock(monkeypatch, lambda side, _: 1e6 if side < 1600 else 0.7e6)
    found = calibrate(nothing, volume, NETWORK, "cpu", largest_px=2048)
    assert (found.tile_px, list(found.pixels_per_second)) == (720, [*timed, "1424 x 1"])

    def small_machine(windows: npt.NDArray[np.uint8]) -> None:
        if windows.size > 1600**2:
            raise MemoryError

    clock(monkeypatch, lambda *_: 1e6)
    found = calibrate(small_machine, volume, NETWORK, "cpu", largest_px=2048)
    assert (found.tile_px, list(found.pixels_per_second)) == (720, timed)


@pytest.fixture
def large(tmp_path: Path, write_model: Callable[..., str]) -> Callable[..., Request]:
    """The request for a volume of 500 sections of 1416 px, of which nothing is stored."""
    volume = str(tmp_path / "volume.zarr")
    zarr.create_array(volume, shape=(500, 1416, 1416), chunks=(1, 1416, 1416), dtype="u1", fill_value=7)
    model = write_model(tmp_path / "model", "default", base_channels=8)

    def request(**options: Any) -> Request:
        config = SegmentConfig(volume=volume, model=model, output=str(tmp_path / "out.zarr"), **options)
        return open_request(config)

    return request


@pytest.mark.parametrize(
    ("nodes", "options", "whole"),
    [
        ([Machine(2, 0, memory=32 << 30)], {}, True),
        ([Machine(2, 0)], {}, True),  # memory is not known
        ([Machine(8, 0, memory=32 << 30), Machine(7, 0, memory=32 << 30)], {}, True),  # 125 blocks of 4 sections
        (
            [Machine(8, 0, memory=64 << 30), Machine(8, 0, memory=64 << 30)],
            {},
            False,
        ),  # 500, of four tiles a section, of smaller ones
        ([Machine(2, 0, memory=2 << 30)], {}, False),
        ([Machine(2, 0, memory=2 << 30)], {"workers": 1}, True),
        ([Machine(2, 0, memory=32 << 30)], {"sections": ("0:252",)}, False),  # 63 blocks
        ([Machine(2, 0, memory=32 << 30)], {"sections": ("0:256",)}, True),
        ([Machine(2, 0, memory=32 << 30)], {"roi": "0:80,0:100,0:100"}, False),
        ([Machine(2, 1, memory=32 << 30)], {"use_gpu": True}, False),
    ],
)
def test_a_large_section_is_one_tile_where_that_costs_no_worker(
    large: Callable[..., Request],
    monkeypatch: pytest.MonkeyPatch,
    nodes: list[Machine],
    options: dict[str, Any],
    whole: bool,
) -> None:
    for module in (cluster, segment_start):
        monkeypatch.setattr(module, "machines", lambda: nodes)
    assert (largest_tile_px(large(**options)) == 1416) is whole


def test_no_pass_decides_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of large windows the second pass is as slow as the first, while the allocator still grows."""
    now, passes = [0.0], iter([9.0, 2.0, 1.0, 2.0, 7.0])
    monkeypatch.setattr(calibration.time, "perf_counter", lambda: now[0])

    def predict(_: npt.NDArray[np.uint8]) -> None:
        now[0] += next(passes) / 10

    assert calibration._seconds(predict, np.zeros(1, np.uint8)) == pytest.approx(0.1)
    assert next(passes) == 7.0


def test_a_gpu_that_likes_full_passes_gets_several_small_tiles_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock(monkeypatch, lambda side, tiles: min(3e8, 20e6 * tiles * (side / 448) ** 2))
    found = calibrate(nothing, (1_000_000, 512, 512), NETWORK, "cuda")
    assert (found.tile_px, found.tiles_at_once) == (512, 4)


def test_a_side_that_was_not_timed_gets_no_more_pixels_at_once_than_were_tried() -> None:
    found = choose({(256, 1): 1.0, (256, 16): 2.0}, (1, 512, 512), (512,), HALO)
    assert (found.tile_px, found.tiles_at_once) == (512, 6)


def test_a_short_job_is_not_kept_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = clock(monkeypatch, lambda *_: 1e6)
    volume = (16, 512, 512)
    found = calibrate(nothing, volume, NETWORK, "cpu")
    assert asked == [(1, 1, 448, 448)]
    assert found.tile_px == resolve_tile_px("auto", volume, NETWORK)


def test_a_volume_smaller_than_all_timed_sides_is_one_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = clock(monkeypatch, lambda *_: 1.0)
    assert calibrate(nothing, (1000, 40, 50), NETWORK, "cpu").tile_px == 64
    assert asked == [(1, 1, 64 + 2 * HALO, 64 + 2 * HALO)]


def test_what_is_given_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = clock(monkeypatch, lambda side, tiles: 1e3 * tiles)
    found = calibrate(nothing, (50, 1000, 1000), NETWORK, "cuda", tile_px=320)
    assert (found.tile_px, found.tiles_at_once) == (320, 16)
    assert {shape[2] for shape in asked} == {320 + 2 * HALO}
    assert calibrate(nothing, (50, 1000, 1000), NETWORK, "cuda", tiles_at_once=3).tiles_at_once == 3


def test_a_pass_that_does_not_fit_into_memory_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    clock(monkeypatch, lambda side, tiles: 1e3 * tiles)

    def small_device(windows: npt.NDArray[np.uint8]) -> None:
        if windows.size > 4 * 448**2:  # more than one of 704, less than one of 960
            raise torch.OutOfMemoryError("CUDA out of memory")

    found = calibrate(small_device, (500, 700, 700), NETWORK, "cuda")
    assert "256 x 4" in found.pixels_per_second
    assert "256 x 16" not in found.pixels_per_second
    asked = clock(monkeypatch, lambda side, _: float(side))  # larger would be faster
    found = calibrate(small_device, (500, 1024, 1024), NETWORK, "cpu")
    assert [shape[2] - 2 * HALO for shape in asked] == [256, 512, 768]
    assert found.tile_px < 768
    with pytest.raises(ValueError, match="shapes"):
        calibrate(lambda _: (_ for _ in ()).throw(ValueError("shapes")), (5, 700, 700), NETWORK, "cuda")


@pytest.fixture
def job(
    tmp_path: Path,
    write_model: Callable[..., str],
    write_zarr: Callable[..., str],
    phantom_image: Callable[..., npt.NDArray[np.uint8]],
) -> Job:
    volume = open_volume(write_zarr(tmp_path / "volume.zarr", phantom_image((2, 90, 120))))
    model = Path(write_model(tmp_path / "model.safetensors")).read_bytes()
    layout = layout_for(volume.shape, 32, network_config("default", base_channels=2, depth=3), None)
    layout = replace(layout, blocks=BlockGrid(layout.blocks.tiles, (2, 2, 2)))
    output = Segmentation(str(tmp_path / "out.zarr"))
    return Job(volume, model, IntensityMap.identity(), output, layout, 0.5, threads=1, gpus_each=0)


def result(job: Job, block: int = 0) -> npt.NDArray[np.uint8]:
    worker = SegmentWorker(job, "float32")
    return worker.compute(block, worker.read(block))


@pytest.mark.parametrize("tiles_at_once", [2, 5, 64])
def test_several_tiles_at_once_give_what_each_gives_alone(job: Job, tiles_at_once: int) -> None:
    blocks = job.layout.blocks
    for block in range(blocks.num_blocks):
        alone = result(job, block).astype(int)
        together = result(replace(job, tiles_at_once=tiles_at_once), block).astype(int)
        # Another order of sums may move a value across a rounding; a tile in the wrong place moves thousands.
        assert np.abs(alone - together).max() <= 1
        assert (alone != together).mean() < 1e-3


def test_passes_have_one_shape(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = SegmentWorker(replace(job, tiles_at_once=5), "float32")
    shapes = set()
    predictor = worker.predictor
    worker.__dict__["predictor"] = lambda windows: shapes.add(windows.shape) or predictor(windows)
    for block in range(job.layout.blocks.num_blocks):
        worker.compute(block, worker.read(block))
    assert {shape[0] for shape in shapes} == {5}


def test_a_pass_without_memory_is_halved_and_said(job: Job, capfd: pytest.CaptureFixture[str]) -> None:
    worker = SegmentWorker(replace(job, tiles_at_once=8), "float32")
    predictor, sizes = worker.predictor, list[int]()

    def small(windows: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        sizes.append(len(windows))
        if len(windows) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return predictor(windows)

    worker.__dict__["predictor"] = small
    found = worker.compute(0, worker.read(0))
    assert np.abs(found.astype(int) - result(job).astype(int)).max() <= 1
    assert sizes[:3] == [8, 4, 2]
    assert max(sizes[2:]) == 2
    assert "from now on 2 tiles at once" in capfd.readouterr().err
    assert worker.counts(0)["passes_halved"] == 2


def test_no_memory_for_one_tile_says_what_to_change(job: Job) -> None:
    worker = SegmentWorker(replace(job, tiles_at_once=2), "float32")

    def none(windows: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    worker.__dict__["predictor"] = none
    with pytest.raises(UnetRayError, match=r"one tile of 32 px .*smaller --tile-px"):
        worker.compute(0, worker.read(0))


def test_no_memory_at_calibration_or_probe_says_the_same(job: Job, ray_cluster: None) -> None:
    def none() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(UnetRayError, match=r"one tile of 32 px .*smaller --tile-px"):
        on_worker(job, none)


def test_a_process_that_is_killed_says_the_same(job: Job, ray_cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the system does where memory runs out, and as Ray does before that."""
    import ray

    def killed() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(UnetRayError, match=r"one tile of 32 px .*worker died.*smaller --tile-px"):
        on_worker(job, killed)

    def fetched(reference: object) -> None:
        raise ray.exceptions.OutOfMemoryError("Task was killed due to the node running low on memory.\n...")

    monkeypatch.setattr(segment_worker, "fetched", fetched)
    with pytest.raises(UnetRayError, match=r"one tile of 32 px .*running low on memory.*smaller --tile-px"):
        on_worker(job, int)


def test_the_probe_tells_what_a_block_takes(job: Job) -> None:
    probed = probe_on_worker(job, "float32")
    assert 1e4 < probed.pixels_per_second < 1e9
    tiles = list(job.layout.blocks.tiles_of(0))
    computed = sum(job.layout.blocks.tiles.read_box(tile).voxels for tile in tiles)
    assert block_seconds(job, 1e6) == pytest.approx(computed / 1e6)


LITTLE_MEMORY = """
import resource, sys
import numpy as np
from unet_ray.config.network import network_config
from unet_ray.engine.segment_worker import SegmentWorker
from unet_ray.network.predict import Predictor
from unet_ray.network.unet import new_network

network = network_config("default", base_channels=8, depth=2)
class Cut:
    tiles_at_once = 64
worker = SegmentWorker.__new__(SegmentWorker)
worker.most, worker.halved, worker.job = 64, 0, Cut
worker.__dict__["predictor"] = Predictor(network, new_network(network, 0).state_dict())
windows = np.random.default_rng(0).integers(0, 256, (64, 1, 128, 128), np.uint8)
one = worker.predictor(windows[:1])
used = int(next(l for l in open("/proc/self/status") if l.startswith("VmSize")).split()[1]) * 1024
resource.setrlimit(resource.RLIMIT_AS, (used + 100 * 2**20,) * 2)
found = worker._predict(windows)
assert found.shape == (64, 128, 128) and np.allclose(found[:1], one, atol=1e-5)
print(worker.most)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits a process's memory as Linux does")
def test_a_process_that_really_has_no_more_memory_goes_on_with_less() -> None:
    done = subprocess.run([sys.executable, "-c", LITTLE_MEMORY], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert 1 <= int(done.stdout) < 64
    assert "out of memory" in done.stderr
