"""The patch cache on real Ray: the same bytes as a plain loop, for any number of workers, kills and extensions."""

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from unet_ray.config.augment import AugmentConfig
from unet_ray.config.recipe import RECIPES, Recipe
from unet_ray.engine.augment import _contact_sheet, augment
from unet_ray.engine.augment_plan import prepare
from unet_ray.engine.past_runs import RUNS
from unet_ray.errors import CacheMismatchError, ConfigError, LabelError, VolumeError
from unet_ray.geometry.block_set import BlockSet
from unet_ray.geometry.box import Box
from unet_ray.numerics.phantom import phantom_block
from unet_ray.storage.patch_cache import CONTACT_SHEET, PatchCache

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


@pytest.fixture(scope="module")
def plain(folder: Path, asked: dict[str, Any], patches_by_plain_loop: Callable[..., PatchCache]) -> dict[str, str]:
    patches_by_plain_loop(AugmentConfig(**asked, cache=f"{folder}/plain"))
    return whole(folder / "plain")


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


def whole(cache: Path) -> dict[str, str]:
    """Digest of every file of a cache, metadata included, but of no picture, nothing set aside, nor what runs took."""
    return {
        str(file.relative_to(cache)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(cache.rglob("*"))
        if file.is_file() and file.suffix not in (".png", ".damaged") and file.name != RUNS
    }


def said(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The job's own lines on stderr since the last call, without its progress."""
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("augment: ") and "%" not in line]


def test_two_workers_give_the_bytes_of_the_plain_loop(
    made: tuple[Path, dict[str, Any], set[int]], plain: dict[str, str]
) -> None:
    path, summary, pids = made
    # Not trivial: two processes other than this one, many shards, the last one part-filled.
    assert PatchCache(str(path)).require()["made_with"]["voxel_size_nm"] == [50, 4, 4]
    assert len(pids) == 2
    assert os.getpid() not in pids
    assert PATCHES % PER_SHARD
    assert sum("/c/" in key for key in plain) == ARRAYS * (SHARDS + VALIDATION)
    assert len([key for key in plain if key.endswith("zarr.json")]) == 3 + 2 * ARRAYS
    assert len({plain[f"train/image/c/{n}/0/0/0"] for n in range(SHARDS)}) == SHARDS
    assert whole(path) == plain
    wanted = {"status": "complete", "patches": PATCHES, "patches_written": PATCHES, "patches_skipped": 0}
    wanted["bytes_written"] = sum(file.stat().st_size for file in path.glob("*/*/c/**/*") if file.is_file())
    assert {key: summary[key] for key in wanted} == wanted
    assert summary["bytes_forecast"] == pytest.approx(summary["bytes_written"], rel=0.1)
    assert summary["patches_per_second"] > 0
    assert (path / CONTACT_SHEET).read_bytes().startswith(b"\x89PNG")


def test_more_variants_extend_the_cache(
    ray_cluster: None,
    asked: dict[str, Any],
    cache: Path,
    tmp_path: Path,
    rows: list[dict[str, Any]],
    shards: Callable[..., dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
    patches_by_plain_loop: Callable[..., PatchCache],
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
    wanted["bytes_written"] = sum((cache / key).stat().st_size for key in after.keys() - before.keys())
    wanted["bytes_written"] += sum((cache / key).stat().st_size for key in before if after[key] != before[key])
    assert {key: summary[key] for key in wanted} == wanted
    assert summary["bytes_forecast"] == pytest.approx(summary["bytes_written"], rel=0.1)
    # Of what is done, nothing is forecast.
    assert said(capsys)[0].startswith(f"augment: {patches - kept} patches in 4 shards, about ")
    patches_by_plain_loop(AugmentConfig(**more, cache=f"{tmp_path}/at-once"))
    assert whole(cache) == whole(tmp_path / "at-once")
    # Fewer variants later: what is there stays.
    fewer = augment(AugmentConfig(**asked, cache=str(cache)))
    assert (fewer["patches"], fewer["patches_written"]) == (patches, 0)
    assert shards(cache) == after


def test_blocks_that_others_finish_are_counted(
    ray_cluster: None,
    asked: dict[str, Any],
    cache: Path,
    rows: list[dict[str, Any]],
    shards: Callable[..., dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A killed worker's last blocks are there, but nobody told: who does its work again finds them."""
    before, listed = shards(cache), PatchCache.done_blocks
    monkeypatch.setattr(
        PatchCache,
        "done_blocks",
        lambda self, plan: BlockSet(plan.blocks, (b for b in listed(self, plan) if b not in (1, 5, 6, 20))),
    )
    summary = augment(AugmentConfig(**asked, cache=str(cache), workers=1))
    assert {row["block"]: row["units"] for row in rows} == {1: 0, 5: 0, 6: 0, 20: 0}
    assert (summary["patches_written"], summary["patches_skipped"]) == (3 * PER_SHARD, PATCHES - 3 * PER_SHARD)
    assert shards(cache) == before


def test_contact_sheet_shows_random_variants_of_spread_sections(
    made: tuple[Path, Any, Any], asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[list[str]] = []

    def draws(images: Any, labels: Any, weights: Any, captions: list[str]) -> bytes:
        assert len(images) == len(labels) == len(weights) == len(captions)
        shown.append(captions)
        return b""

    monkeypatch.setattr("unet_ray.engine.augment.contact_sheet_png", draws)
    for seed in (0, 0, 1):
        plan, _ = prepare(AugmentConfig(**asked | {"seed": seed}, cache=str(made[0])))
        _contact_sheet(PatchCache(str(made[0])), plan)
    first, again, other = shown
    assert first == again != other
    stacks, sections, variants = zip(
        *(c.replace("section", "").replace("variant", "").split() for c in first), strict=True
    )
    assert len(set(first)) == len(first) == 10
    assert set(zip(stacks, sections, strict=True)) == {
        ("images0", "0"), ("images0", "2"), ("images0", "3"), ("images0", "5"), ("images1", "0"), ("images1", "2"),
    }  # fmt: skip
    assert len(set(variants)) > 5


@pytest.mark.parametrize("verify", [False, True])
def test_finished_cache_starts_no_cluster(
    asked: dict[str, Any],
    cache: Path,
    verify: bool,
    monkeypatch: pytest.MonkeyPatch,
    shards: Callable[..., dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("unet_ray.engine.augment.cluster", lambda: pytest.fail("a cluster was started"))
    before = shards(cache)
    summary = augment(AugmentConfig(**asked, cache=str(cache), verify=verify))
    assert (summary["status"], summary["patches_written"], summary["patches_skipped"]) == ("complete", 0, PATCHES)
    assert "nothing to do" in summary["note"]
    assert summary["seconds"] < 5
    assert shards(cache) == before
    if verify:
        assert (summary["shards_checked"], summary["blocks_damaged"]) == (ARRAYS * (SHARDS + VALIDATION), 0)
        assert said(capsys) == [f"augment: 111 shards of 37 blocks in {cache} checked, all whole"]


def test_verify_repairs_exactly_what_is_damaged(
    ray_cluster: None,
    asked: dict[str, Any],
    cache: Path,
    plain: dict[str, str],
    rows: list[dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    (cache / "train/label/c/3/0/0").write_bytes(b"")
    (cache / "train/image/c/5/0/0/0").unlink()
    (cache / "train/weight/c/6/0/0").unlink()  # its record says that it is there
    weight = cache / "train/weight/c/8/0/0"
    data = bytearray(weight.read_bytes())
    data[len(data) // 3] ^= 1
    weight.write_bytes(data)
    image = cache / "validation/image/c/1/0/0/0"
    image.write_bytes(image.read_bytes()[:-40])
    summary = augment(AugmentConfig(**asked, cache=str(cache), verify=True))
    assert {row["block"] for row in rows} == {1, *(VALIDATION + n for n in (3, 5, 6, 8))}
    assert (summary["patches_written"], summary["patches_skipped"]) == (4 * PER_SHARD, PATCHES - 4 * PER_SHARD)
    assert (summary["shards_checked"], summary["blocks_damaged"]) == (ARRAYS * (SHARDS + VALIDATION - 1), 4)
    *lines, forecast = said(capsys)
    assert lines == [
        *(f"augment: train shard {n} of {cache} is damaged, made again" for n in (3, 6, 8)),
        f"augment: validation shard 1 of {cache} is damaged, made again",
        f"augment: 108 shards of 36 blocks in {cache} checked, 4 blocks with damage",
    ]
    assert forecast.startswith("augment: 28 patches in 4 shards and 1 validation section, about ")
    assert whole(cache) == plain


def test_a_record_that_was_edited_is_noticed(
    asked: dict[str, Any], cache: Path, shards: Callable[..., dict[str, Any]]
) -> None:
    before = shards(cache)
    root = cache / "zarr.json"
    root.write_text(root.read_text().replace('"seed": 0', '"seed": 1'))
    for seed in (0, 1):
        with pytest.raises(CacheMismatchError, match=r"does not say any more what made it.*put the file back"):
            augment(AugmentConfig(**asked | {"seed": seed}, cache=str(cache), verify=True))
    assert shards(cache) == before
    assert '"seed": 1' in root.read_text()


def test_held_out_sections_are_in_no_patch(
    tmp_path: Path, write_zarr: Callable[..., str], patches_by_plain_loop: Callable[..., PatchCache]
) -> None:
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
    cache = patches_by_plain_loop(AugmentConfig(**asked, cache=f"{tmp_path}/cache"))
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
