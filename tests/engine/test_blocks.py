"""The pool of workers over blocks, with Ray: dying and hanging processes, full disks, other code."""

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
import ray
from ray import cloudpickle

from tests.engine import block_counting
from tests.engine.block_counting import Counting, Full
from unet_ray.engine import blocks
from unet_ray.engine.block_work import work_through
from unet_ray.engine.blocks import Outcome, run_blocks, run_few
from unet_ray.errors import ConfigError, TargetError, UnetRayError
from unet_ray.geometry.block_set import BlockSet

# Actors get the workers by value: these modules' names are none that they could import.
for module in (sys.modules[__name__], block_counting):
    cloudpickle.register_pickle_by_value(module)


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
    with pytest.raises(ConfigError, match=r"^node \S+ cannot run this: .* the driver's 0123; .* again: it goes on$"):
        run_few(partial(Dying, tmp_path, set(), set(), set()), [2, 5])
    assert not list(tmp_path.iterdir())


class Meeting(Dying):
    """Computes when as many processes as are expected have begun, and writes who made a block."""

    def __init__(self, folder: Path, processes: int) -> None:
        super().__init__(folder, set(), set(), set())
        self.processes = processes

    def compute(self, block: int, data: int) -> int:
        (self.folder / f"process-{os.getpid()}").touch()
        until = time.monotonic() + 60
        while len(list(self.folder.glob("process-*"))) < self.processes and time.monotonic() < until:
            time.sleep(0.01)
        return data

    def write(self, block: int, encoded: int) -> int:
        (self.folder / str(block)).write_text(str(os.getpid()))
        return 1


class DyingBeside(Dying):
    """Block 0 kills its process each time; block 1, in another process, outlasts it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, set(), set(), {0})

    def compute(self, block: int, data: int) -> int:
        if block == 1:
            time.sleep(10.0)
        return super().compute(block, data)


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(("tasks", "processes"), [(1, 1), (2, 2), (9, 3)])
def test_tasks_share_blocks_that_follow_one_another(tmp_path: Path, tasks: int, processes: int) -> None:
    made = partial(Meeting, tmp_path, processes)
    outcome = run_few(made, [2, 5, 6], tasks)
    assert (outcome.written, outcome.units, outcome.failures) == (3, 3, {})
    by_process: dict[str, list[int]] = {}
    for block in (2, 5, 6):
        by_process.setdefault((tmp_path / str(block)).read_text(), []).append(block)
    assert list(by_process.values()) == {1: [[2, 5, 6]], 2: [[2, 5], [6]], 3: [[2], [5], [6]]}[processes]


@pytest.mark.usefixtures("ray_cluster")
def test_no_task_goes_on_when_another_has_ended_it_all(tmp_path: Path) -> None:
    with pytest.raises(ray.exceptions.WorkerCrashedError):
        run_few(partial(DyingBeside, tmp_path), [0, 1], 2)
    assert (tmp_path / "1").exists()


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


class Overlapping(Counting):
    """Writes the last block of a run when the first one of another is being computed."""

    def __init__(self) -> None:
        super().__init__({})
        self.computed = {block: threading.Event() for block in range(4)}

    def compute(self, block: int, data: int) -> int:
        self.computed[block].set()
        return super().compute(block, data)

    def write(self, block: int, encoded: str) -> int:
        if block % 2 and not any(self.computed[first].wait(5) for first in {0, 2} - {block - 1}):
            raise TimeoutError(f"block {block} waited for another run's")
        return super().write(block, encoded)


@pytest.mark.usefixtures("ray_cluster")
def test_an_actor_begins_a_run_while_it_ends_another() -> None:
    outcome = run_blocks(Overlapping, BlockSet(4), workers=1, cpus_each=1, run_length=2, stage="test")
    assert (outcome.failures, outcome.written) == ({}, 4)


class Gathering(Counting):
    """Its first block takes until so many processes work."""

    def __init__(self, folder: Path, processes: int) -> None:
        super().__init__({})
        self.folder, self.processes, self.ends = folder, processes, time.monotonic() + 120

    def compute(self, block: int, data: int) -> int:
        (self.folder / str(os.getpid())).touch()
        while len(list(self.folder.iterdir())) < self.processes:
            if time.monotonic() > self.ends:
                raise TimeoutError("the others did not come")
            time.sleep(0.05)
        return super().compute(block, data)


@pytest.mark.usefixtures("ray_cluster")
def test_a_pool_without_a_given_size_grows_to_all_cpus(tmp_path: Path) -> None:
    """One actor works on two runs at once; that it is given no more must not hold the others back."""
    make = partial(Gathering, tmp_path, 4)
    outcome = run_blocks(make, BlockSet(60), workers=None, cpus_each=1, run_length=1, stage="test")
    assert (outcome.failures, outcome.written) == ({}, 60)


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
