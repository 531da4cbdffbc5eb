"""What one worker does with its blocks, without Ray: order, errors, seconds."""

import errno
import os
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine.block_counting import STAGES, Counting, Full
from unet_ray.engine.block_work import STAGES as STAGES_OF_ROWS
from unet_ray.engine.block_work import TRIES, work_through
from unet_ray.engine.blocks import Outcome
from unet_ray.errors import VolumeError
from unet_ray.geometry.block_set import BlockSet


def plain_loop(worker: Counting, blocks: Iterable[int]) -> dict[int, str]:
    """Error of each block, one after the other, each tried `TRIES` times."""
    errors = {}
    for block in blocks:
        for _ in range(TRIES):
            try:
                worker.write(block, worker.encode(block, worker.compute(block, worker.read(block))))
            except VolumeError as error:
                errors[block] = str(error)
            else:
                errors[block] = ""
                break
    return errors


def compare_with_plain_loop(fails: dict[tuple[str, int], int], blocks: list[int]) -> list[dict[str, Any]]:
    worker, plain = Counting(fails), Counting(fails)
    rows = list(work_through(worker, blocks))
    errors = plain_loop(plain, blocks)
    assert [row["block"] for row in rows] == blocks
    assert {row["block"]: row["error"] for row in rows} == errors
    assert all(row["ok"] == (not row["error"]) and row["units"] == (7 if row["ok"] else 0) for row in rows)
    assert worker.written == plain.written
    assert worker.calls == plain.calls
    return rows


@pytest.mark.parametrize("times", [1, 2, 3, 9])
@pytest.mark.parametrize("place", [0, 2, 4])
@pytest.mark.parametrize("stage", STAGES)
def test_an_error_anywhere_ends_as_in_the_plain_loop(stage: str, place: int, times: int) -> None:
    rows = compare_with_plain_loop({(stage, 30 + place): times}, list(range(30, 35)))
    failed = [row["block"] for row in rows if not row["ok"]]
    assert failed == ([30 + place] if times >= TRIES else [])
    assert rows[place]["error"] == (f"block {30 + place} does not {stage}" if failed else "")


@given(
    st.dictionaries(st.tuples(st.sampled_from(STAGES), st.integers(0, 5)), st.integers(1, 4), max_size=10),
    st.integers(0, 6),
)
def test_any_errors_end_as_in_the_plain_loop(fails: dict[tuple[str, int], int], blocks: int) -> None:
    compare_with_plain_loop(fails, list(range(blocks)))


def test_foreign_errors_are_named_with_their_kind() -> None:
    class Broken(Counting):
        def compute(self, block: int, data: int) -> int:
            raise KeyError("two\nlines")

    (row,) = work_through(Broken({}), [3])
    assert row["error"] == "KeyError: 'two\\nlines'"


def test_what_an_earlier_try_finished_is_left_out() -> None:
    worker = Counting({}, there=[4, 5, 7])
    rows = list(work_through(worker, range(4, 9)))
    assert sorted(row["block"] for row in rows) == [4, 5, 6, 7, 8]
    assert all(row["ok"] for row in rows)
    assert sorted(worker.written) == [6, 8]
    # Without the first block's record nobody was here before, and nothing more is asked for.
    worker = Counting({}, there=[5])
    list(work_through(worker, range(4, 6)))
    assert sorted(worker.written) == [4, 5]


def test_reads_one_ahead_and_writes_one_behind() -> None:
    """Each stage waits for another block's stage, so that a plain loop would time out."""
    started = {(stage, block): threading.Event() for stage in STAGES for block in range(4)}
    most_ahead = 0

    class Waiting(Counting):
        def _enter(self, stage: str, block: int) -> None:
            nonlocal most_ahead
            started[stage, block].set()
            if stage == "read":
                most_ahead = max(most_ahead, block - sum(started["compute", b].is_set() for b in range(4)))
            awaited = {"compute": ("read", block + 1), "write": ("compute", block + 1)}.get(stage)
            if awaited in started and not started[awaited].wait(10):
                raise TimeoutError(f"{stage} {block} waited for {awaited}")

    rows = list(work_through(Waiting({}), range(4)))
    assert [row["error"] for row in rows] == [""] * 4
    assert set(STAGES_OF_ROWS) <= rows[0].keys()
    assert most_ahead <= 1


class InTurn(Counting):
    """Computes one block at a time."""

    def __init__(self, fails: dict[tuple[str, int], int]) -> None:
        super().__init__(fails)
        self.computing = threading.Lock()

    def compute(self, block: int, data: int) -> int:
        assert self.computing.acquire(blocking=False)
        time.sleep(0.001)
        try:
            return super().compute(block, data)
        finally:
            self.computing.release()


def two_runs(worker: Counting, first: Iterable[int], second: Iterable[int]) -> list[list[dict[str, Any]]]:
    """Rows of two runs that one worker has at the same time."""
    turn = threading.Lock()
    with ThreadPoolExecutor(2) as threads:
        calls = [threads.submit(lambda run=run: list(work_through(worker, run, turn))) for run in (first, second)]
        return [call.result() for call in calls]


@given(st.dictionaries(st.tuples(st.sampled_from(STAGES), st.integers(0, 5)), st.integers(1, 4), max_size=10))
@settings(max_examples=30, deadline=None)
def test_two_runs_at_once_end_as_in_the_plain_loop(fails: dict[tuple[str, int], int]) -> None:
    worker, plain = InTurn(fails), Counting(fails)
    rows = two_runs(worker, range(3), range(3, 6))
    errors = plain_loop(plain, range(6))
    assert [[row["block"] for row in run] for run in rows] == [[0, 1, 2], [3, 4, 5]]
    assert {row["block"]: row["error"] for run in rows for row in run} == errors
    assert (worker.written, worker.calls) == (plain.written, plain.calls)


def test_between_two_runs_nothing_waits_for_a_read_or_a_write() -> None:
    """The second one's first block is read before the first one's last is computed, and that is written after it."""
    started = {(stage, block): threading.Event() for stage in STAGES for block in (0, 1, 10, 11)}
    awaited = {("compute", 0): ("read", 10), ("write", 1): ("compute", 10)}

    class Waiting(InTurn):
        def _enter(self, stage: str, block: int) -> None:
            started[stage, block].set()
            if (stage, block) in awaited and not started[awaited[stage, block]].wait(10):
                raise TimeoutError(f"{stage} {block} waited for {awaited[stage, block]}")

    def late() -> Iterator[int]:
        started["compute", 0].wait(10)
        yield from (10, 11)

    first, second = two_runs(Waiting({}), range(2), late())
    assert [row["error"] for row in first + second] == [""] * 4
    assert first[1]["wait_for_write"] == 0  # it was not what computing waited for
    assert all(row["started"] <= row["ended"] for row in first + second)
    assert second[0]["started"] >= first[1]["started"]


def test_what_computing_waited_for_is_told() -> None:
    class Slow(Counting):
        def read(self, block: int) -> int:
            time.sleep(0.1)
            return super().read(block)

        def encode(self, block: int, result: int) -> str:
            time.sleep(0.3)
            return super().encode(block, result)

    rows = list(work_through(Slow({}), range(3)))
    assert all(0.1 <= row["read"] < 0.3 <= row["compress"] and row["compute"] < 0.1 > row["write"] for row in rows)
    # Nothing was read or written ahead of the first block; the others' input came while output was compressed.
    assert rows[0]["wait_for_read"] > 0.09 > rows[2]["wait_for_read"]
    assert rows[2]["wait_for_write"] > 0.29


@pytest.mark.parametrize(("number", "full"), [(errno.ENOSPC, True), (errno.EDQUOT, True), (errno.EIO, False)])
def test_nothing_more_is_computed_where_nothing_can_be_put(number: int, full: bool) -> None:
    worker = Full(4, number)
    rows = list(work_through(worker, range(10)))
    assert [row["block"] for row in rows] == list(range(10))
    assert [row["ok"] for row in rows] == [True] * 4 + [False] * 6
    assert {(row["full"], row["error"]) for row in rows[4:]} == {
        (full, f"out cannot be written ({os.strerror(number)})")
    }
    computed = sum(count for (stage, _), count in worker.calls.items() if stage == "compute")
    assert computed == (6 if full else 4 + 6 * TRIES)  # one while the fifth was being written


class Telling(Counting):
    """Counts what it computes."""

    def counts(self, block: int) -> dict[str, int]:
        assert block in self.written
        return {"computed": self.calls["compute", block], "odd": block % 2}


def test_counts_are_of_blocks_that_were_written() -> None:
    worker = Telling({("encode", 1): 1, ("compute", 3): 9}, there=[0])
    outcome, done = Outcome(), BlockSet(6, [5])
    for row in work_through(worker, range(6)):
        outcome.take(row, done)
    assert list(outcome.failures) == [3]
    # Block 0 was there, 5 had been counted before, 1 was computed twice.
    assert outcome.counts == {"computed": 1 + 2 + 1, "odd": 1}
