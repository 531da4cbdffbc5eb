from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from unet_ray.geometry.block_set import BlockSet


@st.composite
def numbered(draw):
    count = draw(st.integers(0, 70))
    members = draw(st.sets(st.integers(0, count - 1))) if count else set()
    # Long stretches of members are the common case: a resumed run.
    if count and draw(st.booleans()):
        members |= set(range(draw(st.integers(0, count - 1)), count))
    return count, members


@settings(deadline=None)
@given(numbered())
@example((17, set(range(8))))  # a full byte, then a missing block
def test_like_a_python_set(case):
    count, members = case
    blocks = BlockSet(count, members)
    assert len(blocks) == len(members)
    assert list(blocks) == sorted(members)
    assert list(blocks.missing()) == sorted(set(range(count)) - members)
    assert all((b in blocks) == (b in members) for b in range(-9, count + 9))


@settings(deadline=None)
@given(numbered(), st.integers(1, 12))
def test_missing_runs_cover_the_missing_and_nothing_else(case, longest):
    count, members = case
    runs = list(BlockSet(count, members).missing_runs(longest))
    assert [b for start, stop in runs for b in range(start, stop)] == sorted(set(range(count)) - members)
    assert all(1 <= stop - start <= longest for start, stop in runs)
    # A run ends only where it has to: at its length or before a block that is in.
    for (start, stop), (later, _) in pairwise(runs):
        assert stop - start == longest or later > stop


@settings(deadline=None)
@given(numbered(), st.integers(0, 70), st.integers(0, 70))
def test_a_run_is_as_good_as_its_blocks(case, start, stop):
    count, members = case
    stop = min(stop, count)
    blocks = BlockSet(count, members)
    blocks.add_run(start, stop)
    assert list(blocks) == sorted(members | set(range(start, stop)))


@pytest.mark.parametrize(("start", "stop"), [(-1, 3), (2, 6)])
def test_a_run_that_does_not_exist(start, stop):
    blocks = BlockSet(5)
    with pytest.raises(IndexError, match=f"there are no blocks {start} to {stop - 1}; there are 5"):
        blocks.add_run(start, stop)
    assert len(blocks) == 0


@pytest.mark.parametrize("block", [-1, 5, 10**9])
def test_a_block_that_does_not_exist(block):
    blocks = BlockSet(5)
    with pytest.raises(IndexError, match=f"there is no block {block}; there are 5"):
        blocks.add(block)
    assert len(blocks) == 0


def test_adding_twice_counts_once():
    assert len(BlockSet(9, [8, 8, 0])) == 2
