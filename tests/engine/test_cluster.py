"""How a run gets its Ray."""

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
