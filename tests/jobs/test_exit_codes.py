"""Exit codes 0, 1 and 3, and stdout's last line, of jobs that get as far as the cluster."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

Job = Callable[..., Any]


def write(path: Path, values: np.ndarray) -> Path:
    array = zarr.create_array(str(path), shape=values.shape, dtype=values.dtype, chunks=(1, 64, 64))
    array[...] = values
    return path


def test_incomplete_is_3_with_the_failures_in_the_summary(
    ray_cluster: None, call_job: Job, model_file: Path, tmp_path: Path
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (3, 64, 192), dtype=np.uint8)
    volume = write(tmp_path / "volume.zarr", noise)
    chunk = volume / "c" / "0" / "0" / "2"
    chunk.write_bytes(chunk.read_bytes()[:100])
    flags = ["--volume", volume, "--model", model_file, "--output", tmp_path / "o.zarr", "--tile-px", "32"]
    flags += ["--workers", "1", "--threads", "1", "--precision", "float32", "--tiff", tmp_path / "mask.tif"]
    ended = call_job("segment", *flags)
    assert ended.code == 3, ended.err
    assert len(ended.out.splitlines()) == 1
    summary = json.loads(ended.out)
    # Of 2 x 6 tiles per section, those of section 0 fail that read from columns 128 on, with a halo of 22.
    assert set(summary["failures"]) == {"3", "4", "5", "9", "10", "11"}
    assert (summary["status"], summary["blocks_failed"], summary["blocks_written"]) == ("incomplete", 6, 30)
    assert all("cannot be read" in reason for reason in summary["failures"].values())
    assert not (tmp_path / "mask.tif").exists()
    assert "Traceback" not in ended.err
    again = call_job("segment", *flags)
    assert again.code == 3
    assert json.loads(again.out)["blocks_skipped"] == 30
    rest = call_job("segment", *flags, "--sections", "1:3")
    assert rest.code == 0
    assert json.loads(rest.out)["status"] == "complete"
    assert (tmp_path / "mask.tif").exists()


def test_a_probe_that_cannot_read_says_so_in_one_sentence(
    ray_cluster: None, call_job: Job, model_file: Path, tmp_path: Path
) -> None:
    volume = write(tmp_path / "volume.zarr", np.full((3, 64, 64), 7, np.uint8))
    (volume / "c" / "1" / "0" / "0").write_bytes(b"rubbish")
    ended = call_job("segment", "--volume", volume, "--model", model_file, "--output", tmp_path / "o.zarr")
    assert ended.code == 2, ended
    assert len(ended.err.splitlines()) == 1
    assert ended.err.startswith("segment: section")
    assert "Traceback" not in ended.err
    assert len(ended.err) < 400


def test_an_error_of_our_own_is_1_with_its_traceback(
    call_job: Job, model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from unet_ray.engine import segment_request

    def broken(*arguments: Any) -> Any:
        raise RuntimeError("a mistake")

    monkeypatch.setattr(segment_request, "decode", broken)
    volume = write(tmp_path / "volume.zarr", np.full((1, 8, 8), 7, np.uint8))
    ended = call_job("segment", "--volume", volume, "--model", model_file, "--output", tmp_path / "o.zarr")
    assert (ended.code, ended.out) == (1, "")
    assert "Traceback" in ended.err
    assert ended.err.splitlines()[-1].startswith("segment: failed with an error of its own")
