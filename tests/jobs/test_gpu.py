"""The jobs on a GPU, where there is one: they run, and find what the CPU finds."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from unet_ray.config.network import network_config
from unet_ray.engine.validation import validate
from unet_ray.geometry.box import Box
from unet_ray.network.predict import Predictor
from unet_ray.network.unet import new_network
from unet_ray.storage.patch_cache import PatchCache
from unet_ray.storage.volume import open_volume

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU")]
JOBS = Path(__file__).resolve().parents[2] / "jobs"


def job(name: str, *options: str) -> dict[str, Any]:
    found = subprocess.run([sys.executable, str(JOBS / name), *options], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr[-2000:]
    summary: dict[str, Any] = json.loads(found.stdout.splitlines()[-1])
    return summary


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("gpu") / "demo"
    size = ("--phantom.shape", "16", "256", "256", "--augment.patch-px", "128", "--augment.variants", "4")
    return folder, job("pipeline.py", "--output", str(folder), "--use-gpu", *size, "--train.epochs", "3")


def test_the_pipeline_trains_and_segments_on_the_gpu(demo: tuple[Path, dict[str, Any]]) -> None:
    _, summary = demo
    assert summary["train"]["precision"] == "bfloat16"
    assert summary["train"]["epochs"] == 3
    assert summary["segment"]["seam_max_abs_diff"] < 0.05
    assert 0 < summary["evaluate"]["v_rand"] <= 1


@pytest.mark.parametrize("tta", ["none", "dihedral"])
def test_the_gpu_segments_as_the_cpu_does(demo: tuple[Path, dict[str, Any]], tmp_path: Path, tta: str) -> None:
    folder, _ = demo
    given = (
        "--volume",
        str(folder / "phantom.zarr" / "image" / "0"),
        "--model",
        str(folder / "run" / "model.safetensors"),
    )
    found = []
    for name, device in (("gpu", ["--use-gpu"]), ("cpu", [])):
        output = str(tmp_path / f"{name}.zarr")
        options = ("--output", output, "--precision", "float32", "--sections", "0:2", "--tta", tta)
        job("segment.py", *given, *options, *device)
        found.append(open_volume(output).read(Box((0, 0, 0), (2, 256, 256))).astype(int))
    # One grey level of 255, for the rounding.
    assert np.abs(found[0] - found[1]).max() <= 1


def test_actors_that_share_the_gpu_write_what_one_writes(demo: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, _ = demo
    given = (
        "--volume",
        str(folder / "phantom.zarr" / "image" / "0"),
        "--model",
        str(folder / "run" / "model.safetensors"),
    )
    found = []
    for actors in ("1", "3"):
        output = tmp_path / f"{actors}.zarr"
        shared = ("--workers-per-gpu", actors, "--threads", "1", "--tile-px", "64", "--use-gpu")
        job("segment.py", *given, "--output", str(output), *shared)
        found.append({str(p.relative_to(output)): p.read_bytes() for p in output.rglob("c/*/*/*") if p.is_file()})
    assert len(found[0]) > 4
    assert found[0] == found[1]


def test_validation_finds_on_the_gpu_what_it_finds_on_the_cpu(demo: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = demo
    config = network_config("default", base_channels=4, depth=3)
    state = new_network(config, 0).state_dict()
    cache = PatchCache(str(folder / "cache.zarr"))
    on_cpu, _ = validate(Predictor(config, state, "cpu"), cache, weighted=True)
    on_gpu, _ = validate(Predictor(config, state, "cuda"), cache, weighted=True)
    assert on_gpu.loss == pytest.approx(on_cpu.loss, rel=1e-3)
    assert on_gpu.v_rand == pytest.approx(on_cpu.v_rand, abs=0.01)
