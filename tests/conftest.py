"""Fixtures that tests share: the real data, the golden values, and one Ray for the whole session."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


def _shared(name: str) -> Path:
    folder = Path(os.environ.get("UNET_RAY_SHARED", SHARED)) / name
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there: its licence forbids shipping it (set UNET_RAY_SHARED to its parent)")
    return folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the real EM stacks."""
    return _shared("data")


@pytest.fixture(scope="session")
def shared_golden() -> Path:
    """Folder of the metrics' golden values, the ISBI-derived ones included."""
    return _shared("golden")


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """An embedded Ray with 4 CPUs' worth of slots, so that two workers run at once on any machine."""
    import ray

    import unet_ray.engine  # noqa: F401  (sets Ray's environment before it starts)
    from unet_ray.engine.cluster import cluster

    os.environ["UNET_RAY_TEST"] = "1"
    with cluster():
        assert ray.is_initialized()
        yield


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave slow tests out unless -m names them."""
    if "slow" in config.getoption("-m"):
        return
    skip = pytest.mark.skip(reason="takes minutes; run with -m slow")
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(skip)
