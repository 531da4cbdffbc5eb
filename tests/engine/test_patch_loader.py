"""Batches in an order that workers, threads, resumes and read-ahead cannot change."""

import threading
import time
from dataclasses import fields

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unet_ray.engine.patch_loader import (
    MOST_BATCHES_AHEAD,
    PatchLoader,
    copy_turned,
    epoch_order,
    reading_threads,
    steps_per_epoch,
)
from unet_ray.errors import VolumeError
from unet_ray.numerics.shape_descriptors import shape_descriptors
from unet_ray.storage.patch_cache import CachePlan, Patch, PatchCache

PATCHES, SIDE, MARGIN = 11, 6, 2
PATCH_BYTES = 2 * (SIDE + 2 * MARGIN) ** 2 + SIDE**2 + 2 * SIDE**2
MADE_WITH = {"test": 1}


def place_patch(number):
    """Each pixel of the label's area holds a value of its own, the same in image, label and weight."""
    values = np.arange(SIDE * SIDE).reshape(SIDE, SIDE) + number
    image = np.pad(values, MARGIN, mode="reflect")
    return Patch(np.stack([image, image + 100]).astype(np.uint8), values.astype(np.uint8), values.astype(np.float16))


def make_cache(path, patches=PATCHES):
    made = PatchCache(str(path))
    plan = CachePlan(patches, SIDE, MARGIN, 2, patches_per_shard=4, validation=1, section_px=(SIDE, SIDE))
    made.create_or_extend(plan, MADE_WITH)
    for shard in range(plan.shards):
        made.put(plan, "train", shard, Patch.stack([place_patch(n) for n in plan.patches_of(shard)]))
    return made


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return make_cache(tmp_path_factory.mktemp("loader") / "cache.zarr")


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert reading() == []


def reading():
    """Names of the reading threads that are alive."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("patches")]


def loader_of(cache, *, rank=0, world_size=1, seed=3, batch_size=4, random_dihedral=True, **how):
    return PatchLoader(
        cache, batch_size=batch_size, seed=seed, rank=rank, world_size=world_size, random_dihedral=random_dihedral,
        **how,
    )  # fmt: skip


def batches(cache, *, epoch=0, first_step=0, **how):
    return list(loader_of(cache, **how).epoch(epoch, first_step))


def equal(one, other):
    return all(
        getattr(one, f.name).dtype == getattr(other, f.name).dtype
        and np.array_equal(getattr(one, f.name), getattr(other, f.name))
        for f in fields(Patch)
    )


def same(one, other):
    """Whether two loaded batches are the same in all that they hold."""
    return (
        one.step == other.step
        and np.array_equal(one.numbers, other.numbers)
        and np.array_equal(one.positions, other.positions)
        and equal(one.patch, other.patch)
    )


def inside(image):
    return image[..., MARGIN:-MARGIN, MARGIN:-MARGIN]


def test_without_symmetries_an_epoch_is_the_order_in_batches(cache):
    order = epoch_order(PATCHES, seed=3, epoch=5)
    found = batches(cache, epoch=5, random_dihedral=False)
    assert [len(batch.numbers) for batch in found] == [4, 4, 3]
    for step, batch in enumerate(found):
        mine = order[4 * step : 4 * step + 4]
        assert equal(batch.patch, Patch.stack([place_patch(int(n)) for n in mine]))
        assert batch.step == step
        np.testing.assert_array_equal(batch.numbers, mine)
        np.testing.assert_array_equal(batch.positions, np.arange(len(mine)))


@pytest.mark.parametrize("rank", [0, 1])
def test_labels_are_described_as_they_are_turned(tmp_path, rank):
    plan = CachePlan(5, 32, 0, 1, patches_per_shard=4, validation=1, section_px=(32, 32))
    cache = PatchCache(str(tmp_path / "cache.zarr"))
    cache.create_or_extend(plan, MADE_WITH)
    rng = np.random.default_rng(0)
    for shard in range(plan.shards):
        count = len(plan.patches_of(shard))
        label = (rng.random((count, 32, 32)) < 0.2).astype(np.uint8)
        weight = (rng.random((count, 32, 32)) < 0.9).astype(np.float16)
        cache.put(plan, "train", shard, Patch(label[:, None], label, weight))
    how = {"rank": rank, "world_size": 2, "batch_size": 3}
    found, without = batches(cache, describe=True, **how), batches(cache, **how)
    assert len(found) == 2
    bytes_of_three = 3 * 2 * (4 * 32**2 + 4 * 7 * 8**2)
    ahead = [loader_of(cache, describe=d, read_ahead_bytes=bytes_of_three, **how).batches_ahead for d in (True, False)]
    assert ahead == [3, 4]
    for batch, plain in zip(found, without, strict=True):
        assert plain.described is None
        assert same(batch, plain)
        assert batch.described.shape == (len(batch.numbers), 7, 8, 8)
        expected = np.empty((7, 8, 8), np.float32)
        for row, described in enumerate(batch.described):
            shape_descriptors(batch.patch.label[row], batch.patch.weight[row] > 0, expected)
            assert np.array_equal(described, expected)
            assert 0 < expected[6].mean() < 1


@given(
    world_size=st.sampled_from([1, 2, 3, 5]),
    batch_size=st.integers(1, PATCHES + 3),
    first_step=st.integers(0, PATCHES),
    threads=st.integers(1, 4),
    read_ahead_bytes=st.sampled_from([0, 3 * PATCH_BYTES, 1 << 20]),
)
def test_ranks_threads_and_read_ahead_change_nothing(
    cache, world_size, batch_size, first_step, threads, read_ahead_bytes
):
    """Put in the order of their positions, the ranks' parts are the batches of one rank that began at the start."""
    whole = batches(cache, batch_size=batch_size, threads=1)[first_step:]
    how = {"world_size": world_size, "batch_size": batch_size, "threads": threads, "read_ahead_bytes": read_ahead_bytes}
    ranks = [batches(cache, rank=rank, first_step=first_step, **how) for rank in range(world_size)]
    assert {len(found) for found in ranks} == {len(whole)}
    for parts, batch in zip(zip(*ranks, strict=True), whole, strict=True):
        sizes = [len(part.numbers) for part in parts]
        assert max(sizes) - min(sizes) <= 1
        positions = np.concatenate([part.positions for part in parts])
        assert sorted(positions) == list(range(len(batch.numbers)))
        back = np.argsort(positions)
        for part in parts:
            assert part.step == batch.step
            assert len(part.numbers) == len(part.positions) == len(part.patch.label)
        np.testing.assert_array_equal(np.concatenate([part.numbers for part in parts])[back], batch.numbers)
        joined = (np.concatenate([getattr(part.patch, f.name) for part in parts])[back] for f in fields(Patch))
        assert equal(Patch(*joined), batch.patch)


@given(epoch=st.integers(0, 1000), world_size=st.integers(1, 5), batch_size=st.integers(1, PATCHES + 3))
def test_an_epoch_holds_each_patch_once(cache, epoch, world_size, batch_size):
    numbers = [
        batch.numbers
        for rank in range(world_size)
        for batch in batches(cache, epoch=epoch, rank=rank, world_size=world_size, batch_size=batch_size)
    ]
    assert sorted(np.concatenate(numbers)) == list(range(PATCHES))


def test_a_rank_may_have_nothing_to_do(cache):
    last = batches(cache, rank=3, world_size=4)[-1]
    assert last.patch.image.shape == (0, 2, SIDE + 2 * MARGIN, SIDE + 2 * MARGIN)
    assert (last.patch.label.shape, last.patch.weight.shape) == ((0, SIDE, SIDE), (0, SIDE, SIDE))
    assert [getattr(last.patch, f.name).dtype for f in fields(Patch)] == [np.uint8, np.uint8, np.float16]
    assert (len(last.numbers), len(last.positions), last.step) == (0, 0, 2)


def test_fewer_patches_than_workers(tmp_path):
    """Each worker still takes the one step, so that nobody waits for it for ever."""
    few = make_cache(tmp_path / "few.zarr", patches=2)
    ranks = [batches(few, rank=rank, world_size=5) for rank in range(5)]
    assert [[len(batch.numbers) for batch in found] for found in ranks] == [[1], [1], [0], [0], [0]]


@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("first_step", [0, 1, 2, 3])
def test_resuming_gives_the_tail(cache, world_size, first_step):
    for rank in range(world_size):
        whole = batches(cache, rank=rank, world_size=world_size)
        tail = batches(cache, rank=rank, world_size=world_size, first_step=first_step)
        assert len(tail) == 3 - first_step
        assert all(same(one, other) for one, other in zip(tail, whole[first_step:], strict=True))


def test_the_order_is_a_function_of_seed_and_epoch():
    np.testing.assert_array_equal(epoch_order(50, 1, 2), epoch_order(50, 1, 2))
    orders = {tuple(epoch_order(50, seed, epoch)) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16
    assert all(sorted(order) == list(range(50)) for order in orders)


def test_the_order_is_a_golden_one():
    """From NumPy 2.4: another order would change every resumed run."""
    assert epoch_order(10, seed=7, epoch=1).tolist() == [9, 0, 8, 6, 7, 1, 3, 4, 2, 5]


def test_global_random_state_has_no_say(cache):
    np.random.seed(1)  # noqa: NPY002
    one = batches(cache)
    np.random.seed(2)  # noqa: NPY002
    assert all(same(a, b) for a, b in zip(one, batches(cache), strict=True))


def test_symmetries_keep_image_label_and_weight_together(cache):
    seen = set()
    for epoch in range(6):
        order = epoch_order(PATCHES, seed=3, epoch=epoch)
        found = batches(cache, epoch=epoch, batch_size=PATCHES)[0].patch
        for number, image, label, weight in zip(order, found.image, found.label, found.weight, strict=True):
            np.testing.assert_array_equal(inside(image)[0], label)
            np.testing.assert_array_equal(inside(image)[1], label + 100)
            np.testing.assert_array_equal(label, weight)
            original = place_patch(int(number)).label
            turns = [np.rot90(flipped, k) for flipped in (original, original[:, ::-1]) for k in range(4)]
            (turn,) = [k for k, turned in enumerate(turns) if np.array_equal(turned, label)]
            seen.add(turn)
    assert seen == set(range(8))


def test_symmetries_change_from_epoch_to_epoch(cache):
    def one_patch(epoch):
        order = epoch_order(PATCHES, seed=3, epoch=epoch).tolist()
        return batches(cache, epoch=epoch, batch_size=PATCHES)[0].patch.label[order.index(0)].tobytes()

    assert len({one_patch(epoch) for epoch in range(12)}) > 2


@pytest.mark.parametrize("side", [1, 31, 33, 100])
@pytest.mark.parametrize("turn", range(8))
@pytest.mark.parametrize("dtype", [np.uint8, np.float16])
def test_a_turned_copy_is_what_torch_makes_of_the_batch(side, turn, dtype):
    """A recipe may as well turn on the device: by the same number it gets the same."""
    values = np.random.default_rng(turn).integers(0, 256, (2, side, side)).astype(dtype)
    out = np.empty_like(values)
    copy_turned(values, turn, out)
    on_device = torch.rot90(torch.from_numpy(values), turn % 4, (-2, -1))
    np.testing.assert_array_equal(out, on_device.flip(-1) if turn >= 4 else on_device)


class Slow:
    """A reader that notes which patches are read and how many at once; a patch may be held up, or fail."""

    def __init__(self, reader, held=(), failing=()):
        self.reader, self.held, self.failing = reader, held, failing
        self.numbers, self.at_once, self.most_at_once = [], 0, 0
        self.lock, self.go_on = threading.Lock(), threading.Event()

    def entry(self, number):
        with self.lock:
            self.numbers.append(number)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        if number in self.held:
            assert self.go_on.wait(30)
        if number in self.failing:
            raise VolumeError(f"shard of patch {number} is damaged")
        time.sleep(0.002)
        with self.lock:
            self.at_once -= 1
        return self.reader.entry(number)


def slowed(cache, *, held=(), failing=(), **how):
    """A loader, and what stands in front of its first array's reader."""
    loader = loader_of(cache, **how)
    slow = loader._readers["weight"] = Slow(loader._readers["weight"], held, failing)
    return loader, slow


def until(true):
    """Wait for what the threads will do, however busy the machine is."""
    end = time.monotonic() + 30
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)
    time.sleep(0.05)  # and for what they should not do


@pytest.mark.parametrize(
    ("batch_size", "world_size", "patches_ahead", "batches_ahead"),
    [(1, 1, 3, 3), (1, 1, 0, 1), (2, 1, 5, 2), (2, 2, 3, 3), (4, 1, 1, 1), (4, 3, 4, 2), (1, 1, 9999, 32)],
)
def test_reading_ahead_is_bounded_in_bytes(cache, batch_size, world_size, patches_ahead, batches_ahead):
    loader, slow = slowed(
        cache, batch_size=batch_size, world_size=world_size, threads=3, read_ahead_bytes=patches_ahead * PATCH_BYTES
    )
    assert loader.batches_ahead == batches_ahead <= MOST_BATCHES_AHEAD
    epoch, mine = (
        loader.epoch(0),
        [len(batch.numbers) for batch in batches(cache, batch_size=batch_size, world_size=world_size)],
    )
    for step in range(3):
        next(epoch)
        expected = sum(mine[: step + 1 + batches_ahead])
        until(lambda expected=expected: len(slow.numbers) >= expected)
        assert len(slow.numbers) == expected
    epoch.close()


@pytest.mark.parametrize("threads", [1, 3])
def test_patches_are_read_at_once_by_as_many_threads_as_told(cache, threads):
    loader, slow = slowed(cache, held=range(PATCHES), threads=threads)
    consumer = threading.Thread(target=lambda: list(loader.epoch(0)))
    consumer.start()
    until(lambda: slow.at_once >= threads)
    assert slow.at_once == threads
    slow.go_on.set()
    consumer.join(30)
    assert slow.most_at_once == threads


def test_one_slow_patch_does_not_hold_up_those_behind_it(cache):
    order = epoch_order(PATCHES, 3, 0).tolist()
    loader, slow = slowed(cache, held=order[:1], threads=2)
    found = []
    consumer = threading.Thread(target=lambda: found.extend(loader.epoch(0)))
    consumer.start()
    until(lambda: len(slow.numbers) == PATCHES)
    assert found == []
    slow.go_on.set()
    consumer.join(30)
    assert all(same(one, other) for one, other in zip(found, batches(cache), strict=True))


def test_a_damaged_shard_stops_the_epoch_by_name(tmp_path):
    damaged = make_cache(tmp_path / "cache.zarr")
    path = tmp_path / "cache.zarr" / "train" / "label" / "c" / "1" / "0" / "0"
    data = bytearray(path.read_bytes())
    data[3] ^= 1
    path.write_bytes(data)
    with pytest.raises(VolumeError, match=rf"shard {path} is damaged .* --verify"):
        batches(damaged)


def test_a_failure_is_raised_at_the_next_batch_whatever_batch_it_is_of(cache):
    order = epoch_order(PATCHES, 3, 0).tolist()
    loader, slow = slowed(cache, failing=order[-1:], batch_size=1, threads=2)
    epoch = loader.epoch(0)
    try:
        assert next(epoch).step == 0
    except VolumeError:  # so soon, if the threads were that fast
        return
    until(lambda: len(slow.numbers) == PATCHES)
    with pytest.raises(VolumeError, match=f"patch {order[-1]} is damaged"):
        next(epoch)


def test_a_failure_does_not_wait_for_the_rest_of_its_batch(cache):
    order = epoch_order(PATCHES, 3, 0).tolist()
    loader, slow = slowed(cache, held=[order[0], order[2]], failing=[order[1]], threads=2)
    release = threading.Timer(0.5, slow.go_on.set)
    release.start()
    with pytest.raises(VolumeError, match=f"patch {order[1]} is damaged"):
        list(loader.epoch(0))
    assert len(slow.numbers) <= 3, "what had not begun was given up"
    release.join()


def test_no_thread_is_left_by_a_consumer_that_stops(cache):
    order = epoch_order(PATCHES, 3, 0).tolist()
    loader, slow = slowed(cache, held=order[1:], batch_size=1, threads=3)
    epoch = loader.epoch(0)
    assert reading() == []
    next(epoch)
    until(lambda: slow.at_once == 3)
    release = threading.Timer(0.5, slow.go_on.set)
    release.start()
    epoch.close()
    assert reading() == []
    assert len(slow.numbers) == 4, "what had not begun was given up"
    for _ in loader.epoch(0):
        break
    assert reading() == []
    with pytest.raises(ZeroDivisionError):
        stop_in_the_middle(loader)
    assert reading() == []
    release.join()


def stop_in_the_middle(loader):
    for batch in loader.epoch(0):
        batch.step // 0


def test_a_batch_is_the_consumers_own(cache):
    """Nothing that is read later is written into it."""
    loader = loader_of(cache, batch_size=1, threads=2)
    found = list(loader.epoch(0))
    assert all(same(one, other) for one, other in zip(found, batches(cache, batch_size=1), strict=True))
    places = [batch.patch.image.__array_interface__["data"][0] for batch in found]
    assert len(set(places)) == len(places)


def test_threads_wait_for_a_store_but_leave_cores_to_training(monkeypatch):
    for cpus, threads in {None: 1, 1: 1, 2: 1, 8: 2, 64: 4}.items():
        monkeypatch.setattr("os.cpu_count", lambda cpus=cpus: cpus)
        assert reading_threads("/cache.zarr") == threads
        assert reading_threads("s3://bucket/cache.zarr") == 16


@pytest.mark.parametrize(("patches", "batch", "steps"), [(1, 4, 1), (4, 4, 1), (5, 4, 2), (720, 4, 180)])
def test_steps(patches, batch, steps):
    assert steps_per_epoch(patches, batch) == steps
