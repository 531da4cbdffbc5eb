"""Other code on a node ends the run in a sentence, another library is worth a warning."""

import importlib.metadata
import time

import pytest

from unet_ray.errors import ConfigError


def test_the_driver_s_own_machine_agrees_quickly(ray_cluster: None) -> None:
    from unet_ray.engine.same_code import require_same_code

    require_same_code()  # starts a process, perhaps
    began = time.monotonic()
    assert require_same_code() == []
    assert time.monotonic() - began < 1


def test_what_is_told_of_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    from unet_ray.engine import same_code

    found = same_code.versions()
    assert found.libraries["numpy"] == importlib.metadata.version("numpy")
    monkeypatch.setattr(same_code, "LIBRARIES", ("numpy", "no-such-library"))
    assert same_code.versions().libraries.keys() == {"numpy"}


def test_other_code_is_refused_and_named() -> None:
    from unet_ray.engine.same_code import Versions, compared

    here = Versions("aa", {"numpy": "2.4"})
    nodes = {f"10.0.0.{n}": Versions("aa" if n == 1 else "bb", {"numpy": "2.4"}) for n in range(1, 7)}
    with pytest.raises(ConfigError, match=r"10\.0\.0\.2, 10\.0\.0\.3, 10\.0\.0\.4 and 2 more .* digest bb, here aa"):
        compared(here, nodes)


def test_libraries_are_compared_one_by_one() -> None:
    from unet_ray.engine.same_code import Versions, compared

    here = Versions("aa", {"numpy": "2.4", "torch": "2.13"})
    nodes = {
        "10.0.0.1": here,
        "10.0.0.2": Versions("aa", {"numpy": "2.3", "torch": "2.13"}),
        "10.0.0.3": Versions("aa", {"torch": "2.13"}),
    }
    assert compared(here, nodes) == [
        "numpy is 2.4 here but 2.3 on 10.0.0.2, missing on 10.0.0.3; results may differ in rounding"
    ]
