"""Job processes interrupted and killed in the middle: the same command continues, and nothing done is touched."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from unet_ray.config.augment import AugmentConfig
from unet_ray.config.recipe import RECIPES
from unet_ray.config.segment import SegmentConfig
from unet_ray.geometry.box import Box
from unet_ray.numerics.phantom import phantom_block

ROOT = Path(__file__).resolve().parents[2]
SHAPE, BLOCKS = (12, 130, 150), 108
# `ray job stop` kills 3 s after SIGTERM; the bound is twice that, so that a busy machine does not fail the test.
GRACE_SECONDS = 6.0


@pytest.fixture
def temporary() -> Iterator[Path]:
    """TMPDIR of the jobs, short enough for Ray's sockets."""
    folder = Path(tempfile.mkdtemp(prefix="ur-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


class Driver:
    """A job's process, in a process group of its own, with its stderr in a file: orphans would hold a pipe open."""

    def __init__(self, said: Path, job: str, flags: tuple[str, ...], temporary: Path) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(temporary)}
        environment.pop("RAY_ADDRESS", None)
        self.said = said
        with open(said, "wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, str(ROOT / "jobs" / f"{job}.py"), *flags],
                stdout=subprocess.DEVNULL, stderr=stderr, start_new_session=True, env=environment,
            )  # fmt: skip

    def wait_for(self, what: Callable[[], Any]) -> None:
        until = time.time() + 120
        while not what():
            assert time.time() < until, "it did not come to that in two minutes"
            assert self.process.poll() is None, self.said.read_text()
            time.sleep(0.005)

    def end(self, number: signal.Signals) -> float:
        """Send a signal to the driver alone, or to its whole group where it kills; seconds to its end."""
        began = time.time()
        if number == signal.SIGKILL:
            os.killpg(self.process.pid, number)
        else:
            self.process.send_signal(number)
        self.process.wait(60)
        return time.time() - began

    def clean_up(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(60)


@pytest.fixture
def start(temporary: Path, tmp_path: Path) -> Iterator[Callable[..., Driver]]:
    """start(job, *flags): a job's process; it and its group are ended after the test."""
    started: list[Driver] = []

    def begin(job: str, *flags: str) -> Driver:
        started.append(Driver(tmp_path / f"stderr-{len(started)}", job, flags, temporary))
        return started[-1]

    yield begin
    for driver in started:
        driver.clean_up()


def alive(pids: set[int]) -> set[int]:
    found = set()
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if state != "Z":
            found.add(pid)
    return found


def descendants(pid: int) -> set[int]:
    parents = {}
    for folder in Path("/proc").iterdir():
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue
    found, new = set[int](), {pid}
    while new:
        new = {child for child, parent in parents.items() if parent in new}
        found |= new
    return found


def assert_gone(family: set[int]) -> None:
    """Ray ends with its driver: nothing goes on writing. Its agents look for their master for a minute or two."""

    def left() -> dict[int, bytes]:
        said = {}
        for pid in alive(family):
            with contextlib.suppress(OSError):
                said[pid] = Path(f"/proc/{pid}/cmdline").read_bytes().strip(b"\0 ")
        return {pid: name for pid, name in said.items() if not name.endswith(b"Agent")}

    until = time.time() + 60
    while left() and time.time() < until:
        time.sleep(0.05)
    assert not left()


def test_segmentation_survives_signals_and_death(
    ray_cluster: None,
    tmp_path: Path,
    temporary: Path,
    start: Callable[..., Driver],
    write_model: Callable[..., str],
    write_zarr: Callable[..., str],
    phantom_image: Callable[..., npt.NDArray[np.uint8]],
    by_plain_loop: Callable[..., Any],
    shards: Callable[..., dict[str, Any]],
    rows: list[dict[str, Any]],
) -> None:
    from unet_ray.engine.segment import segment

    out = tmp_path / "out.zarr"
    given = {
        "volume": write_zarr(tmp_path / "volume.zarr", phantom_image(SHAPE, 2)),
        "model": write_model(tmp_path / "model", "default", base_channels=8),
        "output": str(out), "tile_px": 32, "precision": "float32", "threads": 1, "workers": 1,
    }  # fmt: skip
    flags = [word for key, value in given.items() for word in (f"--{key.replace('_', '-')}", str(value))]
    known: dict[str, Any] = {}

    def done() -> int:
        return len(list((out / "0" / "c").glob("*/*/[0-9]")))

    def shards_are_kept() -> None:
        now = shards(out)
        assert {key: now[key] for key in known} == known
        # A mask without its block's record, the probability, is made again.
        known.update({key: s for key, s in now.items() if f"0/c/{key.rpartition('/c/')[2]}" in now})

    # While Ray starts; its agents then look for their master for a while, but write nothing.
    driver = start("segment", *flags)
    driver.wait_for(lambda: list(temporary.glob("unet_ray-*/session_*/logs/*")))
    seconds = driver.end(signal.SIGINT)
    assert (driver.process.returncode, done()) == (130, 0), driver.said.read_text()
    # Ray's C++ core may hold the interpreter for seconds here, and no Python code can end it before.
    assert seconds < 10
    assert "Traceback" not in driver.said.read_text()
    driver.clean_up()
    # While blocks are made.
    for number in (signal.SIGTERM, signal.SIGKILL):
        before = done()
        driver = start("segment", *flags)
        driver.wait_for(lambda before=before: done() >= before + 8)
        family = descendants(driver.process.pid)
        seconds = driver.end(number)
        assert_gone(family)
        assert before + 8 <= done() < BLOCKS, "it was to be interrupted in the middle"
        shards_are_kept()
        if number == signal.SIGTERM:
            said = driver.said.read_text()
            assert driver.process.returncode == 130, said
            assert seconds < GRACE_SECONDS
            assert "Traceback" not in said
            assert said.count("segment: interrupted; the same command continues") == 1
    left = BLOCKS - done()
    summary = segment(SegmentConfig(**given))
    assert (summary["status"], summary["blocks_written"], summary["blocks_skipped"]) == (
        "complete", left, BLOCKS - left,
    )  # fmt: skip
    assert len(rows) == left
    shards_are_kept()
    by_plain_loop(given["volume"], given["model"], tmp_path / "plain", 32, 0.5)
    assert {k: s.digest for k, s in known.items()} == {k: s.digest for k, s in shards(tmp_path / "plain").items()}


@pytest.mark.slow
def test_augmentation_survives_the_death_of_its_driver(
    ray_cluster: None,
    tmp_path: Path,
    start: Callable[..., Driver],
    write_zarr: Callable[..., str],
    shards: Callable[..., dict[str, Any]],
) -> None:
    from unet_ray.engine.augment import augment

    made = phantom_block(Box.of_shape((4, 160, 160)), 4)
    given = {
        "images": (write_zarr(tmp_path / "i.zarr", made.image),),
        "labels": (write_zarr(tmp_path / "l.zarr", made.membrane * np.uint8(255)),),
        "label_kind": "membrane", "recipe": RECIPES["default"], "variants": 100, "patch_px": 128,
        "patches_per_shard": 4, "validation_sections": ("2",), "workers": 2,
    }  # fmt: skip
    total = 75
    flags = []
    for key, value in {**given, "cache": tmp_path / "cache"}.items():
        if key == "recipe":
            continue  # by the name of the default one
        flags += [f"--{key.replace('_', '-')}", *(value if isinstance(value, tuple) else [str(value)])]

    def done() -> int:
        return len(list((tmp_path / "cache" / "train" / "image" / "c").glob("*/0/0/0")))

    driver = start("augment", *flags)
    driver.wait_for(lambda: done() >= 5)
    family = descendants(driver.process.pid)
    driver.end(signal.SIGKILL)
    assert_gone(family)
    before, there = shards(tmp_path / "cache"), done()
    assert 5 <= there < total, "it was to be killed in the middle"
    records = {key: shard for key, shard in before.items() if key.startswith("train/image")}
    finished = {key.split("/")[3] for key in records}

    summary = augment(AugmentConfig(**given, cache=f"{tmp_path}/cache"))
    assert (summary["patches_skipped"], summary["patches_written"]) == (4 * there, 300 - 4 * there)
    after = shards(tmp_path / "cache")
    for key, shard in before.items():
        if key.split("/")[3] in finished and key.startswith("train"):
            assert after[key] == shard, key
    augment(AugmentConfig(**given, cache=f"{tmp_path}/undisturbed"))
    expected = shards(tmp_path / "undisturbed")
    assert len(expected) == 3 * (total + 1)
    assert {k: s.digest for k, s in after.items()} == {k: s.digest for k, s in expected.items()}


@pytest.mark.slow
def test_two_jobs_on_one_output_do_no_harm(
    tmp_path: Path,
    start: Callable[..., Driver],
    write_model: Callable[..., str],
    write_zarr: Callable[..., str],
    phantom_image: Callable[..., npt.NDArray[np.uint8]],
    by_plain_loop: Callable[..., Any],
    shards: Callable[..., dict[str, Any]],
) -> None:
    volume = write_zarr(tmp_path / "volume.zarr", phantom_image((6, 130, 150), 2))
    model = write_model(tmp_path / "model", "default", base_channels=4)
    out = tmp_path / "out.zarr"
    flags = ["--volume", volume, "--model", model, "--output", str(out), "--tile-px", "32", "--precision", "float32"]
    # On a new output: one claims it; the other continues it, or is told that it came in the same moment.
    both = [start("segment", *flags, "--threads", threads, "--workers", "1") for threads in ("1", "2")]
    ends = [driver.process.wait(240) for driver in both]
    said = [driver.said.read_text() for driver in both]
    assert 0 in ends, said
    for end, words in zip(ends, said, strict=True):
        assert end == 0 or (end == 2 and "another job has just started output" in words), words
    # On one that is begun: both do what is missing, and write the same.
    for shard in list((out / "0" / "c").glob("*/*/[0-9]"))[::2]:
        shard.unlink()
    both = [start("segment", *flags, "--workers", "1") for _ in range(2)]
    assert [driver.process.wait(240) for driver in both] == [0, 0], [driver.said.read_text() for driver in both]
    by_plain_loop(volume, model, tmp_path / "plain", 32, 0.5)
    expected = shards(tmp_path / "plain")
    found = shards(out)
    assert {key: found[key].digest for key in expected} == {key: shard.digest for key, shard in expected.items()}
    assert not list(out.rglob(".put-*"))
