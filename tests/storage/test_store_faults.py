"""A store that is slow, breaks connections, cuts answers off or refuses: asked again, or told in one sentence."""

import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import pytest
import tifffile
import zarr
from zarr.storage import ObjectStore

from tests.fault_proxy import Fault, FaultProxy, always, at_random, first
from unet_ray.errors import InputError, TargetError, VolumeError
from unet_ray.geometry.box import Box
from unet_ray.storage import store_client
from unet_ray.storage.objects import Objects
from unet_ray.storage.open_objects import open_objects
from unet_ray.storage.volume import open_volume

pytestmark = pytest.mark.usefixtures("impatient")

FAULTS = [fault for fault in get_args(Fault) if fault not in ("forbidden", "short")]
BODY = bytes(range(256)) * 40
STACK = np.arange(3 * 40 * 50, dtype=np.uint16).reshape(3, 40, 50)
WHOLE = Box.of_shape(STACK.shape)


def keys(objects: Objects, prefix: str = "") -> list[str]:
    return sorted(info.key for info in objects.list(prefix))


OPERATIONS: dict[str, tuple[Callable[[Objects], Any], Any]] = {
    "put": (lambda o: (o.put("new", BODY), o.get("new"))[1], BODY),
    "put_new": (lambda o: (o.put_new("new", BODY), o.get("new"), o.put_new("new", b"")), (True, BODY, False)),
    "get": (lambda o: o.get("a"), BODY),
    "get nothing": (lambda o: o.get("nothing"), None),
    "get_part": (lambda o: o.get_part("a", 300, 5000), BODY[300:5300]),
    "get_part of the end": (lambda o: o.get_part("a", -5000, 5000), BODY[-5000:]),
    "get_part outside": (lambda o: o.get_part("a", 20_000, 10), b""),
    "size": (lambda o: o.size("a"), len(BODY)),
    "size of nothing": (lambda o: o.size("nothing"), None),
    "list": (keys, ["a", "b/0", "b/1"]),
    "delete": (lambda o: (o.delete("a"), keys(o))[1], ["b/0", "b/1"]),
    "delete_all": (lambda o: (o.delete_all("b/"), keys(o))[1], ["a"]),
    "rename": (lambda o: (o.rename("b/0", "c"), keys(o))[1], ["a", "b/1", "c"]),
    "require_writable": (lambda o: o.require_writable(), None),
}


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("fault", FAULTS)
def test_what_fails_once_is_asked_again(
    s3: str, s3_proxy: FaultProxy, fault: Fault, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if fault.startswith("stall"):
        if name not in ("put", "put_new", "get", "list", "delete"):
            pytest.skip("takes a second each; these five are of every kind")
        monkeypatch.setattr(store_client, "REQUEST_SECONDS", 1.0)
    operation, expected = OPERATIONS[name]
    objects = open_objects(s3)
    for key, data in (("a", BODY), ("b/0", b"0"), ("b/1", b"1")):
        objects.put(key, data)
    s3_proxy.stall_seconds, s3_proxy.choose = 2.0, first(fault)
    assert operation(objects) == expected
    assert s3_proxy.faults() == {fault: 1}


def test_one_of_two_writers_is_told_so_whatever_gets_lost(s3: str, s3_proxy: FaultProxy) -> None:
    """Also where the answer to the first request, which wrote, never came."""
    for number, fault in enumerate(("error after", "reset after")):
        s3_proxy.choose = first(fault, kind="PUT new")  # type: ignore[arg-type]
        assert open_objects(s3).put_new(f"{number}", b"same")
        s3_proxy.choose = first(fault, kind="PUT new")  # type: ignore[arg-type]
        assert not open_objects(s3).put_new(f"{number}", b"same")


def test_many_operations_while_requests_fail_at_random(s3: str, s3_proxy: FaultProxy) -> None:
    objects, model = open_objects(s3), dict[str, bytes]()
    s3_proxy.choose = at_random(0.3, seed=5)
    for number in range(30):
        key = f"{number % 7}/{number}"
        model[key] = BODY[number : 20 * number + 100]
        objects.put(key, model[key])
        if number % 5 == 0:
            objects.delete(key)
            del model[key]
        if number % 5 == 1:
            objects.rename(key, f"r{key}")
            model[f"r{key}"] = model.pop(key)
        assert objects.size(key) == (len(model[key]) if key in model else None)
    assert keys(objects) == sorted(model)
    assert {key: objects.get(key) for key in model} == model
    assert {key: objects.get_part(key, 1, 9) for key in model} == {key: data[1:10] for key, data in model.items()}
    # Not trivial: every way to fail was met.
    assert sum(s3_proxy.faults().values()) > 0.2 * len(s3_proxy.requests)
    assert len(s3_proxy.faults()) == 7


def test_a_listing_of_several_pages_goes_on_where_it_was_cut_off(s3: str, s3_proxy: FaultProxy) -> None:
    objects = open_objects(s3)
    wanted = [f"{number:04}" for number in range(120)]
    for key in wanted:
        objects.put(key, b"")
    s3_proxy.page_keys = 50
    s3_proxy.requests.clear()
    assert [info.key for info in objects.list()] == wanted
    assert s3_proxy.counts() == {"LIST": 3}
    s3_proxy.requests.clear()
    pages: list[Fault | None] = [None, "cut off", None, "reset in body", None]
    s3_proxy.choose = lambda kind, key: pages.pop(0)
    assert [info.key for info in objects.list()] == wanted
    assert (s3_proxy.counts(), pages) == ({"LIST": 5}, [])


@pytest.mark.parametrize("kind", ["zarr", "sharded zarr", "tif"])
def test_a_volume_is_read_while_requests_fail_at_random(s3: str, s3_proxy: FaultProxy, kind: str, tmp_path) -> None:
    objects, path = open_objects(s3), f"{s3}/v.tif"
    if kind == "tif":
        tifffile.imwrite(tmp_path / "v.tif", STACK, rowsperstrip=8, photometric="minisblack")
        objects.put("v.tif", (tmp_path / "v.tif").read_bytes())
    else:
        path, shards = f"{s3}/v.zarr", (3, 20, 50) if kind == "sharded zarr" else None
        store = ObjectStore(store_client.open_store(path))
        zarr.create_array(store, data=STACK, chunks=(1, 10, 25), shards=shards)
    plain = open_volume(path)
    wanted = plain.identity()
    s3_proxy.choose = at_random(0.3, seed=2)
    volume = open_volume(path)
    assert volume.identity() == wanted
    for _ in range(2):
        np.testing.assert_array_equal(volume.read(WHOLE), STACK)
    assert s3_proxy.faults()


@pytest.mark.parametrize("compressed", [True, False])
def test_half_an_object_is_never_taken_for_all_of_it(s3: str, s3_proxy: FaultProxy, compressed: bool) -> None:
    """Where something on the way says that the half is all."""
    store = ObjectStore(store_client.open_store(f"{s3}/v.zarr"))
    zarr.create_array(store, data=STACK, chunks=(1, 40, 50), compressors="auto" if compressed else None)
    volume = open_volume(f"{s3}/v.zarr")
    s3_proxy.choose = lambda kind, key: "short" if "/c/" in key else None
    with pytest.raises(VolumeError, match=r"sections 0 to 2 of .* cannot be read .*a chunk is damaged"):
        volume.read(WHOLE)


AWAY: dict[str, tuple[str, str]] = {
    "slow down": ("slow down", "503 S"),
    "silent": ("stall", "HTTP error"),
    "broken": ("reset", "HTTP error"),
    "cut off": ("cut off", "HTTP error"),
    "nobody there": ("", "HTTP error"),
}


@pytest.mark.parametrize("how", AWAY)
def test_a_store_that_stays_away_is_told_in_a_sentence_and_in_time(
    s3: str, s3_proxy: FaultProxy, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault, said = AWAY[how]
    open_objects(s3).put("a", BODY)
    if fault:
        s3_proxy.choose, s3_proxy.stall_seconds = always(fault), 1.0  # type: ignore[arg-type]
    else:
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(store_client, "PATIENCE_SECONDS", 0.7)
    monkeypatch.setattr(store_client, "FIRST_PATIENCE_SECONDS", 0.4)
    if how == "silent":
        monkeypatch.setattr(store_client, "REQUEST_SECONDS", 0.5)
    objects = open_objects(s3)
    tried: dict[str, tuple[Callable[[], Any], type[InputError]]] = {
        "listed": (lambda: keys(objects), VolumeError),
        "read": (lambda: objects.get("a"), VolumeError),
    }
    if how != "cut off":  # answers without a body
        tried["written"] = objects.require_writable, TargetError
    for done, (operation, kind) in tried.items():
        began = time.monotonic()
        with pytest.raises(kind) as caught:
            operation()
        # Twice the patience, a request and a pause.
        assert time.monotonic() - began < 8
        assert str(caught.value).startswith(f"{s3} cannot be {done}: its store gives no whole answer")
        assert said in str(caught.value)
        assert str(caught.value).endswith("check endpoint and network, then run the same command again")
        assert "\n" not in str(caught.value)
        assert store_client.is_away(caught.value)


@pytest.mark.parametrize("name", ["v.zarr", "v.tif"])
def test_a_volume_whose_store_stays_away(
    s3: str, s3_proxy: FaultProxy, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_client, "FIRST_PATIENCE_SECONDS", 0.3)
    s3_proxy.choose = always("slow down")
    with pytest.raises(VolumeError, match=rf"{s3}/{name} cannot be (read|opened): .*503 S.*; check endpoint"):
        open_volume(f"{s3}/{name}")


def test_a_store_that_has_answered_is_waited_for_longer(s3: str, s3_proxy: FaultProxy, monkeypatch) -> None:
    monkeypatch.setattr(store_client, "FIRST_PATIENCE_SECONDS", 0.2)
    objects = open_objects(s3)
    s3_proxy.choose = first("slow down", times=1000)
    began = time.monotonic()
    with pytest.raises(VolumeError, match="503 Service Unavailable"):
        objects.size("a")
    assert time.monotonic() - began < 1
    s3_proxy.choose = None
    assert objects.size("a") is None
    # One that was given up is not waited for as long again.
    s3_proxy.choose = always("slow down")
    monkeypatch.setattr(store_client, "PATIENCE_SECONDS", 0.5)
    for least, most in ((0.3, 3.0), (0.0, 0.45)):
        began = time.monotonic()
        with pytest.raises(VolumeError, match="503 Service Unavailable"):
            objects.size("a")
        assert least < time.monotonic() - began < most
    s3_proxy.choose = None
    assert objects.size("a") is None
    monkeypatch.setattr(store_client, "PATIENCE_SECONDS", 8.0)
    until = time.monotonic() + 1
    s3_proxy.choose = lambda kind, key: "slow down" if time.monotonic() < until else None
    assert objects.size("a") is None
    assert time.monotonic() > until


def test_who_may_read_but_not_write_is_told_so(s3: str, s3_proxy: FaultProxy) -> None:
    open_objects(s3).put("a", BODY)
    s3_proxy.choose = always("forbidden", "PUT", "PUT new")
    assert open_objects(s3).get("a") == BODY
    for operation in (lambda o: o.require_writable(), lambda o: o.put_new("b", b"")):
        began = time.monotonic()
        with pytest.raises(TargetError) as caught:
            operation(open_objects(s3))
        wanted = f"{s3} cannot be written (403 AccessDenied: Access Denied); check bucket, endpoint and credentials"
        assert str(caught.value) == wanted
        assert time.monotonic() - began < 0.4  # asked once
        assert not store_client.is_away(caught.value)


OPEN = """
import atexit, sys, time
atexit.register(time.sleep, 2)  # a process with more to end, after zarr's own end
from unet_ray.errors import VolumeError
from unet_ray.storage.volume import open_volume
try:
    open_volume(sys.argv[1])
except VolumeError as error:
    print(error)
"""


def test_answers_after_a_refusal_leave_no_traceback(s3: str, s3_proxy: FaultProxy) -> None:
    """zarr asks for several names at once: a process may end with the first refusal, before the other answers."""
    began: list[str] = []

    def refuse(kind: str, key: str) -> Fault | None:
        began.append(key)
        if len(began) > 1:
            time.sleep(1)
        return "forbidden"

    s3_proxy.choose = refuse
    ended = subprocess.run([sys.executable, "-c", OPEN, f"{s3}/v.zarr"], capture_output=True, text=True, timeout=60)
    assert len(began) > 1
    assert ended.returncode == 0
    assert "403 AccessDenied" in ended.stdout
    assert ended.stderr == ""
