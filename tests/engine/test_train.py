"""Training through Ray Train: workers agree, killed runs continue, bad input is refused."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from unet_ray.config.train import TrainConfig
from unet_ray.errors import ConfigError, ModelFileError, OutputMismatchError, TrainingDivergedError, VolumeError
from unet_ray.network.model_file import decode
from unet_ray.storage.patch_cache import CachePlan, Patch, PatchCache

JOBS = Path(__file__).resolve().parents[2] / "jobs"
MADE_WITH = {
    "sections": {
        "train/0/0": {"image": "aa", "label": "bb"},
        "validation/0/1": {"image": "cc", "label": "dd"},
    },
    "intensity": {"low": 0.0, "high": 255.0, "dtype": "uint8"},
    "voxel_size_nm": [50.0, 4.0, 4.0],
    "context_sections": 0,
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Seven patches and two validation sections whose membrane is simply what is dark."""
    path = str(tmp_path_factory.mktemp("train") / "cache.zarr")
    made = PatchCache(path)
    plan = made.create_or_extend(CachePlan(7, 32, 0, 1, 4, 2, (40, 48)), MADE_WITH)
    rng = np.random.default_rng(0)

    def patches(count: int, height: int, width: int) -> Patch:
        coarse = rng.random((count, 1, height // 8, width // 8)) < 0.3
        label = np.kron(coarse, np.ones((8, 8))).astype(np.uint8)
        image = (200 - 120 * label + rng.integers(-30, 30, label.shape)).astype(np.uint8)
        return Patch(image, label[:, 0], rng.uniform(0.5, 3, label[:, 0].shape).astype(np.float16))

    for shard in range(plan.shards):
        made.put(plan, "train", shard, patches(len(plan.patches_of(shard)), 32, 32))
    for number in range(plan.validation):
        made.put(plan, "validation", number, patches(1, 40, 48))
    return path


def config(cache: str, run: Path, **changes: Any) -> TrainConfig:
    settings = {"base_channels": 2, "depth": 2, "epochs": 3, "batch_size": 3, "precision": "float32", "threads": 1}
    return TrainConfig(cache=cache, run=str(run), **(settings | changes))


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return decode((run / "model.safetensors").read_bytes())[1]


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in rows(run)]


@pytest.fixture(scope="module")
def finished(cache: str, ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A run of one worker that nobody disturbed."""
    from unet_ray.engine.train import train

    run = tmp_path_factory.mktemp("runs") / "one"
    return run, train(config(cache, run))


def test_run_directory(finished: tuple[Path, dict[str, Any]], cache: str) -> None:
    run, summary = finished
    assert summary["status"] == "complete"
    assert (summary["epochs"], summary["steps"]) == (3, 9)  # seven patches in batches of 3: the last has one
    assert [row["step"] for row in rows(run) if row["event"] == "step"] == list(range(9))
    validations = [row["loss"] for row in rows(run) if row["event"] == "validation"]
    assert len(validations) == 3
    assert summary["best_validation_loss"] == min(validations) < validations[0]
    assert list((run / "tensorboard").glob("events.*"))
    assert (run / "curves.png").read_bytes()[:4] == b"\x89PNG"
    metadata = decode((run / "model.safetensors").read_bytes())[2]
    assert metadata.voxel_size_nm == (50.0, 4.0, 4.0)
    assert [(s.fingerprint, s.role) for s in metadata.training_sections] == [("aa", "train"), ("cc", "validation")]


def test_finished_run_is_not_run_again(finished: tuple[Path, dict[str, Any]], cache: str) -> None:
    from unet_ray.engine.train import train

    run, summary = finished
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    again = train(config(cache, run))
    assert again["best_validation_loss"] == summary["best_validation_loss"]
    assert "nothing to do" in again["note"]
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()} == before


def test_two_workers_take_the_steps_of_one(finished: tuple[Path, dict[str, Any]], cache: str, tmp_path: Path) -> None:
    from unet_ray.engine.train import train

    train(config(cache, tmp_path / "two", workers=2))
    assert losses(tmp_path / "two") == pytest.approx(losses(finished[0]), abs=2e-4)
    for name, expected in weights(finished[0]).items():
        torch.testing.assert_close(weights(tmp_path / "two")[name], expected, rtol=0, atol=2e-3)


def test_killed_worker_is_replaced(finished: tuple[Path, dict[str, Any]], cache: str, tmp_path: Path) -> None:
    """SIGKILL of the training process after the first checkpoint: the run ends as if nothing had happened."""
    from unet_ray.engine.train import train

    run, killed = tmp_path / "killed", list[int]()

    def kill() -> None:
        deadline = time.time() + 120
        while time.time() < deadline and not killed:
            if (run / "metrics.jsonl").exists():
                killed.extend(train_processes())
                for pid in killed:
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)

    killer = threading.Thread(target=kill)
    killer.start()
    summary = train(config(cache, run, epochs=3))
    killer.join()
    assert killed
    assert summary["steps"] == 9
    assert losses(run) == losses(finished[0])
    for name, expected in weights(finished[0]).items():
        assert torch.equal(weights(run)[name], expected), name


def train_processes() -> list[int]:
    """Children of this process that Ray Train runs as workers."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            title = (entry / "cmdline").read_bytes()
            ancestors = _ancestors(int(entry.name))
        except OSError:
            continue
        if b"RayTrainWorker" in title and os.getpid() in ancestors:
            found.append(int(entry.name))
    return found


def _ancestors(pid: int) -> set[int]:
    seen: set[int] = set()
    while pid > 1:
        pid = int((Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[1])
        seen.add(pid)
    return seen


def test_killed_driver_continues(finished: tuple[Path, dict[str, Any]], cache: str, tmp_path: Path) -> None:
    """SIGKILL of the whole job after the first checkpoint; the same command goes on from there."""
    run = tmp_path / "run"
    command = [sys.executable, str(JOBS / "train.py"), "--cache", cache, "--run", str(run)]
    command += [
        "--base-channels",
        "2",
        "--depth",
        "2",
        "--epochs",
        "3",
        "--batch-size",
        "3",
        "--precision",
        "float32",
        "--threads",
        "1",
    ]
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)
    deadline = time.time() + 120
    while not list(run.glob("checkpoints/checkpoint_*/state.pt")):
        assert time.time() < deadline, "no checkpoint in two minutes"
        assert first.poll() is None, "the run ended before it could be killed"
        time.sleep(0.02)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    assert not (run / "summary.json").exists()
    second = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert second.returncode == 0, second.stderr
    assert [row["step"] for row in rows(run) if row["event"] == "step"] == list(range(9))
    assert losses(run) == losses(finished[0])
    for name, expected in weights(finished[0]).items():
        assert torch.equal(weights(run)[name], expected), name


def test_fine_tuning_starts_from_the_model(finished: tuple[Path, dict[str, Any]], cache: str, tmp_path: Path) -> None:
    from unet_ray.engine.train import train

    model = str(finished[0] / "model.safetensors")
    train(config(cache, tmp_path / "tuned", initial_model=model, epochs=1, learning_rate=1e-7, seed=5))
    for name, start in weights(finished[0]).items():
        if "running" not in name and "tracked" not in name:
            torch.testing.assert_close(weights(tmp_path / "tuned")[name], start, rtol=0, atol=1e-5, msg=name)
    with pytest.raises(ModelFileError, match="another network: base_channels 2"):
        train(config(cache, tmp_path / "wider", initial_model=model, base_channels=4))


def test_divergence_stops_with_a_sentence(cache: str, ray_cluster: None, tmp_path: Path) -> None:
    from unet_ray.engine.train import train

    with pytest.raises(TrainingDivergedError, match=r"training step \d+: the loss is (nan|inf).*lower the learning"):
        train(config(cache, tmp_path / "run", optimizer="sgd", schedule="constant", learning_rate=1e30))


@pytest.mark.parametrize(
    ("changes", "error", "sentence"),
    [
        ({"preset": "paper"}, ConfigError, "margin of 0 px, but a paper network"),
        ({"depth": 7}, ConfigError, "patches of 32 px, which a network of depth 7 cannot make"),
        ({"cache": "/nowhere/cache.zarr"}, VolumeError, "there is no patch cache at /nowhere/cache.zarr"),
        ({"learning_rate": 0.5}, OutputMismatchError, "settings.learning_rate 0.002 .now 0.5."),
        ({"precision": "bfloat16"}, OutputMismatchError, "precision float32 .now bfloat16."),
        ({"initial_model": "/nowhere/m.safetensors"}, ModelFileError, "no model file at"),
    ],
)
def test_bad_settings(
    finished: tuple[Path, dict[str, Any]], cache: str, changes: dict[str, Any], error: type[Exception], sentence: str
) -> None:
    from unet_ray.engine.train import train

    given = config(cache, finished[0]).model_copy(update=changes)
    with pytest.raises(error, match=sentence):
        train(given)


def test_foreign_directory_is_refused(cache: str, tmp_path: Path) -> None:
    from unet_ray.engine.train import train

    (tmp_path / "thesis.txt").write_text("do not delete")
    for overwrite in (False, True):
        with pytest.raises(OutputMismatchError, match=r"it holds thesis\.txt"):
            train(config(cache, tmp_path, overwrite=overwrite))
    assert (tmp_path / "thesis.txt").exists()
