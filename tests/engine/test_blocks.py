"""The loop over blocks: order and errors without Ray, dying processes with it."""

import errno
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray import cloudpickle

from unet_ray.engine import blocks
from unet_ray.engine.blocks import STAGES as STAGES_OF_ROWS
from unet_ray.engine.blocks import TRIES, Outcome, run_blocks, run_few, work_through
from unet_ray.errors import ConfigError, TargetError, UnetRayError, VolumeError
from unet_ray.geometry.block_set import BlockSet

# Actors get the workers below by value: pytest's name of this module is none that they could import.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

STAGES = ("read", "compute", "encode", "write")


class Counting:
    """Fails stage s of block b as often as ``fails[s, b]`` says; keeps what it did."""

    def __init__(self, fails: dict[tuple[str, int], int], there: Iterable[int] = ()) -> None:
        self.left, self.there = Counter(fails), set(there)
        self.calls = Counter[tuple[str, int]]()
        self.written: dict[int, int] = {}

    def _enter(self, stage: str, block: int) -> None:
        self.calls[stage, block] += 1
        if self.left[stage, block] > 0:
            self.left[stage, block] -= 1
            raise VolumeError(f"block {block} does not {stage}")

    def is_done(self, block: int) -> bool:
        return block in self.there

    def read(self, block: int) -> int:
        self._enter("read", block)
        return 10 * block

    def compute(self, block: int, data: int) -> int:
        assert data == 10 * block
        self._enter("compute", block)
        return data + 1

    def encode(self, block: int, result: int) -> str:
        self._enter("encode", block)
        return str(result)

    def write(self, block: int, encoded: str) -> int:
        self._enter("write", block)
        self.written[block] = int(encoded)
        return 7


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


class Full(Counting):
    """Has room for so many blocks."""

    def __init__(self, room: int, number: int = errno.ENOSPC) -> None:
        super().__init__({})
        self.room, self.number = room, number

    def write(self, block: int, encoded: str) -> int:
        if len(self.written) == self.room:
            error = OSError(self.number, os.strerror(self.number))
            raise TargetError(f"out cannot be written ({error.strerror})") from error
        return super().write(block, encoded)


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


@pytest.mark.usefixtures("ray_cluster")
def test_a_full_disk_ends_the_run_with_the_workers_sentence() -> None:
    done = BlockSet(300)
    with pytest.raises(TargetError, match=r"^out cannot be written \(No space left on device\)$"):
        run_blocks(partial(Full, 10), done, workers=1, cpus_each=1, run_length=4, stage="test")
    assert 4 <= len(done) <= 10
    with pytest.raises(TargetError, match="No space left"):
        run_few(partial(Full, 1), [2, 5])


class Dying:
    """Writes files; some blocks raise, kill their process at their first try, or at every try."""

    def __init__(self, folder: Path, raises: set[int], kill_once: set[int], poison: set[int]) -> None:
        self.folder, self.raises, self.kill_once, self.poison = folder, raises, kill_once, poison

    def is_done(self, block: int) -> bool:
        return (self.folder / str(block)).exists()

    def read(self, block: int) -> int:
        return block

    def compute(self, block: int, data: int) -> int:
        if block in self.raises:
            raise ValueError(f"no {block}")
        marker = self.folder / f"killed-{block}"
        if block in self.poison or (block in self.kill_once and not marker.exists()):
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return data

    def encode(self, block: int, result: int) -> int:
        return result

    def write(self, block: int, encoded: int) -> int:
        with open(self.folder / "written", "a") as file:
            file.write(f"{block}\n")
        (self.folder / str(block)).touch()
        return 2


def written(folder: Path) -> Counter[int]:
    return Counter(int(line) for line in (folder / "written").read_text().split())


def run(
    folder: Path, blocks: int, done: Iterable[int] = (), run_length: int = 8, **how: set[int]
) -> tuple[Any, BlockSet, list[dict[str, Any]]]:
    rows: list[dict[str, Any]] = []
    there = BlockSet(blocks, done)
    given = {"raises": set[int](), "kill_once": set[int](), "poison": set[int](), **how}
    outcome = run_blocks(
        partial(Dying, folder, **given),
        there,
        workers=2,
        cpus_each=1,
        run_length=run_length,
        stage="test",
        on_row=rows.append,
    )
    return outcome, there, rows


@pytest.mark.usefixtures("ray_cluster")
def test_errors_and_a_death_cost_nothing_else(tmp_path: Path) -> None:
    outcome, done, rows = run(tmp_path, 100, done=range(90, 95), raises={7, 50}, kill_once={20, 41})
    assert len({row["pid"] for row in rows}) >= 2
    assert len(list(tmp_path.glob("killed-*"))) == 2
    assert outcome.failures == {7: "ValueError: no 7", 50: "ValueError: no 50"}
    todo = set(range(100)) - {7, 50, *range(90, 95)}
    assert set(done) == todo | set(range(90, 95))
    assert outcome.written == len(todo)
    counts = written(tmp_path)
    assert set(counts) == todo
    # Done again are at most the blocks that were being written while their process died.
    assert sum(counts.values()) - len(todo) <= 2
    assert counts[16] == counts[17] == 1
    assert sorted(row["block"] for row in rows) == sorted({*todo, 7, 50})
    assert outcome.seconds > 0
    assert outcome.peak_worker_rss_bytes > 2**20


@pytest.mark.usefixtures("ray_cluster")
def test_blocks_that_always_kill_fail_alone(tmp_path: Path) -> None:
    poison = {3, 17}
    outcome, done, rows = run(tmp_path, 40, poison=poison)
    assert outcome.failures == dict.fromkeys(poison, "its worker process died each time it was tried")
    assert set(done) == set(range(40)) - poison == set(written(tmp_path))
    assert not poison & {row["block"] for row in rows}


@pytest.mark.usefixtures("ray_cluster")
def test_code_that_was_edited_meanwhile_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "own_code", lambda: "0123")
    with pytest.raises(ConfigError, match=r"^node \S+ cannot run this: .* the driver's 0123; .* again: it goes on$"):
        run(tmp_path, 40)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("ray_cluster")
def test_nothing_to_do_starts_nothing(tmp_path: Path, ray_actors: Callable[[], list[int]]) -> None:
    before = ray_actors()
    outcome, _, rows = run(tmp_path, 5, done=range(5))
    assert (outcome.written, outcome.failures, rows) == (0, {}, [])
    assert ray_actors() == before


class Asking(Counting):
    """Counts the memory that Ray has set aside for it."""

    def __init__(self) -> None:
        super().__init__({})

    def counts(self, block: int) -> dict[str, int]:
        import ray

        return {"memory": int(ray.get_runtime_context().get_assigned_resources().get("memory", 0))}


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("asked", [0, 300 * 2**20])
def test_an_actor_asks_for_its_memory(asked: int) -> None:
    outcome = run_blocks(
        Asking, BlockSet(1), workers=1, cpus_each=1, memory_each=asked, run_length=1, stage="test",
    )  # fmt: skip
    assert outcome.counts == {"memory": asked}


class Heavy(Counting):
    """Blocks of 8 MB, as a volume's are."""

    def __init__(self) -> None:
        super().__init__({})

    def read(self, block: int) -> Any:
        return np.ones(2**20)

    def compute(self, block: int, data: Any) -> Any:
        return 2 * data

    def encode(self, block: int, result: Any) -> bytes:
        return bytes(result)

    def write(self, block: int, encoded: bytes) -> int:
        time.sleep(0.01)
        return len(encoded) // 8


@pytest.mark.usefixtures("ray_cluster")
def test_the_object_store_holds_no_voxels() -> None:
    import ray

    def used() -> float:
        """Bytes in the store, which Ray tells its scheduler several times a second."""
        return ray.cluster_resources()["object_store_memory"] - ray.available_resources()["object_store_memory"]

    before, seen = used(), list[float]()
    outcome = run_blocks(
        Heavy, BlockSet(300), workers=2, cpus_each=1, run_length=4, stage="test",
        on_row=lambda row: seen.append(used()) if row["block"] % 4 == 0 else None,
    )  # fmt: skip
    assert (outcome.written, outcome.units) == (300, 300 * 2**20)
    assert len(seen) == 75
    # 2.4 GB went through the workers: as many bytes as one block has are far from it.
    assert max(seen) - before < 8 * 2**20


class Hanging(Counting):
    """Takes so many seconds for each block."""

    def __init__(self, seconds: float) -> None:
        super().__init__({})
        self.seconds = seconds

    def compute(self, block: int, data: int) -> int:
        time.sleep(self.seconds)
        return super().compute(block, data)


@pytest.mark.usefixtures("ray_cluster")
def test_a_hang_is_a_sentence_and_slow_blocks_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "NO_PROGRESS_SECONDS", 1)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def run(seconds: float, **how: float) -> Outcome:
        make, done = partial(Hanging, seconds), BlockSet(4)
        return run_blocks(make, done, workers=2, cpus_each=1, run_length=1, stage="test", **how)

    with pytest.raises(UnetRayError, match=r"^no worker has finished a block of test for 0 minutes.* the same command"):
        run(600)
    assert run(3, seconds_each=3).written == 4


@pytest.mark.parametrize(
    ("address", "there", "stalls", "ends"),
    [
        ("", [1], 1, True),
        ("head:6379", [1], 1, False),
        ("head:6379", [1, 1], 2, True),
        ("head:6379", [0, 0, 0, 1], 4, False),  # the node may have come just before the time was over
    ],
)
def test_a_cluster_without_a_node_is_waited_for(
    address: str, there: list[int], stalls: int, ends: bool,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    patiences, nodes = list[float](), iter(there)

    def stream(*arguments: Any) -> Iterator[dict[str, Any]]:
        _, runs, *_, patience = arguments
        patiences.append(patience)
        if len(patiences) <= stalls:
            raise blocks._NoProgressError
        yield from work_through(Counting({}), [run["start"] for run in runs])

    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr(blocks, "_stream", stream)
    monkeypatch.setattr(blocks, "roomiest_node", lambda cpus, gpus: ("node", next(nodes)))

    def run() -> Outcome:
        return run_blocks(
            partial(Counting, {}), BlockSet(3), workers=1, cpus_each=1, run_length=1, seconds_each=880.0, stage="test",
        )  # fmt: skip

    if ends:
        with pytest.raises(UnetRayError, match="for 293 minutes"):
            run()
    else:
        assert run().written == 3
    assert patiences == [20 * 880] * (stalls if ends else stalls + 1)
    said = capsys.readouterr().err
    assert said.count("no node is there with 1 CPU and 0 GPU for a worker; waiting for one") == there.count(0)


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
