"""What a cache will take is told beforehand, and a disk without room is refused with nothing touched."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from hypothesis import given
from hypothesis import strategies as st

from unet_ray.config.augment import AugmentConfig
from unet_ray.config.recipe import RECIPES
from unet_ray.engine.augment import augment
from unet_ray.engine.augment_forecast import MOST, forecast, sample, size
from unet_ray.engine.augment_plan import AugmentPlan, prepare
from unet_ray.engine.augment_worker import AugmentWorker
from unet_ray.errors import LabelError, TargetError, VolumeError
from unet_ray.geometry.block_set import BlockSet
from unet_ray.geometry.box import Box
from unet_ray.numerics.phantom import phantom_block
from unet_ray.storage.local_objects import LocalObjects
from unet_ray.storage.open_objects import open_objects
from unet_ray.storage.patch_cache import PatchCache

PER_SHARD = 8


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory, write_zarr: Callable[..., str]) -> dict[str, Any]:
    """Nine sections, of which the last three are all but empty of membrane, so that they compress otherwise."""
    folder = tmp_path_factory.mktemp("forecast")
    made = phantom_block(Box.of_shape((9, 128, 128)), 4)
    labels = made.membrane * np.uint8(255)
    labels[6:, 8:] = 0
    return {
        "images": (write_zarr(folder / "i.zarr", made.image),),
        "labels": (write_zarr(folder / "l.zarr", labels),),
        "label_kind": "membrane", "recipe": RECIPES["default"], "variants": 25, "patch_px": 64,
        "patches_per_shard": PER_SHARD, "validation_sections": ("2", "7"),
    }  # fmt: skip


def begun(asked: dict[str, Any], path: Path) -> tuple[PatchCache, AugmentPlan]:
    cache = PatchCache(str(path))
    plan, made_with = prepare(AugmentConfig(**asked, cache=str(path)))
    cache.create_or_extend(plan.cache, made_with, plan.sources())
    return cache, plan


def make(cache: PatchCache, plan: AugmentPlan, blocks: range) -> int:
    """Make blocks in this process; their bytes on the disk."""
    worker = AugmentWorker(cache, plan)
    for block in blocks:
        worker.write(block, worker.encode(block, worker.compute(block, None)))
    return cache.bytes_of(plan.cache, BlockSet(plan.cache.blocks, blocks))


@pytest.mark.parametrize("recipe", ["default", "notebook", "paper"])
def test_forecast_is_within_a_tenth(asked: dict[str, Any], tmp_path: Path, recipe: str) -> None:
    asked = asked | {"recipe": RECIPES[recipe], "for_preset": "paper", "patch_px": 68, "context_sections": 1}
    cache, plan = begun(asked, tmp_path / "cache")
    told = forecast(cache, plan, BlockSet(plan.cache.blocks))
    assert (told.patches, told.shards, told.sections) == (175, 22, 2)
    written = make(cache, plan, range(plan.cache.blocks))
    assert told.bytes == pytest.approx(written, rel=0.1)
    assert written < told.bytes_needed < 1.5 * written


def test_what_is_done_is_not_forecast(asked: dict[str, Any], tmp_path: Path) -> None:
    cache, plan = begun(asked, tmp_path / "cache")
    make(cache, plan, range(15))
    told = forecast(cache, plan, cache.done_blocks(plan.cache))
    assert (told.patches, told.shards, told.sections) == (175 - 13 * PER_SHARD, 22 - 13, 0)
    assert told.bytes == pytest.approx(make(cache, plan, range(15, plan.cache.blocks)), rel=0.1)
    # More variants: of the old last shard, which was part-filled, all patches.
    more, _ = prepare(AugmentConfig(**asked | {"variants": 30}, cache=cache.path))
    told = forecast(cache, more, cache.done_blocks(more.cache))
    assert (told.patches, told.shards, told.sections) == (210 - 21 * PER_SHARD, 27 - 21, 0)
    # A validation section alone.
    told = forecast(cache, plan, BlockSet(plan.cache.blocks, set(range(plan.cache.blocks)) - {1}))
    assert (told.patches, told.shards, told.sections) == (0, 0, 1)
    assert told.bytes == pytest.approx(cache.bytes_of(plan.cache, BlockSet(plan.cache.blocks, [1])), rel=0.1)


@given(st.integers(1, 300), st.integers(1, 400))
def test_sample_is_of_few_spread_sections(variants: int, sections: int) -> None:
    patches = list(sample(variants * sections, sections))
    assert len(set(patches)) == len(patches) > 0
    assert all(0 <= patch < variants * sections for patch in patches)
    chosen = sorted({patch % sections for patch in patches})
    assert len(chosen) == min(8, sections)
    assert max(np.diff([*chosen, sections])) <= -(-sections // len(chosen))
    assert len(patches) == min(variants, -(-MOST // len(chosen))) * len(chosen)


def files(path: Path) -> dict[Path, tuple[bytes, int]]:
    return {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in path.rglob("*") if file.is_file()}


@pytest.fixture
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    def started() -> None:
        raise RuntimeError("a cluster was started")

    monkeypatch.setattr("unet_ray.engine.augment.cluster", started)


def test_a_disk_without_room_is_refused_and_nothing_touched(
    asked: dict[str, Any],
    tmp_path: Path,
    no_cluster: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cache, plan = begun(asked, tmp_path / "cache")
    held = make(cache, plan, range(15))
    config, before = AugmentConfig(**asked, cache=cache.path), files(tmp_path)
    overwriting = config.model_copy(update={"overwrite": True})
    need = forecast(cache, plan, cache.done_blocks(plan.cache)).bytes_needed
    need_anew = forecast(cache, plan, BlockSet(plan.cache.blocks)).bytes_needed
    everything = sum(len(data) for data, _ in before.values())
    assert held < everything

    def free(count: int) -> None:
        monkeypatch.setattr(LocalObjects, "free_bytes", lambda self: count)

    free(need - 1)
    with pytest.raises(
        TargetError,
        match=rf"^{cache.path} needs about {size(need)} for 71 patches in 9 shards but has {size(need - 1)} free; "
        "free some room, choose another path or ask for fewer --variants$",
    ):
        augment(config)
    assert files(tmp_path) == before
    free(need_anew - everything - 1)
    with pytest.raises(TargetError, match="for 175 patches in 22 shards and 2 validation sections but has "):
        augment(overwriting)
    assert files(tmp_path) == before
    capsys.readouterr()
    # What --overwrite removes is room, and with enough of it both start.
    free(need_anew - everything)
    with pytest.raises(RuntimeError, match="a cluster was started"):
        augment(overwriting)
    assert capsys.readouterr().err.startswith("augment: 175 patches in 22 shards and 2 validation sections, about ")
    assert not cache.done_blocks(plan.cache)
    make(cache, plan, range(15))
    free(need)
    with pytest.raises(RuntimeError, match="a cluster was started"):
        augment(config)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("augment: 71 patches in 9 shards, about ")
    assert line.endswith(f"; {size(need)} are free in {cache.path}")


def test_overwrite_of_something_else_is_refused_first(asked: dict[str, Any], tmp_path: Path, no_cluster: None) -> None:
    (tmp_path / "photo.jpg").write_text("x")
    with pytest.raises(VolumeError, match=r"is not a patch cache \(it holds photo.jpg\)"):
        augment(AugmentConfig(**asked, cache=str(tmp_path), overwrite=True))
    assert [file.name for file in tmp_path.iterdir()] == ["photo.jpg"]


def test_an_object_store_has_no_end(
    asked: dict[str, Any], tmp_path: Path, no_cluster: None, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    assert open_objects("s3://bucket/cache").free_bytes() is None
    monkeypatch.setattr(LocalObjects, "free_bytes", lambda self: None)
    with pytest.raises(RuntimeError, match="a cluster was started"):
        augment(AugmentConfig(**asked, cache=f"{tmp_path}/cache"))
    (line,) = capsys.readouterr().err.splitlines()
    assert "free" not in line
    assert line.startswith("augment: 175 patches in 22 shards and 2 validation sections, about ")


def test_free_bytes_are_those_of_the_nearest_folder(tmp_path: Path) -> None:
    import shutil

    free = open_objects(f"{tmp_path}/not/there/yet").free_bytes()
    assert free is not None
    assert free == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.05)
    assert not (tmp_path / "not").exists()


class TellingItsMemory(AugmentWorker):
    def compute(self, block: int, data: None) -> Any:
        raise ValueError(f"{ray.get_runtime_context().get_assigned_resources()['memory']:.0f} bytes")


@pytest.mark.usefixtures("ray_cluster")
def test_workers_ask_for_the_memory_that_the_forecast_took(
    asked: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from unet_ray.engine import augment as engine
    from unet_ray.engine import augment_forecast

    monkeypatch.setattr(augment_forecast, "peak_rss_bytes", lambda: 321 << 20)
    monkeypatch.setattr(engine, "AugmentWorker", TellingItsMemory)
    with pytest.raises(LabelError, match=f"{321 << 20} bytes"):
        augment(AugmentConfig(**asked, cache=str(tmp_path / "c.zarr"), workers=1))
