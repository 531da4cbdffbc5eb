"""The augment job on inputs that are wrong or odd: a sentence each on stderr, and nothing is started."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unet_ray.config.augment import AugmentConfig
from unet_ray.engine.augment_plan import prepare
from unet_ray.errors import TargetError
from unet_ray.storage.local_objects import LocalObjects
from unet_ray.storage.patch_cache import PatchCache

Job = Callable[..., Any]
Stack = Callable[..., Path]
SHAPE = (3, 64, 72)


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    import unet_ray.engine  # noqa: F401  isort: skip  (sets Ray's environment before it is imported)
    import ray

    monkeypatch.setattr(ray, "init", lambda *a, **k: pytest.fail("a cluster was started"))


@pytest.fixture
def labels() -> Any:
    values = np.zeros(SHAPE, np.uint8)
    values[:, ::8] = 255
    return values


@pytest.fixture
def augment(call_job: Job, stack: Stack, labels: Any, tmp_path: Path) -> Job:
    """augment(*flags): the job with good settings but for the flags; a later flag wins."""
    images, given = stack("images.tif"), stack("labels.tif", labels)

    def call(*flags: object) -> Any:
        always = ["--images", images, "--labels", given, "--cache", tmp_path / "c", "--label-kind", "membrane"]
        return call_job("augment", *always, "--patch-px", "32", *flags)

    return call


def test_bad_inputs_end_with_one_sentence(augment: Job, stack: Stack, labels: Any, tmp_path: Path) -> None:
    ids = labels.astype(np.int32)
    ids[1, 0, 0] = -3
    nan = np.zeros(SHAPE, np.float32)
    nan[2, 5, 5] = np.nan
    small = stack("small.tif", np.zeros((3, 64, 64), bool))
    fine = stack("fine.tif", np.zeros(SHAPE, bool))

    def refused(*words: str, flags: tuple[object, ...]) -> None:
        ended = augment(*flags)
        assert (ended.code, ended.out) == (2, ""), ended
        (line,) = ended.err.splitlines()
        assert line.startswith("augment: ")
        assert len(line) < 400
        for word in words:
            assert word in line, line

    refused("section 2 of", "nan.tif has NaN", flags=("--images", stack("nan.tif", nan)))
    negative = stack("ids.tif", ids)
    refused("section 1, hold the value -3", flags=("--labels", negative, "--label-kind", "instances"))
    refused("section 0, hold the value 255", "class indices", flags=("--label-kind", "classes"))
    refused("ignore masks", "(3, 64, 64)", "(3, 64, 72)", flags=("--ignore-masks", small))
    refused("names 1 stacks and --ignore-masks 2", flags=("--ignore-masks", fine, fine))
    refused("no pixel that counts", flags=("--ignore-masks", stack("all.tif", np.ones(SHAPE, bool))))
    assert not list((tmp_path / "c").rglob("*"))


def test_odd_inputs_are_told(augment: Job, stack: Stack, labels: Any, tmp_path: Path) -> None:
    labels[1] = 0
    odd = stack("odd.tif", labels)
    # A cache with another seed ends the job after all was said, without a cluster.
    other = AugmentConfig(
        images=(str(tmp_path / "images.tif"),), labels=(str(odd),), label_kind="membrane", patch_px=96, seed=3,
        cache=str(tmp_path / "c"),
    )  # fmt: skip
    plan, made_with = prepare(other)
    PatchCache(other.cache).create_or_extend(plan.cache, made_with)
    ended = augment("--labels", odd, "--patch-px", "96")
    assert ended.code == 2
    assert ended.err.splitlines() == [
        "augment: training sections without any membrane: 1; "
        "leave out what is labelled wrongly with --exclude-sections",
        "augment: patches of 96 px are larger than sections, which are mirrored to fill them: "
        "sections 0-2 of 64 x 72 px (y, x) by 32 and 24 px",
        f"augment: cache {tmp_path / 'c'} was made with seed 3 (now 0); choose a new path or pass --overwrite",
    ]


def test_a_finished_cache_may_be_read_only(
    augment: Job, labels: Any, tmp_path: Path, patches_by_plain_loop: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = AugmentConfig(
        images=(str(tmp_path / "images.tif"),), labels=(str(tmp_path / "labels.tif"),), label_kind="membrane",
        patch_px=32, variants=2, cache=str(tmp_path / "c"),
    )  # fmt: skip
    patches_by_plain_loop(made)

    def refuse(self: LocalObjects, *_: object) -> None:
        raise TargetError(f"{self.root} cannot be written (Read-only file system)")

    monkeypatch.setattr(LocalObjects, "_put", refuse)
    ended = augment("--variants", "2")
    assert ended.code == 0, ended.err
    summary = json.loads(ended.out)
    assert (summary["patches_written"], summary["note"]) == (0, "the cache was complete; nothing to do")
    # But not what would be written to.
    for flags in (
        ("--variants", "3"),
        ("--variants", "2", "--overwrite"),
        ("--variants", "2", "--cache", tmp_path / "d"),
    ):
        ended = augment("--variants", "2", *flags)
        assert (ended.code, ended.out) == (2, ""), flags
        assert "cannot be written (Read-only file system)" in ended.err
    next(path for path in (tmp_path / "c" / "train" / "image" / "c").rglob("*") if path.is_file()).unlink()
    ended = augment("--variants", "2")
    assert (ended.code, ended.out) == (2, "")
    assert "cannot be written (Read-only file system)" in ended.err
