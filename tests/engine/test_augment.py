"""The patch cache on real Ray: the same bytes as a plain loop, for any number of workers, kills and extensions."""

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from unet_ray.config.augment import AugmentConfig
from unet_ray.config.recipe import RECIPES, Recipe
from unet_ray.engine.augment import PICTURE, augment
from unet_ray.engine.augment_plan import prepare
from unet_ray.engine.augment_worker import AugmentWorker
from unet_ray.errors import CacheMismatchError, ConfigError, LabelError, VolumeError
from unet_ray.geometry.box import Box
from unet_ray.numerics.phantom import phantom_block
from unet_ray.storage.patch_cache import PatchCache

SECTIONS, VALIDATION, TRAINING = 9, 2, 6
VARIANTS, PER_SHARD = 40, 7
PATCHES = VARIANTS * TRAINING
SHARDS, ARRAYS = 35, 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("augment")


@pytest.fixture(scope="module")
def asked(folder: Path, write_zarr: Callable[..., str]) -> dict[str, Any]:
    """Two stacks of 6 and 3 sections; section 1 of each is for validation, section 4 of the first not used."""
    images, labels = [], []
    for stack, (first, depth) in enumerate(((0, 6), (20, 3))):
        made = phantom_block(Box((first, 0, 0), (first + depth, 96, 80)), 4)
        if stack == 0:  # with a voxel size, which goes into the fingerprint
            sizes = {f"PhysicalSize{axis}": size for axis, size in zip("ZYX", (50, 4, 4), strict=True)}
            units = {f"PhysicalSize{axis}Unit": "nm" for axis in "ZYX"}
            tifffile.imwrite(folder / "images0.ome.tif", made.image, metadata={"axes": "ZYX", **sizes, **units})
            images.append(str(folder / "images0.ome.tif"))
        else:
            images.append(write_zarr(folder / f"images{stack}.zarr", made.image))
        labels.append(write_zarr(folder / f"labels{stack}.zarr", made.membrane * np.uint8(255)))
    return {
        "images": tuple(images),
        "labels": tuple(labels),
        "label_kind": "membrane",
        "recipe": RECIPES["default"],
        "variants": VARIANTS,
        "patch_px": 48,
        "patches_per_shard": PER_SHARD,
        "validation_sections": ("1", "7"),
        "exclude_sections": ("4",),
    }


def by_plain_loop(asked: dict[str, Any], path: Path) -> PatchCache:
    """The cache made block by block in this process."""
    cache = PatchCache(str(path))
    plan, made_with = prepare(AugmentConfig(**asked, cache=str(path)))
    cache.create_or_extend(plan.cache, made_with)
    worker = AugmentWorker(cache, plan)
    for block in range(plan.cache.validation + plan.cache.shards):
        worker.write(block, worker.compute(block, worker.read(block)))
    return cache


@pytest.fixture(scope="module")
def plain(folder: Path, asked: dict[str, Any], shards: Callable[..., dict[str, Any]]) -> dict[str, str]:
    by_plain_loop(asked, folder / "plain")
    return digests(shards(folder / "plain"))


@pytest.fixture(scope="module")
def made(
    ray_cluster: None, folder: Path, asked: dict[str, Any], module_rows: Callable[..., Any]
) -> tuple[Path, dict[str, Any], set[int]]:
    """A cache by two workers, its summary and the workers' pids."""
    with module_rows() as rows:
        summary = augment(AugmentConfig(**asked, cache=f"{folder}/made", workers=2))
    return folder / "made", summary, {row["pid"] for row in rows}


@pytest.fixture
def cache(made: tuple[Path, Any, Any], tmp_path: Path) -> Path:
    """A copy of the finished cache, times included."""
    shutil.copytree(made[0], tmp_path / "cache", copy_function=shutil.copy2)
    return tmp_path / "cache"


def digests(found: dict[str, Any]) -> dict[str, str]:
    return {key: shard.digest for key, shard in found.items()}


def test_two_workers_give_the_bytes_of_the_plain_loop(
    made: tuple[Path, dict[str, Any], set[int]], plain: dict[str, str], shards: Callable[..., dict[str, Any]]
) -> None:
    path, summary, pids = made
    # Not trivial: two processes other than this one, many shards, the last one part-filled.
    assert PatchCache(str(path)).require()["made_with"]["voxel_size_nm"] == [50, 4, 4]
    assert len(pids) == 2
    assert os.getpid() not in pids
    assert PATCHES % PER_SHARD
    assert len(plain) == ARRAYS * (SHARDS + VALIDATION)
    assert len({plain[f"train/image/c/{n}/0/0/0"] for n in range(SHARDS)}) == SHARDS
    assert digests(shards(path)) == plain
    wanted = {"status": "complete", "patches": PATCHES, "patches_written": PATCHES, "patches_skipped": 0}
    assert {key: summary[key] for key in wanted} == wanted
    assert summary["patches_per_second"] > 0
    assert (path / PICTURE).read_bytes().startswith(b"\x89PNG")


def test_killed_actor_costs_nothing(
    ray_cluster: None,
    asked: dict[str, Any],
    plain: dict[str, str],
    tmp_path: Path,
    shards: Callable[..., dict[str, Any]],
    ray_actors: Callable[[], list[int]],
) -> None:
    path, killed = tmp_path / "cache", list[int]()

    def kill_one_in_the_middle() -> None:
        until = time.time() + 60
        while time.time() < until and not killed:
            there, actors = len(list((path / "train" / "image" / "c").glob("*/0/0/0"))), ray_actors()
            if there >= 3 and actors:
                os.kill(actors[-1], signal.SIGKILL)
                killed.append(there)
            time.sleep(0.01)

    killer = threading.Thread(target=kill_one_in_the_middle)
    killer.start()
    summary = augment(AugmentConfig(**asked, cache=str(path), workers=2))
    killer.join()
    assert killed
    assert killed[0] < SHARDS - 3
    assert summary["status"] == "complete"
    assert digests(shards(path)) == plain


def test_more_variants_extend_the_cache(
    ray_cluster: None,
    asked: dict[str, Any],
    cache: Path,
    tmp_path: Path,
    rows: list[dict[str, Any]],
    shards: Callable[..., dict[str, Any]],
) -> None:
    before, more = shards(cache), asked | {"variants": VARIANTS + 4}
    summary = augment(AugmentConfig(**more, cache=str(cache), workers=1))
    assert len({row["pid"] for row in rows}) == 1
    after = shards(cache)
    part_filled = f"/c/{SHARDS - 1}/"
    for key, shard in before.items():
        assert (after[key] == shard) != (key.startswith("train/") and part_filled in key), key
    kept = (SHARDS - 1) * PER_SHARD
    patches = (VARIANTS + 4) * TRAINING
    wanted = {"patches": patches, "patches_skipped": kept, "patches_written": patches - kept}
    assert {key: summary[key] for key in wanted} == wanted
    by_plain_loop(more, tmp_path / "at-once")
    assert digests(after) == digests(shards(tmp_path / "at-once"))
    # Fewer variants later: what is there stays.
    fewer = augment(AugmentConfig(**asked, cache=str(cache)))
    assert (fewer["patches"], fewer["patches_written"]) == (patches, 0)
    assert shards(cache) == after


def test_finished_cache_starts_no_cluster(
    asked: dict[str, Any],
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    shards: Callable[..., dict[str, Any]],
) -> None:
    monkeypatch.setattr("unet_ray.engine.augment.cluster", lambda: pytest.fail("a cluster was started"))
    before = shards(cache)
    summary = augment(AugmentConfig(**asked, cache=str(cache)))
    assert (summary["status"], summary["patches_written"], summary["patches_skipped"]) == ("complete", 0, PATCHES)
    assert "nothing to do" in summary["note"]
    assert summary["seconds"] < 5
    assert shards(cache) == before


def test_verify_repairs_exactly_what_is_damaged(
    ray_cluster: None,
    asked: dict[str, Any],
    cache: Path,
    plain: dict[str, str],
    rows: list[dict[str, Any]],
    shards: Callable[..., dict[str, Any]],
) -> None:
    (cache / "train/label/c/3/0/0").write_bytes(b"")
    (cache / "train/image/c/5/0/0/0").unlink()
    weight = cache / "train/weight/c/8/0/0"
    data = bytearray(weight.read_bytes())
    data[len(data) // 3] ^= 1
    weight.write_bytes(data)
    image = cache / "validation/image/c/1/0/0/0"
    image.write_bytes(image.read_bytes()[:-40])
    summary = augment(AugmentConfig(**asked, cache=str(cache), verify=True))
    assert {row["block"] for row in rows} == {1, *(VALIDATION + n for n in (3, 5, 8))}
    assert summary["patches_written"] == 3 * PER_SHARD
    assert digests(shards(cache)) == plain


def test_held_out_sections_are_in_no_patch(tmp_path: Path, write_zarr: Callable[..., str]) -> None:
    # Each section is one grey level of its own, and nothing changes grey levels: a patch tells its section.
    sections = np.arange(SECTIONS, dtype=np.uint8)
    grey = 20 * sections + 10
    images = np.broadcast_to(grey[:, None, None], (SECTIONS, 40, 40))
    labels = np.zeros_like(images)
    labels[:, 20] = 255
    asked = {
        "images": (write_zarr(tmp_path / "i.zarr", images[:6]), write_zarr(tmp_path / "j.zarr", images[6:])),
        "labels": (write_zarr(tmp_path / "k.zarr", labels[:6]), write_zarr(tmp_path / "l.zarr", labels[6:])),
        "label_kind": "membrane",
        "recipe": Recipe(),
        "variants": 3,
        "patch_px": 16,
        "patches_per_shard": 4,
        "validation_sections": ("1:9:6",),
        "exclude_sections": ("4",),
    }
    cache = by_plain_loop(asked, tmp_path / "cache")
    plan, _ = prepare(AugmentConfig(**asked, cache=str(tmp_path / "cache")))
    drawn = [plan.drawn(patch) for patch in range(plan.cache.patches)]
    counted = [d.section + (0, 6)[d.stack] for d in drawn]
    assert sorted(counted) == sorted(3 * [0, 2, 3, 5, 6, 8])
    for number, section in enumerate(counted):
        image = cache.read("train", number).image
        assert (image == grey[section]).all(), number
    assert [int(cache.read("validation", n).image.mean()) for n in range(2)] == [grey[1], grey[7]]


def test_refusals_leave_the_cache_alone(
    asked: dict[str, Any], cache: Path, tmp_path: Path, shards: Callable[..., dict[str, Any]]
) -> None:
    before = shards(cache)

    def refused(kind: type[Exception], words: str, **changed: Any) -> None:
        with pytest.raises(kind, match=words):
            augment(AugmentConfig(**asked | {"cache": str(cache)} | changed))
        assert shards(cache) == before

    refused(CacheMismatchError, r"was made with seed 0 \(now 1\)", seed=1)
    refused(CacheMismatchError, "was made with .*patch_px 48", patch_px=32)
    refused(CacheMismatchError, "sections.train/0/1", validation_sections=("7",))
    refused(ConfigError, "nearest are 32 and 48", patch_px=40, overwrite=True)
    refused(ConfigError, "both --validation-sections and --exclude-sections", exclude_sections=("1",))
    refused(ConfigError, "asks for section 9", validation_sections=("9",))
    refused(ConfigError, "leave at least one section for training", exclude_sections=("0:1", "2:7", "8"))
    refused(ConfigError, "names 2 stacks and --labels 1", labels=asked["labels"][:1], overwrite=True)
    refused(LabelError, "have shape", labels=asked["labels"][::-1], overwrite=True)
    refused(LabelError, "hold no|label", label_kind="instances", labels=asked["images"], overwrite=True)
    refused(VolumeError, "cannot find", images=(f"{tmp_path}/no.tif", asked["images"][1]), overwrite=True)
    refused(VolumeError, "is not a patch cache", cache=str(tmp_path), overwrite=True)
