"""Batches in an order that workers, resumes and read-ahead cannot change."""

from dataclasses import fields

import numpy as np
import pytest

from unet_ray.engine.patch_loader import READ_AHEAD, PatchLoader, epoch_order, steps_per_epoch
from unet_ray.storage.patch_cache import CachePlan, Patch, PatchCache

PATCHES, SIDE, MARGIN = 11, 6, 2
MADE_WITH = {"test": 1}


def place_patch(number):
    """Each pixel of the label's area holds a value of its own, the same in image, label and weight."""
    values = np.arange(SIDE * SIDE).reshape(SIDE, SIDE) + number
    image = np.pad(values, MARGIN, mode="reflect")
    return Patch(np.stack([image, image + 100]).astype(np.uint8), values.astype(np.uint8), values.astype(np.float16))


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    made = PatchCache(str(tmp_path_factory.mktemp("loader") / "cache.zarr"))
    plan = CachePlan(PATCHES, SIDE, MARGIN, 2, patches_per_shard=4, validation=1, section_px=(SIDE, SIDE))
    made.create_or_extend(plan, MADE_WITH)
    for shard in range(plan.shards):
        made.put(plan, "train", shard, Patch.stack([place_patch(n) for n in plan.patches_of(shard)]))
    return made


def batches(cache, *, rank=0, world_size=1, epoch=0, first_step=0, seed=3, batch_size=4, random_dihedral=True):
    loader = PatchLoader(
        cache, batch_size=batch_size, seed=seed, rank=rank, world_size=world_size, random_dihedral=random_dihedral
    )
    return list(loader.epoch(epoch, first_step))


def equal(one, other):
    return all(np.array_equal(getattr(one, f.name), getattr(other, f.name)) for f in fields(Patch))


def inside(image):
    return image[..., MARGIN:-MARGIN, MARGIN:-MARGIN]


def test_without_symmetries_an_epoch_is_the_order_in_batches(cache):
    order = epoch_order(PATCHES, seed=3, epoch=5)
    found = batches(cache, epoch=5, random_dihedral=False)
    assert [len(batch.label) for batch in found] == [4, 4, 3]
    for step, batch in enumerate(found):
        assert equal(batch, Patch.stack([place_patch(int(n)) for n in order[4 * step : 4 * step + 4]]))


@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_the_ranks_share_out_the_global_batch(cache, world_size):
    """Rank r holds every world_size-th patch; put together in that order they are the one-worker batch."""
    whole = batches(cache)
    ranks = [batches(cache, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert {len(found) for found in ranks} == {len(whole)}
    for step, batch in enumerate(whole):
        for rank in range(world_size):
            mine = Patch(*(getattr(batch, f.name)[rank::world_size] for f in fields(Patch)))
            assert equal(ranks[rank][step], mine)


def test_a_rank_may_have_nothing_to_do(cache):
    last = batches(cache, rank=3, world_size=4)[-1]
    assert last.image.shape == (0, 2, SIDE + 2 * MARGIN, SIDE + 2 * MARGIN)
    assert (last.label.shape, last.weight.shape) == ((0, SIDE, SIDE), (0, SIDE, SIDE))
    assert [getattr(last, f.name).dtype for f in fields(Patch)] == [np.uint8, np.uint8, np.float16]


@pytest.mark.parametrize("first_step", [0, 1, 2, 3])
def test_resuming_gives_the_tail(cache, first_step):
    tail, whole = batches(cache, first_step=first_step), batches(cache)
    assert len(tail) == 3 - first_step
    assert all(equal(one, other) for one, other in zip(tail, whole[first_step:], strict=True))


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
    assert all(equal(a, b) for a, b in zip(one, batches(cache), strict=True))


def test_symmetries_keep_image_label_and_weight_together(cache):
    seen = set()
    for epoch in range(6):
        order = epoch_order(PATCHES, seed=3, epoch=epoch)
        found = batches(cache, epoch=epoch, batch_size=PATCHES)[0]
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
        return batches(cache, epoch=epoch, batch_size=PATCHES)[0].label[order.index(0)].tobytes()

    assert len({one_patch(epoch) for epoch in range(12)}) > 2


def test_reading_ahead_is_bounded(cache, monkeypatch):
    read, loader = [], PatchLoader(cache, batch_size=1, seed=0, rank=0, world_size=1, random_dihedral=False)
    monkeypatch.setattr(loader, "_batch", lambda numbers, turns: read.append(numbers) or numbers)
    epoch = loader.epoch(0)
    next(epoch)
    assert loader.steps == PATCHES
    epoch.close()
    assert len(read) <= READ_AHEAD + 1 < PATCHES


def test_an_unreadable_patch_stops_the_epoch(cache, monkeypatch):
    def refuse(split, number):
        raise OSError("the disk is gone")

    monkeypatch.setattr(cache, "read", refuse)
    with pytest.raises(OSError, match="the disk is gone"):
        batches(cache)


@pytest.mark.parametrize(("patches", "batch", "steps"), [(1, 4, 1), (4, 4, 1), (5, 4, 2), (720, 4, 180)])
def test_steps(patches, batch, steps):
    assert steps_per_epoch(patches, batch) == steps
