"""A head that does not answer: told in a sentence, at the start and later."""

import os
import socket
import threading
from collections.abc import Iterator

import pytest

from unet_ray.engine import head
from unet_ray.errors import ConfigError


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as opened:
        yield opened


def at(opened: socket.socket) -> str:
    return f"127.0.0.1:{opened.getsockname()[1]}"


def test_a_wrong_address_is_refused_in_a_sentence(listening: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "START_SECONDS", 0.1)
    head.require_head(at(listening))
    address = at(listening)
    listening.close()
    with pytest.raises(ConfigError, match=f"RAY_ADDRESS names the Ray cluster at {address}, where nobody answers"):
        head.require_head(address)


@pytest.mark.parametrize("address", ["auto", "ray://head:10001", "local"])
def test_other_forms_are_left_to_ray(address: str) -> None:
    head.require_head(address)


def test_a_lost_head_ends_the_process(
    listening: socket.socket, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = threading.Event()
    codes: list[int] = []

    def end(code: int) -> None:
        codes.append(code)
        ended.set()

    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(head, "EVERY_SECONDS", 0.02)
    monkeypatch.setattr(head, "PATIENCE_SECONDS", 0.2)
    address = at(listening)
    with head.watched(address):
        assert not ended.wait(0.5), "it answers all the time"
        listening.close()
        assert ended.wait(10)
    assert set(codes) == {1}
    assert f"the head of the Ray cluster at {address} has not answered for" in capsys.readouterr().err
