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


def test_an_actor_does_not_start_with_other_code() -> None:
    from unet_ray.engine.same_code import own_code, require_code

    require_code(own_code())
    with pytest.raises(ConfigError, match=rf"its unet_ray has the digest {own_code()}, the driver's 0123"):
        require_code("0123")


def test_a_node_that_joins_is_asked_once_and_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from unet_ray.engine import same_code
    from unet_ray.engine.same_code import Versions, own_code, strangers

    nodes, asked = {"head": "10.0.0.1"}, list[str]()
    runs = {
        "good": Versions(own_code(), {}), "other": Versions("bb", {}), "none": "ModuleNotFoundError: unet_ray",
        "slow": None,
    }  # fmt: skip

    def answers(new: dict[str, str], seconds: float) -> dict[str, Versions | str]:
        asked.extend(new)
        return {node: answer for node in new if (answer := runs[node]) is not None}

    monkeypatch.setattr(same_code, "_asked", {"head": ""})
    monkeypatch.setattr(same_code, "_alive", lambda: dict(nodes))
    monkeypatch.setattr(same_code, "_answers", answers)
    assert strangers() == []
    nodes |= {"good": "10.0.0.2", "other": "10.0.0.3", "none": "10.0.0.4", "slow": "10.0.0.5"}
    assert strangers() == ["other", "none"]
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert said[0].startswith("cluster: node 10.0.0.3 has joined and gets no work: its unet_ray has the digest bb")
    assert "10.0.0.4" in said[1]
    assert "ModuleNotFoundError" in said[1]
    # One that was too busy to answer is asked again, the others are not; one that has left is no more avoided.
    del nodes["none"]
    assert strangers() == ["other"]
    assert asked == ["good", "other", "none", "slow", "slow"]
    assert capsys.readouterr().err == ""


def test_a_section_is_no_work_for_a_node_with_other_code(ray_cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from unet_ray.engine import section_tasks

    assert dict(section_tasks.in_tasks(divmod, [(7, 2), (9, 4)], None)) == {0: (3, 1), 1: (2, 1)}
    monkeypatch.setattr(section_tasks, "own_code", lambda: "0123")
    with pytest.raises(ConfigError, match=r"node \S+ cannot run this: .* the driver's 0123; install the same on every"):
        list(section_tasks.in_tasks(divmod, [(7, 2)], None))
