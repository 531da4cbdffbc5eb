"""How a run gets its Ray."""

import subprocess
import sys
from typing import Any

import pytest
import ray

from unet_ray.engine.cluster import cluster
from unet_ray.errors import UnetRayError


@pytest.mark.parametrize(
    ("said", "ends"),
    [
        ("The current node timed out during startup. This could happen because", UnetRayError),  # Ray 2.60's words
        ("something else", Exception),
    ],
)
def test_a_machine_too_busy_for_ray_is_a_sentence(
    said: str, ends: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def init(**settings: Any) -> None:
        raise Exception(said)

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)  # the other tests of this process have theirs
    with pytest.raises(Exception, match=r"did not start|something else") as found, cluster():
        pytest.fail("there is no cluster")
    assert type(found.value) is ends
    assert ("run the same command again" in str(found.value)) == (ends is UnetRayError)


LATE = """
import unet_ray.engine.cluster
import ray

started = []
ray.init = lambda *words, **settings: started.append(settings)
try:
    ray.put(1)
except Exception as error:
    print(len(started), type(error).__name__)
"""


def test_a_thread_that_outlives_the_cluster_starts_no_other() -> None:
    """Ray would start itself for any call; what a thread of Ray Data still says then comes to nothing instead."""
    told = subprocess.run([sys.executable, "-c", LATE], capture_output=True, text=True)
    assert (told.stdout, told.returncode) == ("0 RaySystemError\n", 0), told.stderr
