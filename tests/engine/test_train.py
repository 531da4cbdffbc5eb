"""Training through Ray Train: workers agree, killed runs continue."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.engine.training import config, losses, rows, validations, weights
from unet_ray.config.network import network_config
from unet_ray.config.train import TrainSettings
from unet_ray.engine.checkpoints import LIST
from unet_ray.errors import ConfigError, ModelFileError, OutputMismatchError, TrainingDivergedError
from unet_ray.network.model_file import decode
from unet_ray.network.summary import PROCESS_BYTES
from unet_ray.storage.patch_cache import PatchCache

JOBS = Path(__file__).resolve().parents[2] / "jobs"


def test_run_directory(finished: tuple[Path, dict[str, Any]], cache: str) -> None:
    run, summary = finished
    assert summary["status"] == "complete"
    assert (summary["epochs"], summary["steps"]) == (3, 9)  # seven patches in batches of 3: the last has one
    assert [row["step"] for row in rows(run) if row["event"] == "step"] == list(range(9))
    validations = [row["loss"] for row in rows(run) if row["event"] == "validation"]
    assert len(validations) == 3
    assert summary["best_validation_loss"] == min(validations) < validations[0]
    (events,) = (run / "tensorboard").glob("events.*")
    for tag in (
        b"step/loss",
        b"step/gradient_norm",
        b"validation/v_rand",
        b"validation/raw",
        b"validation/probability",
    ):
        assert tag in events.read_bytes(), tag
    for row in rows(run):
        if row["event"] == "validation":
            assert all(0 <= row[name] <= 1 for name in ("pixel_mismatch", "pixel_error", "dice", "v_rand", "v_info"))
    kept = min((row for row in rows(run) if row["event"] == "validation"), key=lambda row: row["loss"])
    assert kept.items() >= {"epoch": summary["best_epoch"], **summary["validation"]}.items()
    assert (run / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert len(list(run.glob("checkpoints/checkpoint_*/state.pt"))) == 2, "of three epochs the newest two are kept"
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


def test_a_run_of_an_earlier_version_is_known_again(
    finished: tuple[Path, dict[str, Any]], cache: str, tmp_path: Path
) -> None:
    """Its network has no ``members``, its settings no descriptors: it is what it would be without; with is another."""
    from unet_ray.engine.train import train

    run = tmp_path / "run"
    shutil.copytree(finished[0], run)
    told = json.loads((run / "run.json").read_text())
    assert told["made_with"]["network"].pop("members") == 1
    assert told["made_with"]["settings"].pop("descriptor_weight") == 0
    (run / "run.json").write_text(json.dumps(told))
    assert "nothing to do" in train(config(cache, run))["note"]
    with pytest.raises(OutputMismatchError, match=r"network\.members 1 .now 2."):
        train(config(cache, run, members=2))
    with pytest.raises(OutputMismatchError, match=r"settings\.descriptor_weight 0\.0 .now 1\.0."):
        train(config(cache, run, descriptor_weight=1.0))


def test_a_finished_run_is_exported(finished: tuple[Path, dict[str, Any]], cache: str, tmp_path: Path) -> None:
    from unet_ray.engine.train import train

    again = train(config(cache, finished[0], export_onnx=str(tmp_path / "new" / "membrane.onnx")))
    assert again["onnx"] == str(tmp_path / "new" / "membrane.onnx")
    assert b"probability" in (tmp_path / "new" / "membrane.onnx").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("workers", [2, 3])
def test_more_workers_take_the_steps_of_one(
    finished: tuple[Path, dict[str, Any]], cache: str, tmp_path: Path, workers: int
) -> None:
    """The last batch of an epoch has one patch, so that other workers have none.

    In a minute. Two workers of a real job are also compared with plain steps where hosts are lost.
    """
    from unet_ray.engine.train import train

    train(config(cache, tmp_path / "more", workers=workers))
    assert losses(tmp_path / "more") == pytest.approx(losses(finished[0]), abs=2e-4)
    for name, expected in weights(finished[0]).items():
        torch.testing.assert_close(weights(tmp_path / "more")[name], expected, rtol=0, atol=2e-3)
    for found, expected in zip(validations(tmp_path / "more"), validations(finished[0]), strict=True):
        assert found["dice"] == pytest.approx(expected["dice"], abs=0.02)  # a pixel or two near 0.5
        assert found["v_rand"] == pytest.approx(expected["v_rand"], abs=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_killed_worker_is_replaced(
    finished: tuple[Path, dict[str, Any]], cache: str, tmp_path: Path, workers: int
) -> None:
    """SIGKILL of one training process in the middle of an epoch: the run ends as if nothing had happened."""
    from unet_ray.engine.train import train

    run, killed, at = tmp_path / "killed", list[int](), list[tuple[int, float]]()

    def kill() -> None:
        deadline = time.time() + 120
        while time.time() < deadline and not killed:
            if registered(run):
                killed.extend(train_processes()[-1:])
                for pid in killed:
                    os.kill(pid, signal.SIGKILL)
                at.append((registered(run), time.time()))
            time.sleep(0.02)

    killer = threading.Thread(target=kill)
    killer.start()
    summary = train(config(cache, run, checkpoint_every_steps=2, workers=workers))
    killer.join()
    assert killed
    assert_gone_on_from(run, *at[-1])
    assert summary["steps"] == 9
    assert [row["step"] for row in rows(run) if row["event"] == "step"] == list(range(9))
    if workers == 1:
        assert losses(run) == losses(finished[0])
    else:  # to rounding, as in test_more_workers_take_the_steps_of_one
        assert losses(run) == pytest.approx(losses(finished[0]), abs=2e-4)
    for name, expected in weights(finished[0]).items():
        tolerance = 0 if workers == 1 else 2e-3
        torch.testing.assert_close(weights(run)[name], expected, rtol=0, atol=tolerance, msg=name)


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


def test_killed_driver_continues(
    finished: tuple[Path, dict[str, Any]], cache: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """SIGKILL of the whole job in the middle of an epoch; the same settings go on from there."""
    from unet_ray.engine.train import train

    run = tmp_path / "run"
    command = [
        sys.executable, str(JOBS / "train.py"), "--cache", cache, "--run", str(run), "--base-channels", "2",
        "--depth", "2", "--epochs", "3", "--batch-size", "3", "--precision", "float32", "--threads", "1",
        "--checkpoint-every-steps", "2", "--best-by", "loss",
    ]  # fmt: skip
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)
    deadline = time.time() + 120
    while not registered(run):
        assert time.time() < deadline, "no checkpoint in two minutes"
        assert first.poll() is None, "the run ended before it could be killed"
        time.sleep(0.02)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    at, killed = registered(run), time.time()
    assert not (run / "summary.json").exists()
    # What a checkpoint that was interrupted in its writing leaves: newer than all others, and half.
    whole = next(run.glob("checkpoints/checkpoint_*/state.pt"))
    half = run / "checkpoints" / "checkpoint_2999-01-01_00-00-00.000000"
    half.mkdir()
    (half / "state.pt").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    capfd.readouterr()
    train(config(cache, run, checkpoint_every_steps=2))
    said = capfd.readouterr().err
    assert "default network, " in said
    told = re.search(r"train: 9 of 9 steps \(100 %\), (\d) of them before, ", said)
    assert told is not None
    assert int(told[1]) >= at
    assert_gone_on_from(run, at, killed)
    assert_same(run, finished[0])


def registered(run: Path) -> int:
    """Steps of the checkpoint that Ray Train would go on from; 0 where there is none yet."""
    try:
        listed = json.loads((run / LIST).read_text())
    except (FileNotFoundError, json.JSONDecodeError):  # Ray is writing it
        return 0
    latest: dict[str, Any] | None = listed["latest_checkpoint_result"]
    return int(latest["metrics"]["step"]) if latest else 0


def assert_gone_on_from(run: Path, step: int, killed: float) -> None:
    """None of the steps up to a registered checkpoint was taken again, and all after it or after the next one were.

    What was under way was still registered.
    """
    ended = [row["ended"] for row in rows(run) if row["event"] == "step"]
    again = next(n for n in range(9) if ended[n] > killed)
    assert 0 < step <= again
    assert min(ended[again:]) > killed


def assert_same(run: Path, other: Path) -> None:
    assert [row["step"] for row in rows(run) if row["event"] == "step"] == list(range(9))
    assert losses(run) == losses(other)
    for name, expected in weights(other).items():
        assert torch.equal(weights(run)[name], expected), name


def test_a_damaged_checkpoint_is_passed_over(
    finished: tuple[Path, dict[str, Any]], cache: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """What a power cut leaves of the newest one; the run goes on from the one before, and Ctrl-C stays the job's.

    It takes the threads that it was begun with, though nobody asks for them: four would fit.
    """
    from unet_ray.engine.train import train

    run = tmp_path / "run"
    shutil.copytree(finished[0], run)
    (run / "summary.json").unlink()
    newest = max(run.glob("checkpoints/checkpoint_*/state.pt"))
    newest.write_bytes(newest.read_bytes()[:1000])
    began, handler = time.time(), signal.getsignal(signal.SIGINT)
    train(config(cache, run, threads=None))
    assert signal.getsignal(signal.SIGINT) is handler
    assert f"{newest.parent.name} is damaged" in (said := capfd.readouterr().err)
    assert "going on from step 6, checkpoint_" in said
    assert [row["ended"] < began for row in rows(run) if row["event"] == "step"] == 6 * [True] + 3 * [False]
    assert_same(run, finished[0])
    assert json.loads((run / "run.json").read_text())["threads"] == 1


@pytest.mark.slow
def test_ctrl_c_ends_a_training_and_the_same_command_goes_on(cache: str, tmp_path: Path) -> None:
    """In half a minute."""
    command = [
        sys.executable, str(JOBS / "train.py"), "--cache", cache, "--run", str(tmp_path / "run"), "--base-channels",
        "2", "--depth", "2", "--epochs", "3", "--batch-size", "3", "--threads", "1", "--checkpoint-every-steps", "2",
    ]  # fmt: skip
    job = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.time() + 120
    while not registered(tmp_path / "run"):
        assert time.time() < deadline
        assert job.poll() is None, "the run ended before it could be interrupted"
        time.sleep(0.02)
    job.send_signal(signal.SIGINT)
    _, said = job.communicate(timeout=60)
    assert job.returncode == 130, said
    assert "train: interrupted; the same command continues where this run stopped" in said.splitlines()
    assert "Traceback" not in said
    again = subprocess.run(command, capture_output=True, text=True, check=True, timeout=200)
    assert json.loads(again.stdout)["steps"] == 9


@pytest.mark.slow
def test_fine_tuning_starts_from_the_model(finished: tuple[Path, dict[str, Any]], cache: str, tmp_path: Path) -> None:
    from unet_ray.engine.train import train

    model = str(finished[0] / "model.safetensors")
    train(config(cache, tmp_path / "tuned", initial_model=model, epochs=1, learning_rate=1e-7, seed=5))
    for name, start in weights(finished[0]).items():
        if "running" not in name and "tracked" not in name:
            torch.testing.assert_close(weights(tmp_path / "tuned")[name], start, rtol=0, atol=1e-5, msg=name)
    with pytest.raises(ModelFileError, match="another network: base_channels 2"):
        train(config(cache, tmp_path / "wider", initial_model=model, base_channels=4))


@pytest.mark.slow
def test_a_full_disk_is_a_sentence_and_room_lets_it_go_on(cache: str, tmp_path: Path) -> None:
    """In half a minute: a job on a disk that holds no checkpoint, and the same command on a larger one."""
    disk = tmp_path / "disk"
    disk.mkdir()

    def job(megabytes: int) -> subprocess.CompletedProcess[str]:
        mount = f"mount -t tmpfs -o size={megabytes}m tmpfs {disk}"
        words = [
            sys.executable, str(JOBS / "train.py"), "--cache", cache, "--run", str(disk / "run"), "--depth", "2",
            "--base-channels", "32", "--epochs", "1", "--batch-size", "3", "--workers", "2", "--threads", "1",
            "--precision", "float32", "--checkpoint-every-steps", "1",
        ]  # fmt: skip
        return subprocess.run(
            ["unshare", "-rm", "sh", "-c", f'{mount} && exec "$@"', "sh", *words],
            capture_output=True, text=True, check=False, timeout=200,
            env={**os.environ, "PYTHONPATH": str(JOBS.parent)},
        )  # fmt: skip

    if subprocess.run(["unshare", "-rm", "true"], check=False, capture_output=True).returncode:
        pytest.skip("mounts a disk of its own, which takes Linux and user namespaces")
    full = job(1)
    assert full.returncode == 2, full.stderr
    said = full.stderr.splitlines()[-1]
    assert said.startswith(f"train: a checkpoint cannot be stored in {disk}/run (")
    assert "No space left on device" in said
    assert said.endswith("run the same command again: it goes on from the newest checkpoint")
    assert "Traceback" not in full.stderr
    roomy = job(64)
    assert roomy.returncode == 0, roomy.stderr


def test_divergence_stops_with_a_sentence(cache: str, ray_cluster: None, tmp_path: Path) -> None:
    from unet_ray.engine.train import train

    sentence = r"training step \d+: .* is (nan|inf), not a finite number \(patches \d.*lower learning rate; there is no"
    with pytest.raises(TrainingDivergedError, match=sentence):
        train(config(cache, tmp_path / "run", optimizer="sgd", schedule="constant", learning_rate=1e30))
    assert [row["step"] for row in rows(tmp_path / "run")] == list(range(len(rows(tmp_path / "run"))))
    assert rows(tmp_path / "run"), "the steps that led there can be looked at"


def test_divergence_tells_of_the_model_that_is_kept() -> None:
    from unet_ray.engine.train_state import Progressed
    from unet_ray.engine.train_worker import kept

    assert kept(Progressed(), "r") == "there is no model yet"
    assert kept(Progressed(best=0.5, best_epoch=0), "r") == "the best model so far is kept in r/model.safetensors"


def test_a_rank_with_other_code_ends_the_training(
    cache: str, ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from unet_ray.engine.train import train

    monkeypatch.setattr("unet_ray.engine.train.own_code", lambda: "0123")
    with pytest.raises(ConfigError, match=r"node \S+ cannot run this: .* the driver's 0123; install the same on every"):
        train(config(cache, tmp_path / "run"))
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_validation_is_what_segmentation_gives(
    finished: tuple[Path, dict[str, Any]], cache: str, write_zarr: Callable[..., str], tmp_path: Path
) -> None:
    """The scores of the best epoch are those of the model file on the same sections, through segment and evaluate."""
    from unet_ray.config.evaluate import EvaluateConfig
    from unet_ray.config.segment import SegmentConfig
    from unet_ray.engine.evaluate import evaluate
    from unet_ray.engine.segment import segment

    run, summary = finished
    sections = [PatchCache(cache).read("validation", n) for n in range(2)]
    volume = write_zarr(tmp_path / "volume.zarr", np.concatenate([s.image for s in sections]))
    labels = write_zarr(tmp_path / "labels.zarr", np.stack([s.label for s in sections]))
    segment(
        SegmentConfig(
            volume=volume, model=str(run / "model.safetensors"), output=str(tmp_path / "out.zarr"), tile_px=16,
            precision="float32", accept_voxel_size=True,
        )
    )  # fmt: skip
    scores = evaluate(EvaluateConfig(prediction=str(tmp_path / "out.zarr"), labels=labels, label_kind="membrane"))
    for name in ("pixel_mismatch", "pixel_error", "dice", "v_rand", "v_info"):
        assert scores[name] == pytest.approx(summary["validation"][name], abs=1e-12), name


def test_a_resume_has_the_threads_of_before_where_they_fit(
    cache: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from unet_ray.engine import train_request as engine
    from unet_ray.engine.machines import Machine

    monkeypatch.setattr(engine, "machines", lambda: [Machine(4, 0), Machine(4, 0)])
    monkeypatch.setattr(engine, "threads_each", lambda workers, gpus_each: 7)
    auto, given = config(cache, tmp_path, workers=2, threads=None), config(cache, tmp_path, workers=2, threads=3)
    assert engine.threads_of(given, {"threads": 2}, 0) == 3
    assert engine.threads_of(auto, {"threads": 4}, 0) == 4
    assert engine.threads_of(auto, {"threads": 8}, 0) == 7
    assert engine.threads_of(auto, {}, 0) == 7


@pytest.mark.usefixtures("ray_cluster")
def test_workers_ask_for_the_memory_that_a_step_takes(
    cache: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from unet_ray.engine import train as engine

    asked: list[dict[str, float]] = []

    class Asked:
        def __init__(self, *_: Any, scaling_config: Any, **__: Any) -> None:
            asked.append(scaling_config.resources_per_worker)

        def fit(self) -> None:
            raise ValueError("asked")

    monkeypatch.setattr(engine, "TorchTrainer", Asked)
    for batch_size, workers in ((1, 1), (7, 1), (7, 2), (1_000_000, 1)):
        with pytest.raises(ValueError, match="asked"):
            engine.train(config(cache, tmp_path / f"{batch_size}-{workers}", batch_size=batch_size, workers=workers))
    one, all_of_them, half, no_more = (each["memory"] for each in asked)
    assert one > PROCESS_BYTES
    # Feature maps grow with the patches of a worker's step, what a process takes without them does not.
    assert (all_of_them - PROCESS_BYTES) > 5 * (one - PROCESS_BYTES)
    assert no_more == all_of_them, "a step takes no more patches than the cache has"
    assert PROCESS_BYTES < half < all_of_them


@pytest.mark.parametrize(
    ("members", "said"), [(1, "--batch-size 4 or --base-channels 16"), (3, "4, --members 3 or --")]
)
def test_who_runs_out_of_memory_hears_what_to_lower(members: int, said: str) -> None:
    from unet_ray.engine.train_worker import TrainPlan, memory_advice

    network = network_config("default", members=members)
    plan = TrainPlan("cache.zarr", "run", TrainSettings(), network, "float32", 1, use_gpu=False, initial_model=None)
    assert said in memory_advice(plan, "it said so")
