"""The patch cache: made, extended, interrupted, damaged, and what belongs to somebody else."""

import hashlib
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr

from tests.shipped import shipped
from unet_ray.errors import CacheMismatchError, VolumeError
from unet_ray.geometry.block_set import BlockSet
from unet_ray.storage.cache_check import verify
from unet_ray.storage.patch_cache import ARRAYS, CachePlan, Patch, PatchCache

ROOT = Path(__file__).resolve().parents[2]
PLAN = CachePlan(
    patches=10, patch_px=6, margin_px=2, channels=3, patches_per_shard=4, validation=2, section_px=(8, 9)
)  # fmt: skip
MADE_WITH = {"seed": 0, "recipe": {"elastic": {"sigma_px": 10}}}


def patch(split, number):
    """A patch that tells its number in every array."""
    generator = np.random.default_rng([number, split == "train"])
    side, sides = (10, (6, 6)) if split == "train" else (0, (8, 9))
    image = generator.integers(0, 256, (3, side, side) if side else (3, *sides))
    return Patch(
        image.astype(np.uint8),
        generator.integers(0, 2, sides).astype(np.uint8),
        generator.random(sides).astype(np.float16),
    )


def put(cache, plan, split, shard):
    numbers = plan.patches_of(shard) if split == "train" else [shard]
    return cache.put(plan, split, shard, Patch.stack([patch(split, n) for n in numbers]))


def fill(cache, plan):
    """What a run does: every shard whose record is missing. Returns those it made."""
    made = [(split, shard) for split in ("train", "validation") for shard in cache.done(split, plan).missing()]
    for split, shard in made:
        put(cache, plan, split, shard)
    return made


def hashes(cache):
    return {
        info.key: hashlib.sha256(cache.objects.get(info.key)).hexdigest()
        for info in cache.objects.list()
        if "/c/" in info.key
    }


def same(one, other):
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


@pytest.fixture(params=["local", "s3"])
def url(request, tmp_path):
    return str(tmp_path / "cache.zarr") if request.param == "local" else request.getfixturevalue("s3")


@pytest.fixture
def cache(tmp_path):
    made = PatchCache(str(tmp_path / "cache.zarr"))
    fill(made, made.create_or_extend(PLAN, MADE_WITH))
    return made


def test_made_read_and_complete(url):
    cache = PatchCache(url)
    assert cache.attributes() is None
    assert cache.create_or_extend(PLAN, MADE_WITH) == PLAN
    assert fill(cache, PLAN) == [("train", 0), ("train", 1), ("train", 2), ("validation", 0), ("validation", 1)]
    reader = shipped(cache)
    assert (reader.plan(), reader.require()["made_with"]) == (PLAN, MADE_WITH)
    reader.require_complete()
    for split, count in (("train", 10), ("validation", 2)):
        for number in range(count):
            same(reader.read(split, number), patch(split, number))
    assert fill(cache, cache.create_or_extend(PLAN, MADE_WITH)) == []


def test_plain_zarr_reads_it(cache):
    group = zarr.open_group(cache.path, mode="r")
    assert group["train/image"].shape == (10, 3, 10, 10)
    assert group["train/label"].shape == (10, 6, 6)
    assert group["validation/image"].shape == (2, 3, 8, 9)
    assert [str(group[f"train/{name}"].dtype) for name in ARRAYS] == ["float16", "uint8", "uint8"]
    np.testing.assert_array_equal(group["train/weight"][9], patch("train", 9).weight)


def test_more_patches_touch_only_the_part_filled_last_shard(cache):
    before = hashes(cache)
    more = replace(PLAN, patches=17)
    assert cache.agreed(more, MADE_WITH) == more
    # The same before and after: two validation sections, shards 0 and 1, and not the part-filled shard 2.
    assert (list(cache.done_blocks(PLAN)), list(cache.done_blocks(more))) == ([0, 1, 2, 3, 4], [0, 1, 2, 3])
    assert hashes(cache) == before
    assert cache.create_or_extend(more, MADE_WITH) == more
    assert list(cache.done_blocks(more)) == [0, 1, 2, 3]
    with pytest.raises(VolumeError, match=r"has 2 of 5 train shards; run the same jobs/augment.py command again"):
        cache.require_complete()
    assert fill(cache, more) == [("train", 2), ("train", 3), ("train", 4)]
    after = hashes(cache)
    assert {key for key in before if after[key] != before[key]} == {
        "train/image/c/2/0/0/0", "train/label/c/2/0/0", "train/weight/c/2/0/0"
    }  # fmt: skip
    for number in range(17):
        same(PatchCache(cache.path).read("train", number), patch("train", number))


def test_more_patches_after_a_full_last_shard_touch_none(tmp_path):
    cache, full = PatchCache(str(tmp_path / "c")), replace(PLAN, patches=8)
    fill(cache, cache.create_or_extend(full, MADE_WITH))
    before = hashes(cache)
    assert list(cache.done_blocks(PLAN)) == [0, 1, 2, 3]
    assert fill(cache, cache.create_or_extend(PLAN, MADE_WITH)) == [("train", 2)]
    assert before.items() <= hashes(cache).items()


@pytest.mark.parametrize(("split", "shard", "of"), [("train", 2, 3), ("validation", 0, 2)])
def test_a_cache_that_lacks_a_shard_is_not_complete(cache, split, shard, of):
    cache.objects.delete(cache.shard_key(split, "image", shard))
    with pytest.raises(VolumeError, match=f"has {of - 1} of {of} {split} shards"):
        cache.require_complete()


def test_a_smaller_plan_has_no_shards_of_a_larger_one(cache):
    assert list(cache.done("train", replace(PLAN, patches=5))) == [0, 1]


def test_blocks_of_a_plan():
    assert (PLAN.shards, PLAN.blocks) == (3, 5)
    places = [("validation", 0), ("validation", 1), ("train", 0), ("train", 1), ("train", 2)]
    assert [PLAN.place(block) for block in range(5)] == places
    assert [PLAN.patches_in(block) for block in range(5)] == [0, 0, 4, 4, 2]


def test_bytes_are_those_of_the_chosen_blocks(cache):
    (Path(cache.path) / "train/label/c/0/0/0.damaged").write_bytes(b"set aside")
    size = {info.key: info.size for info in cache.objects.list()}
    wanted = sum(size[f"validation/{name}/c/1/0/0{'/0' * (name == 'image')}"] for name in ARRAYS)
    wanted += sum(size[f"train/{name}/c/{n}/0/0{'/0' * (name == 'image')}"] for name in ARRAYS for n in (0, 2))
    assert cache.bytes_of(PLAN, BlockSet(5, [1, 2, 4])) == wanted


def test_sources_are_no_part_of_the_fingerprint(cache):
    before = cache.require()
    cache.create_or_extend(PLAN, MADE_WITH, {"stacks": ["moved.tif"]})
    after = PatchCache(cache.path).require()
    assert after.pop("sources") == {"stacks": ["moved.tif"]}
    assert {**after, "sources": {}} == before


def test_what_made_it_edited_is_noticed_before_what_differs(cache):
    path = Path(cache.path) / "zarr.json"
    path.write_text(path.read_text().replace('"sigma_px": 10', '"sigma_px": 8'))
    for asked in (8, 10):
        with pytest.raises(CacheMismatchError, match="does not say any more what made it"):
            cache.agreed(PLAN, {"seed": 0, "recipe": {"elastic": {"sigma_px": asked}}})


def test_another_version_of_the_format_is_refused(cache, monkeypatch):
    monkeypatch.setattr("unet_ray.storage.patch_cache.FORMAT_VERSION", 2)
    with pytest.raises(CacheMismatchError, match=r"was made with format_version 1 \(now 2\)"):
        cache.create_or_extend(PLAN, MADE_WITH)


def test_find_one_patch(cache):
    same(cache.find(9), patch("train", 9))
    assert cache.find(10) is None
    cache.objects.delete("train/image/c/1/0/0/0")
    assert cache.find(5) is None
    cache.objects.delete("train/weight/c/0/0/0")
    with pytest.raises(VolumeError, match=r"train shard 0 of .* is damaged \(its weight is missing\); .* --verify"):
        cache.find(3)
    key = "train/image/c/2/0/0/0"
    cache.objects.put(key, cache.objects.get(key)[:-9])
    with pytest.raises(VolumeError, match=r"train shard 2 of .* is damaged \(.*\); .* --verify"):
        PatchCache(cache.path).find(9)


def test_fewer_patches_keep_what_is_there(cache):
    before = hashes(cache)
    assert cache.create_or_extend(replace(PLAN, patches=3), MADE_WITH) == PLAN
    assert (PatchCache(cache.path).plan(), hashes(cache)) == (PLAN, before)


def test_another_recipe_is_refused_by_what_differs(cache):
    before = hashes(cache)
    other = {"seed": 0, "recipe": {"elastic": {"sigma_px": 8}}}
    with pytest.raises(
        CacheMismatchError, match=r"was made with recipe.elastic.sigma_px 10 \(now 8\); .*new path or pass --overwrite"
    ):
        cache.create_or_extend(PLAN, other)
    assert hashes(cache) == before
    cache.overwrite()
    assert not any((Path(cache.path)).rglob("*.json"))
    assert PatchCache(cache.path).create_or_extend(PLAN, other) == PLAN
    assert len(cache.done("train", PLAN)) == 0


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda path: (path / "thesis.txt").write_text("years of work"),
            r"is not a patch cache \(it holds thesis.txt\)",
        ),
        (lambda path: zarr.create_group(str(path)), "is zarr but not a patch cache"),
        (lambda path: zarr.create_array(str(path), shape=(3,), dtype="u1"), "is zarr but not a patch cache"),
    ],
)
def test_what_is_not_ours_is_neither_read_nor_written_nor_removed(tmp_path, make, said):
    make(tmp_path)
    cache = PatchCache(str(tmp_path))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for action in (cache.attributes, cache.require, cache.overwrite, lambda: cache.create_or_extend(PLAN, MADE_WITH)):
        with pytest.raises(VolumeError, match=said):
            action()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_no_cache_at_all(tmp_path):
    with pytest.raises(VolumeError, match=r"there is no patch cache at .*; make it with jobs/augment.py --cache"):
        PatchCache(str(tmp_path / "x")).require_complete()
    PatchCache(str(tmp_path / "x")).overwrite()
    assert not (tmp_path / "x").exists()


def test_removing_is_known_as_ours_to_the_end(cache, monkeypatch):
    """Killed in the middle of --overwrite, the same command must not take the rest for somebody else's."""
    delete, left = type(cache.objects).delete, [5]

    def dies(self, key):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        delete(self, key)

    monkeypatch.setattr(type(cache.objects), "delete", dies)
    with pytest.raises(KeyboardInterrupt):
        cache.overwrite()
    monkeypatch.undo()
    cache.overwrite()
    assert list(cache.objects.list()) == []


DIES = """
import os, signal, sys
import numpy as np
from unet_ray.storage.local_objects import LocalObjects
from unet_ray.storage.patch_cache import Patch, PatchCache
original = LocalObjects.put
def deadly(self, key, data):
    if key == sys.argv[2]:
        os.kill(os.getpid(), signal.SIGKILL)
    original(self, key, data)
LocalObjects.put = deadly
cache = PatchCache(sys.argv[1])
plan = cache.plan()
cache.put(plan, "train", 1, Patch(*(
    np.ones((4, *plan.spec("train", name).shape[1:]), plan.spec("train", name).dtype)
    for name in ("image", "label", "weight")
)))
"""


@pytest.mark.parametrize("array", ARRAYS)
def test_killed_between_the_puts_of_one_block(cache, array):
    """The weight goes first and the image last: whatever of them got through, the block is not done."""
    before = hashes(cache)
    for name in ARRAYS:
        cache.objects.delete(f"train/{name}/c/1/0/0{'/0' if name == 'image' else ''}")
    deadly = f"train/{array}/c/1/0/0{'/0' if array == 'image' else ''}"
    killed = subprocess.run([sys.executable, "-c", DIES, cache.path, deadly], cwd=ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL
    reopened = PatchCache(cache.path)
    assert len(hashes(reopened)) == len(before) - 3 + ARRAYS.index(array)
    assert not reopened.is_done("train", 1)
    assert list(reopened.done("train", PLAN)) == [0, 2]
    assert fill(reopened, PLAN) == [("train", 1)]
    assert reopened.is_done("train", 1)
    assert hashes(reopened) == before


@pytest.mark.parametrize("name", ARRAYS)
def test_killed_while_damage_is_set_aside_it_is_not_taken_for_done(cache, name, monkeypatch):
    key = f"train/{name}/c/1/0/0{'/0' * (name == 'image')}"
    cache.objects.put(key, b"damaged")
    kind = type(cache.objects)
    rename, delete, changed = kind.rename, kind.delete, []

    def dies(method):
        def call(self, *keys):
            if changed:
                raise KeyboardInterrupt
            changed.append(keys)
            method(self, *keys)

        return call

    monkeypatch.setattr(kind, "rename", dies(rename))
    monkeypatch.setattr(kind, "delete", dies(delete))
    with pytest.raises(KeyboardInterrupt):
        list(verify(cache))
    monkeypatch.undo()
    assert not cache.is_done("train", 1)


def test_verify_counts_what_it_checks(cache, monkeypatch):
    monkeypatch.setattr("unet_ray.storage.cache_check.AT_ONCE", 2)
    cache.objects.delete("train/image/c/1/0/0/0")
    cache.objects.put("train/label/c/2/0/0", b"x")
    checked = []
    assert list(verify(cache, on_checked=lambda: checked.append(1))) == [("train", 2)]
    assert len(checked) == 4


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("damage", [b"", b"too short", None], ids=["empty", "short", "missing"])
def test_verify_finds_damage_in_any_array(cache, name, damage):
    before, tail = hashes(cache), "/0" if name == "image" else ""
    for split in ("train", "validation"):
        key = f"{split}/{name}/c/1/0/0{tail}"
        cache.objects.delete(key) if damage is None else cache.objects.put(key, damage)
    found = set(verify(cache))
    # An empty or missing record says by itself that the block is not done.
    assert found == (set() if name == "image" and not damage else {("train", 1), ("validation", 1)})
    assert fill(cache, PLAN) == [("train", 1), ("validation", 1)]
    assert {key: value for key, value in hashes(cache).items() if not key.endswith(".damaged")} == before
    assert list(verify(cache)) == []
