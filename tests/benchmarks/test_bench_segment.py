"""The benchmark of segmentation still runs, at toy size, and compares things that do the same."""

import argparse
import json
import shutil
from pathlib import Path

import bench_segment
import numpy as np
import pytest
import segment_inputs
import segment_runs
import tifffile
import zarr

from unet_ray.engine.segment_worker import SegmentWorker
from unet_ray.storage.volume import open_volume

TOY = [
    "--base-channels", "2", "--depth", "2", "--tile-px", "32", "--threads", "1", "--sections", "2", "--side", "64",
    "--precision", "float32", "--repeats", "1", "--seconds", "0", "--mvoxels", "0.02",
]  # fmt: skip


@pytest.mark.slow
def test_it_returns_rates_of_all_and_ratios_of_the_job() -> None:
    asked = [*TOY, "--peers", "--peer-mvoxels", "0.01", "--peer-roi", "32", "--parts", "job"]
    record = json.loads(json.dumps(bench_segment.main(asked)))
    assert record["plan"]["voxels_zyx"] == [2, 64, 192]
    peers = {name for name in record["results"] if name.startswith("monai")}
    assert peers == set(bench_segment.PEERS)
    for (found,) in record["results"].values():  # a peer that is not installed is named with its error
        assert "error" in found or found["voxels_per_second"] > 0
    assert {"limit", "limit_kept_memory", "limit_cropped", "whole_sections"} <= record["medians"].keys()
    (ours,), (alone,) = record["results"]["job_tiff"], record["results"]["limit"]
    assert record["ratios"]["job_tiff/limit"]["median"] == ours["voxels_per_second"] / alone["voxels_per_second"]
    parts = ("import_seconds", "startup_seconds", "block_seconds", "after_seconds")
    assert sum(ours[part] for part in parts) == pytest.approx(ours["wall_seconds"])
    assert ours["whole_voxels_per_second"] == pytest.approx(2 * 64 * 192 / ours["wall_seconds"])
    assert record["summary"]["job_zarr_peak_driver_bytes"] > 50e6


def test_forward_passes_are_measured_over_the_plain_one() -> None:
    chosen = ["kept_memory+tile_64", "bfloat16+folded+tile_64+channels_last"]
    record = json.loads(json.dumps(bench_segment.main([*TOY, "--parts", "forward", "--only", *chosen])))
    assert {"plain", chosen[0]} <= record["forward"]["medians"].keys() <= {"plain", *chosen}  # bfloat16 where native
    (plain,), (small,) = (record["forward"]["results"][name] for name in ("plain", chosen[0]))
    ratio = record["forward"]["ratios"][chosen[0]]["median"]
    assert ratio == small["voxels_per_second"] / plain["voxels_per_second"]


def test_an_option_that_there_is_not_is_refused() -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="no option tile_7; there are plain, kept_memory"):
        bench_segment.contestant("kept_memory+tile_7")


def inputs(folder: Path, arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    segment_inputs.add_flags(parser)
    config, _ = parser.parse_known_args(arguments)
    config.peer_mvoxels, config.whole_sections = 0.005, 2
    segment_inputs.make_inputs(config, str(folder))
    return config


@pytest.mark.parametrize("preset", ["default", "paper"])
def test_the_loop_of_whole_sections_makes_what_the_job_makes(
    preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What it does to its own process is not for this one.
    monkeypatch.setattr(segment_runs, "limit_memory", lambda config: None)
    monkeypatch.setattr("unet_ray.engine.segment_worker.torch.set_num_threads", lambda threads: None)
    config = inputs(tmp_path, [*TOY, "--preset", preset, "--side", "48", "--sections", "2"])
    assert segment_runs.whole_sections(config, str(tmp_path))["sections"] == 2
    made = zarr.open_array(tmp_path / "whole-probability.zarr", mode="r")[...]
    job = segment_inputs.job_of(config, str(tmp_path))
    worker, blocks = SegmentWorker(job, "float32"), job.layout.blocks
    expected = np.zeros(made.shape, np.uint8)
    for block in range(blocks.num_blocks):
        expected[blocks.write_box(block).slices] = worker.compute(block, worker.read(block))
    # Zeros or mirrored voxels beyond the edge; valid convolutions are mirrored in both.
    edge = 0 if preset == "paper" else job.layout.blocks.tiles.halo[1]
    inside = (slice(None), slice(edge, made.shape[1] - edge), slice(edge, made.shape[2] - edge))
    assert len(np.unique(expected[inside])) > 1
    assert np.abs(expected.astype(int) - made)[inside].max() <= 1


def test_a_given_stack_is_repeated_alike_in_both_formats(tmp_path: Path) -> None:
    stack = np.random.default_rng(0).integers(0, 4000, (3, 40, 50), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "stack.tif", stack, photometric="minisblack")
    config = inputs(tmp_path, [*TOY, "--volume", str(tmp_path / "stack.tif"), "--mvoxels", "0.03"])
    whole = np.tile(stack, (1, 2, 3))
    for name in (segment_inputs.ZARR, segment_inputs.TIFF):
        volume = open_volume(str(tmp_path / name))
        np.testing.assert_array_equal(volume.read(segment_inputs.Box.of_shape(whole.shape)), whole)
    part = np.load(tmp_path / segment_inputs.PART)
    assert part.shape == (1, 70, 70)
    intensity = segment_inputs.job_of(config, str(tmp_path)).intensity
    np.testing.assert_array_equal(part, intensity.apply(whole[:1, :70, :70]))
    shutil.rmtree(tmp_path / segment_inputs.ZARR)
