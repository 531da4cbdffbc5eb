"""Workers killed, drivers interrupted and disks filled in the middle: in the end the same cache, byte by byte."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unet_ray.config.augment import AugmentConfig
from unet_ray.config.recipe import RECIPES
from unet_ray.engine.augment import augment
from unet_ray.engine.past_runs import RUNS
from unet_ray.geometry.box import Box
from unet_ray.numerics.phantom import phantom_block
from unet_ray.storage.objects import UNLISTED
from unet_ray.storage.patch_cache import PatchCache

ROOT = Path(__file__).resolve().parents[2]
PATCHES, PER_SHARD, SHARDS = 300, 4, 75

# A job on a Ray of five workers, whatever the machine has: python -c FIVE FOLDER FLAGS...
FIVE = """
import sys
import unet_ray.engine
import ray
ray.init(
    address="local", num_cpus=5, include_dashboard=False, object_store_memory=256 << 20, logging_level="ERROR",
    log_to_driver=False, _temp_dir=sys.argv[1],
)
from jobs.augment import main
sys.exit(main(sys.argv[2:]))
"""


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory, write_zarr: Callable[..., str]) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("kills")
    made = phantom_block(Box.of_shape((4, 160, 160)), 4)
    return {
        "images": (write_zarr(folder / "i.zarr", made.image),),
        "labels": (write_zarr(folder / "l.zarr", made.membrane * np.uint8(255)),),
        "label_kind": "membrane", "variants": 100, "patch_px": 128, "patches_per_shard": PER_SHARD,
        "validation_sections": ("2",),
    }  # fmt: skip


def flags(asked: dict[str, Any], cache: Path, **more: object) -> list[str]:
    found = []
    for key, value in {**asked, "cache": cache, **more}.items():
        words = [str(word) for word in value] if isinstance(value, tuple) else [str(value)]
        found += [f"--{key.replace('_', '-')}", *words]
    return found


def whole(cache: Path) -> dict[str, str]:
    """Digest of every file of a cache, metadata included, but of no picture, note of a run, or what the dead left."""
    return {
        str(file.relative_to(cache)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(cache.rglob("*"))
        if file.is_file() and file.suffix != ".png" and file.name != RUNS and not file.name.startswith(UNLISTED)
    }


@pytest.fixture(scope="module")
def plain(
    tmp_path_factory: pytest.TempPathFactory, asked: dict[str, Any], patches_by_plain_loop: Callable[..., PatchCache]
) -> dict[str, str]:
    """The cache made block by block in this process, last block first."""
    path = tmp_path_factory.mktemp("plain") / "cache"
    patches_by_plain_loop(AugmentConfig(**asked, recipe=RECIPES["default"], cache=str(path)), backwards=True)
    found = whole(path)
    assert sum("train/image/c/" in key for key in found) == SHARDS
    return found


@pytest.fixture
def temporary() -> Iterator[str]:
    """Ray's folder, short enough for its sockets."""
    folder = tempfile.mkdtemp(prefix="ur-", dir="/tmp")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def records(cache: Path) -> int:
    return len(list((cache / "train" / "image" / "c").glob("*/0/0/0")))


def kill_workers(cache: Path, at: tuple[int, ...], ray_actors: Callable[[], list[int]], seen: set[int]) -> list[int]:
    """SIGKILL one worker when so many shards are there, and another one later; shards there at each kill."""
    killed, gone, until = list[int](), set[int](), time.time() + 90
    while len(killed) < len(at) and time.time() < until:
        actors = set(ray_actors()) - gone
        seen |= actors
        if actors and records(cache) >= at[len(killed)]:
            gone.add(max(actors))
            os.kill(max(actors), signal.SIGKILL)
            killed.append(records(cache))
        time.sleep(0.01)
    return killed


def test_two_of_five_workers_killed_and_then_the_driver_interrupted(
    ray_cluster: None,
    asked: dict[str, Any],
    plain: dict[str, str],
    tmp_path: Path,
    temporary: str,
    ray_actors: Callable[[], list[int]],
) -> None:
    path, seen = tmp_path / "cache", set[int]()
    with open(tmp_path / "stderr", "wb") as stderr:
        driver = subprocess.Popen(
            [sys.executable, "-c", FIVE, temporary, *flags(asked, path, workers=5)],
            stdout=subprocess.DEVNULL, stderr=stderr, cwd=ROOT,
        )  # fmt: skip
    try:
        killed = kill_workers(path, (3, 12), ray_actors, seen)
        while records(path) < 24 and driver.poll() is None:
            time.sleep(0.005)
        driver.send_signal(signal.SIGTERM)
        driver.wait(60)
    finally:
        driver.kill()
    assert driver.returncode == 130, (tmp_path / "stderr").read_text()
    there = records(path)
    assert len(killed) == 2
    assert len(seen) >= 5
    assert 24 <= there < SHARDS, "it was to be interrupted in the middle"
    # Two workers finish it, and one of them is killed.
    killer = threading.Thread(target=lambda: killed.extend(kill_workers(path, (there + 4,), ray_actors, set())))
    killer.start()
    summary = augment(AugmentConfig(**asked, recipe=RECIPES["default"], cache=str(path), workers=2))
    killer.join()
    assert len(killed) == 3
    assert summary["status"] == "complete"
    assert summary["patches_skipped"] == there * PER_SHARD
    assert summary["patches_written"] + summary["patches_skipped"] == PATCHES
    assert whole(path) == plain


# Inside a mount namespace: python -c FULL DISK FOLDER FLAGS..., on a disk of its own.
FULL = """
import contextlib, io, json, os, sys, threading, time
from pathlib import Path
import unet_ray.engine
import ray
from jobs.augment import main
sys.path.insert(0, "tests/engine")
from test_augment_kills import records, whole
disk, found = Path(sys.argv[1]), []

def fill():
    with contextlib.suppress(OSError), open(disk / "ballast", "wb", buffering=0) as ballast:
        while True:
            ballast.write(bytes(4096))

def job():
    said = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
        code = main(sys.argv[3:])
    found.append({"code": code, "said": said.getvalue(), "files": whole(disk / "cache"), "ray": ray.is_initialized()})

def fill_in_the_middle():
    while records(disk / "cache") < 10:
        time.sleep(0.01)
    fill()

fill()
with open(disk / "ballast", "r+b") as ballast:
    ballast.truncate(os.path.getsize(disk / "ballast") - (2 << 20))
job()
(disk / "ballast").unlink()
ray.init(
    address="local", num_cpus=2, include_dashboard=False, object_store_memory=256 << 20, logging_level="ERROR",
    log_to_driver=False, _temp_dir=sys.argv[2],
)
threading.Thread(target=fill_in_the_middle, daemon=True).start()
job()
ray.shutdown()  # or Ray's own lines of what died come after the last one
print(json.dumps(found), flush=True)
"""


def test_a_disk_too_small_and_one_that_fills_up(
    asked: dict[str, Any], plain: dict[str, str], tmp_path: Path, temporary: str
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = f"mount -t tmpfs -o size=32m tmpfs {disk}"
    try:
        subprocess.run(["unshare", "-rm", "sh", "-c", mount], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounts a disk of its own, which takes Linux and user namespaces")
    words = [sys.executable, "-c", FULL, str(disk), temporary, *flags(asked, disk / "cache")]
    ended = subprocess.run(
        ["unshare", "-rm", "sh", "-c", f'{mount} && exec "$@"', "sh", *words],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=200,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    refused, filled = json.loads(ended.stdout.splitlines()[-1])
    assert (refused["code"], refused["files"], refused["ray"]) == (2, {}, False)
    assert len(refused["said"].splitlines()) == 1
    assert refused["said"].startswith(f"augment: {disk}/cache needs about ")
    assert "for 300 patches in 75 shards and 1 validation section but has 2.1 MB free" in refused["said"]
    assert filled["code"] == 2
    # One sentence, from the first block that failed, and not one per block after three tries each.
    why, remedy = filled["said"].splitlines()[-1].split("; ", 1)
    assert why == f"augment: {disk}/cache cannot be written (No space left on device)"
    assert remedy == "free some room and run the same command again; what is complete stays complete"
    done = {key.split("/")[3] for key in filled["files"] if key.startswith("train/image/c/")}
    assert 10 <= len(done) < SHARDS
    complete = {key for key in plain if key.startswith("train/") and "/c/" in key and key.split("/")[3] in done}
    assert len(complete) == 3 * len(done)
    assert {key: filled["files"][key] for key in complete} == {key: plain[key] for key in complete}
