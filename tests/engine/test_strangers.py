"""What is started waits for a node with the driver's code rather than start on one that joined with other code."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray
from ray import cloudpickle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from unet_ray.engine import same_code
from unet_ray.engine.blocks import run_blocks, run_few
from unet_ray.engine.section_tasks import in_tasks
from unet_ray.geometry.block_set import BlockSet

# Workers get the class below by value: pytest's name of this module is none that they could import.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

HELD_SECONDS = 3.0


@pytest.fixture(scope="module")
def stranger(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """ID of a node of two CPUs that joins the session's cluster for a while, and is known to have other code."""
    before = alive()
    command = [
        str(Path(sys.executable).with_name("ray")), "start", f"--address={ray.get_runtime_context().gcs_address}",
        "--num-cpus=2", f"--object-store-memory={80_000_000}", "--disable-usage-stats", "--block",
    ]  # fmt: skip
    with open(tmp_path_factory.mktemp("stranger") / "said", "w") as said:
        node = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT)
    try:
        wait_for(lambda: len(alive()) > len(before), 120)
        (joined,) = alive() - before
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(same_code._asked, joined, "its unet_ray has the digest 0123")
            yield joined
    finally:
        node.terminate()
        node.wait(60)
        wait_for(lambda: alive() == before, 60)


def alive() -> set[str]:
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


def wait_for(what: Callable[[], bool], seconds: float) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until, f"it did not come to that in {seconds:g} s"
        time.sleep(0.1)


class Node:
    """Keeps on which node a block was computed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def is_done(self, block: int) -> bool:
        return False

    def read(self, block: int) -> None:
        pass

    def compute(self, block: int, data: None) -> str:
        return here()

    def encode(self, block: int, result: str) -> str:
        return result

    def write(self, block: int, encoded: str) -> int:
        (self.folder / str(block)).write_text(encoded)
        return 1


def here() -> str:
    return ray.get_runtime_context().get_node_id()


@ray.remote
class Holder:
    """Takes CPUs for as long as it lives."""

    def holds(self) -> bool:
        return True


def in_sections(folder: Path) -> set[str]:
    return {found for _, found in in_tasks(here, [(), ()], None)}


def in_one_task(folder: Path) -> set[str]:
    assert run_few(partial(Node, folder), [0, 1]).written == 2
    return {path.read_text() for path in folder.iterdir()}


def in_actors(folder: Path) -> set[str]:
    done = BlockSet(2)
    assert run_blocks(partial(Node, folder), done, workers=2, cpus_each=1, run_length=1, stage="test").written == 2
    return {path.read_text() for path in folder.iterdir()}


@pytest.mark.parametrize("work", [in_sections, in_one_task, in_actors])
def test_work_waits_rather_than_go_to_a_stranger(
    stranger: str, work: Callable[[Path], set[str]], tmp_path: Path
) -> None:
    assert same_code.strangers() == [stranger]
    holder: Any = Holder.options(  # type: ignore[attr-defined]
        num_cpus=4, scheduling_strategy=NodeAffinitySchedulingStrategy(here(), soft=False)
    ).remote()
    assert ray.get(holder.holds.remote()), "the driver's node has no free CPU"
    release = threading.Timer(HELD_SECONDS, ray.kill, [holder])
    release.start()
    assert work(tmp_path) == {here()}
    release.join()
