"""Three hosts for all tests of this folder: starting Ray on them takes longer than most tests."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import zarr

from unet_ray.geometry.box import Box
from unet_ray.numerics.phantom import phantom_block

sys.path.insert(0, str(Path(__file__).parent))

from hosts import Hosts, hosts_with_ray
from namespaces import why_not

Labelled = dict[str, tuple[str, ...]]


@pytest.fixture(scope="session")
def can_make_hosts() -> None:
    """Skips where this machine cannot make hosts."""
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)


@pytest.fixture(scope="session")
def session_hosts(can_make_hosts: None) -> Iterator[Hosts]:
    """Hosts that tests may switch off."""
    with hosts_with_ray(3) as hosts:
        yield hosts


@pytest.fixture
def hosts(session_hosts: Hosts) -> Iterator[Hosts]:
    """Three hosts with Ray, the first the head; one that an earlier test has switched off is replaced."""
    session_hosts.restore(3)
    yield session_hosts
    # A job that outlives its test would take the next one's CPUs.
    for host in (session_hosts.head, *session_hosts.workers):
        for process in host.processes("jobs/"):
            os.kill(process, signal.SIGKILL)


@pytest.fixture(scope="session")
def labelled_at() -> Callable[..., Labelled]:
    """labelled_at(folder, side=160): a small labelled stack where every host sees it, as flags of the augment job."""

    def make(folder: Path, side: int = 160) -> Labelled:
        folder.mkdir(exist_ok=True)
        made = phantom_block(Box.of_shape((6, side, side)), 4)
        for name, values in (("images", made.image), ("labels", made.membrane * np.uint8(255))):
            zarr.create_array(f"{folder}/{name}.zarr", data=values, chunks=(1, side, side))
        return {"images": (f"{folder}/images.zarr",), "labels": (f"{folder}/labels.zarr",)}

    return make


@pytest.fixture(scope="session")
def labelled(session_hosts: Hosts, labelled_at: Callable[..., Labelled]) -> Labelled:
    """The stack of `labelled_at`, where the hosts of the session see it."""
    return labelled_at(session_hosts.folder)
