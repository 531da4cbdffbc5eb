"""Fixtures that tests share: the real data, the golden values, and one Ray for the whole session."""

import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest

from tests.browser import BrowserPage, open_pages

# The clock of a busy machine must not fail a property.
hypothesis.settings.register_profile("unet_ray", deadline=None)
hypothesis.settings.load_profile("unet_ray")

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
    import unet_ray.engine  # noqa: F401  isort: skip  (sets Ray's environment before it is imported)
    import ray

    folder = tempfile.mkdtemp(prefix="unet_ray-test-", dir="/tmp")  # a socket's path must be short
    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        object_store_memory=256 * 1024**2,
        logging_level=logging.ERROR,
        log_to_driver=False,
        _temp_dir=folder,
    )
    for name in ("ray", "ray.data", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)
    yield
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def browser_page() -> Iterator[Callable[..., BrowserPage]]:
    """browser_page(url, width=1280, height=800, dark=False): a page in headless Chromium, for tests marked browser."""
    with open_pages() as open_page:
        yield open_page


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave slow tests out unless -m names them."""
    if "slow" in config.getoption("-m"):
        return
    skip = pytest.mark.skip(reason="takes minutes; run with -m slow")
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(skip)
