"""Jobs as functions and as processes, and small inputs for them."""

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import tifffile

ROOT = Path(__file__).resolve().parents[2]


class Ended(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def call_job(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """call_job(name, *flags): what a job's ``main`` returns and prints, in this process."""

    def call(name: str, *flags: object) -> Ended:
        spec = importlib.util.spec_from_file_location(f"job_{name}", ROOT / "jobs" / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        capsys.readouterr()
        code = module.main([str(flag) for flag in flags])
        return Ended(code, *capsys.readouterr())

    return call


@pytest.fixture
def run_job() -> Iterator[Callable[..., Ended]]:
    """run_job(name, *flags, **environment): what a job's process returns and prints."""
    temporary = tempfile.mkdtemp(prefix="ur-", dir="/tmp")  # short: Ray's sockets lie below it

    def run(name: str, *flags: object, **environment: str) -> Ended:
        kept = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
        ended = subprocess.run(
            [sys.executable, str(ROOT / "jobs" / f"{name}.py"), *(str(flag) for flag in flags)],
            capture_output=True, text=True, timeout=300, cwd=temporary,
            env={**kept, "PYTHONPATH": str(ROOT), "TMPDIR": temporary, **environment},
        )  # fmt: skip
        assert not list(Path(temporary).glob("unet_ray-*")), "a finished job left its temporary folder"
        return Ended(ended.returncode, ended.stdout, ended.stderr)

    yield run
    shutil.rmtree(temporary, ignore_errors=True)


@pytest.fixture(scope="session")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model for 8-bit volumes: default preset, depth 3, 2 channels."""
    return write_model(tmp_path_factory.mktemp("model") / "model.safetensors", 1)


@pytest.fixture(scope="session")
def class_model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same for three classes."""
    return write_model(tmp_path_factory.mktemp("model") / "model.safetensors", 3)


def write_model(path: Path, classes: int) -> Path:
    from unet_ray.config.network import layers, network_config
    from unet_ray.geometry.receptive_field import halo_px, margin_px
    from unet_ray.network.model_file import ModelMetadata, Normalisation, encode
    from unet_ray.network.unet import new_network

    config = network_config("default", base_channels=2, depth=3, classes=classes)
    about = ModelMetadata(
        network=config,
        normalisation=Normalisation(low=0, high=255, dtype="uint8"),
        halo_px=halo_px(layers(config)),
        margin_px=margin_px(layers(config)),
    )
    path.write_bytes(encode(new_network(config, 0), about))
    return path


@pytest.fixture
def stack(tmp_path: Path) -> Callable[..., Path]:
    """stack(name, values=None): a TIFF stack in the test's folder; without values, three noisy sections."""

    def write(name: str, values: Any = None) -> Path:
        if values is None:
            values = np.random.default_rng(0).integers(0, 256, (3, 64, 72), dtype=np.uint8)
        path = tmp_path / name
        tifffile.imwrite(path, values, photometric="minisblack")
        return path

    return write
