"""Small inputs for the engines, and what tells of a run what it did."""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest


@pytest.fixture(scope="session")
def phantom_image() -> Callable[..., npt.NDArray[np.uint8]]:
    """phantom_image(shape, seed=0): grey levels of the phantom."""
    from unet_ray.geometry.box import Box
    from unet_ray.numerics.phantom import phantom_block

    return lambda shape, seed=0: phantom_block(Box.of_shape(shape), seed).image


@contextmanager
def recorded() -> Iterator[list[dict[str, Any]]]:
    from unet_ray.engine import blocks

    seen: list[dict[str, Any]] = []
    stream = blocks._stream

    def spy(*arguments: Any) -> Iterator[dict[str, Any]]:
        for row in stream(*arguments):
            seen.append(row)
            yield row

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "_stream", spy)
        yield seen


@pytest.fixture
def rows() -> Iterator[list[dict[str, Any]]]:
    """Every row that comes back from the cluster while the test runs."""
    with recorded() as seen:
        yield seen


@pytest.fixture(scope="module")
def module_rows() -> Callable[[], AbstractContextManager[list[dict[str, Any]]]]:
    """The same for module fixtures: ``with module_rows() as rows``."""
    return recorded


@pytest.fixture(scope="session")
def ray_actors() -> Callable[[], list[int]]:
    """ray_actors(): process ids of the Ray actors that this very process's cluster runs."""

    def parent(pid: int) -> int:
        try:
            return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            return 0

    def ours(pid: int) -> bool:
        while pid > 1 and pid != os.getpid():
            pid = parent(pid)
        return pid == os.getpid()

    def found() -> list[int]:
        if not Path("/proc/self/cmdline").exists():
            pytest.skip("finds Ray's processes in /proc")
        actors = []
        for folder in Path("/proc").iterdir():
            try:
                # Idle workers are called ray::IDLE; Ray Data's actors after the operator they run.
                named = folder.name.isdigit() and b"ray::MapWorker" in (folder / "cmdline").read_bytes()
            except OSError:
                continue
            if named and ours(int(folder.name)):
                actors.append(int(folder.name))
        return sorted(actors)

    return found


@pytest.fixture(scope="session")
def read_all() -> Callable[[Path | str], npt.NDArray[Any]]:
    """read_all(path): every voxel of a volume."""
    from unet_ray.geometry.box import Box
    from unet_ray.storage.volume import open_volume

    def read(path: Path | str) -> npt.NDArray[Any]:
        stored = open_volume(str(path))
        return stored.read(Box.of_shape(stored.shape))

    return read
