"""Objects are whole or absent: on a disk that fills, under kill -9, and in an S3 store alike."""

import errno
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.shipped import shipped
from unet_ray.errors import TargetError, VolumeError
from unet_ray.storage.local_objects import LocalObjects
from unet_ray.storage.objects import Objects, absolute
from unet_ray.storage.open_objects import open_objects

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(params=["local", "s3"])
def objects(request, tmp_path):
    return open_objects(str(tmp_path / "not" / "yet") if request.param == "local" else request.getfixturevalue("s3"))


def keys(objects: Objects, prefix: str = "") -> list[str]:
    return sorted(info.key for info in objects.list(prefix))


def test_put_get_list_rename_delete(objects):
    assert (keys(objects), objects.get("a/b"), objects.size("a/b")) == ([], None, None)
    contents = {"zarr.json": b"{}", "0/c/0/0/1": b"\0" * 70_000, "0/c/0/0/10": b"x", "00/c/1": b"", "a b/ä#%": b"?"}
    for key, data in contents.items():
        objects.put(key, data)
    assert {key: objects.get(key) for key in contents} == contents
    assert {info.key: info.size for info in objects.list()} == {key: len(data) for key, data in contents.items()}
    assert keys(objects, "0/c/") == ["0/c/0/0/1", "0/c/0/0/10"]
    objects.put("zarr.json", b"new")
    assert objects.get("zarr.json") == b"new"
    objects.rename("0/c/0/0/1", "0/c/0/0/1.damaged")
    assert (objects.size("0/c/0/0/1"), objects.size("0/c/0/0/1.damaged")) == (None, 70_000)
    objects.rename("zarr.json", "0/c/0/0/10")
    assert (objects.get("0/c/0/0/10"), objects.get("zarr.json")) == (b"new", None)
    objects.delete("00/c/1")
    objects.delete("00/c/1")
    assert keys(objects) == ["0/c/0/0/1.damaged", "0/c/0/0/10", "a b/ä#%"]
    objects.delete_all("0/c/")
    assert keys(objects) == ["a b/ä#%"]


def test_of_many_that_put_a_new_object_one_succeeds(objects):
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda n: (n, objects.put_new("a/zarr.json", b"%d" % n)), range(8)))
    winners = [number for number, first in won if first]
    assert len(winners) == 1
    assert objects.get("a/zarr.json") == b"%d" % winners[0]
    assert not objects.put_new("a/zarr.json", b"late")
    assert objects.get("a/zarr.json") == b"%d" % winners[0]
    assert keys(objects) == ["a/zarr.json"]


def test_a_new_object_on_a_file_system_without_links(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    objects = LocalObjects(tmp_path)
    assert objects.put_new("a/b", b"1")
    assert not objects.put_new("a/b", b"2")
    assert objects.get("a/b") == b"1"
    assert [name for _, _, names in os.walk(tmp_path) for name in names] == ["b"]


def test_a_new_object_where_a_file_is_in_the_way(tmp_path):
    (tmp_path / "a").write_bytes(b"")
    with pytest.raises(TargetError, match="a file is where a folder is needed"):
        LocalObjects(tmp_path).put_new("a/b", b"1")


@pytest.mark.parametrize("offset", [-12, -10, -4, 0, 3, 9, 10, 40])
@pytest.mark.parametrize("length", [1, 4, 10, 12])
def test_a_part_of_an_object(objects, offset, length):
    objects.put("a/b", b"0123456789")
    start = offset if offset >= 0 else max(0, 10 + offset)
    if offset >= 0 or length <= -offset:
        assert objects.get_part("a/b", offset, length) == b"0123456789"[start : start + length]
    assert objects.get_part("a/c", offset, length) is None


def test_a_version_tells_of_a_change(objects):
    def version() -> str:
        return next(info.version for info in objects.list())

    objects.put("a", b"one")
    before = version()
    assert version() == before
    time.sleep(0.01)
    objects.put("a", b"two")
    assert version() != before


def test_what_travels_to_a_worker_is_the_place(objects):
    objects.put("a/b", b"here")
    assert shipped(objects).get("a/b") == b"here"


def test_require_writable_leaves_nothing(objects):
    objects.require_writable()
    assert keys(objects) == []


def test_what_a_killed_probe_leaves_is_no_object(objects, monkeypatch):
    monkeypatch.setattr(type(objects), "delete", lambda self, key: None)
    objects.require_writable()
    assert keys(objects) == []


def test_no_such_bucket(s3):
    with pytest.raises(TargetError, match=r"s3://nowhere/x cannot be written \(.*\); check bucket"):
        open_objects("s3://nowhere/x").require_writable()
    with pytest.raises(VolumeError, match=r"s3://nowhere/x cannot be listed \(.*\); check bucket"):
        keys(open_objects("s3://nowhere/x"))


def in_process(code: str, *arguments: str) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", code, *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True)


KILLED_AT = """
import os, signal, sys
from unet_ray.storage.open_objects import open_objects
name, nth, calls = sys.argv[2], int(sys.argv[3]), 0
original = getattr(os, name)
def deadly(*arguments):
    global calls
    calls += 1
    if calls == nth:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*arguments)
setattr(os, name, deadly)
open_objects(sys.argv[1]).put("a/b", b"new" * 1000)
"""


@pytest.mark.parametrize(
    ("call", "nth", "content"),
    [("fchmod", 1, b"old"), ("fsync", 1, b"old"), ("replace", 1, b"old"), ("fsync", 2, b"new" * 1000)],
    ids=["written", "flushed", "synced", "renamed"],
)
@pytest.mark.parametrize("before", [None, b"old"], ids=["absent", "present"])
def test_killed_within_a_put(tmp_path, call, nth, content, before):
    """Old, new or none, and what the killed process leaves behind is no object."""
    objects = open_objects(str(tmp_path))
    if before is not None:
        objects.put("a/b", before)
    with in_process(KILLED_AT, str(tmp_path), call, str(nth)) as process:
        assert process.wait() == -signal.SIGKILL
    expected = before if content == b"old" else content
    assert objects.get("a/b") == expected
    assert keys(objects) == ([] if expected is None else ["a/b"])
    if content == b"old":
        assert len(list(tmp_path.rglob(".put-*"))) == 1
    objects.put("a/b", b"next")
    assert objects.get("a/b") == b"next"


WRITES_FOR_EVER = """
import sys
from unet_ray.storage.open_objects import open_objects
objects, turn = open_objects(sys.argv[1]), 0
while True:
    objects.put("a", bytes([65 + turn % 26]) * (1 << 20))
    if turn == 0:
        print("started", flush=True)
    turn += 1
"""


def test_killed_at_any_time(tmp_path):
    for moment in range(6):
        with in_process(WRITES_FOR_EVER, str(tmp_path)) as process:
            assert process.stdout.readline() == "started\n"
            time.sleep(0.004 * moment)
            process.kill()
        data = open_objects(str(tmp_path)).get("a")
        assert len(data) == 1 << 20
        assert len(set(data)) == 1
        assert keys(open_objects(str(tmp_path))) == ["a"]


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, "No space left on device.*; free some room and run the same command again"),
        (errno.EDQUOT, "free some room"),
        (errno.EACCES, "Permission denied.*; choose a folder that you may write"),
        (errno.EROFS, "choose a folder that you may write"),
        (errno.EIO, "choose another path or mend the disk"),
    ],
)
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_disk_that_refuses(tmp_path, monkeypatch, call, number, said):
    objects = open_objects(str(tmp_path))
    objects.put("a", b"old")

    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, refuse)
    with pytest.raises(TargetError, match=f"^{tmp_path} cannot be written .*{said}"):
        objects.put("a", b"new")
    monkeypatch.undo()
    assert (objects.get("a"), os.listdir(tmp_path)) == (b"old", ["a"])


def test_a_file_where_a_folder_is_needed(tmp_path):
    (tmp_path / "file").write_text("in the way")
    objects = open_objects(str(tmp_path / "file" / "out.zarr"))
    with pytest.raises(TargetError, match="a file is where a folder is needed; choose another path"):
        objects.require_writable()
    assert (objects.get("a"), objects.size("a"), keys(objects)) == (None, None, [])
    objects.delete("a")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(TargetError, match=r"Permission denied.*; choose a folder that you may write"):
        open_objects(str(tmp_path)).require_writable()


def test_a_folder_that_may_not_be_entered(tmp_path, nobody):
    """Below it nothing is told to be absent: a run would begin anew."""
    objects = open_objects(str(tmp_path / "locked" / "out.zarr"))
    objects.put("a/b", b"content")
    (tmp_path / "locked").chmod(0)
    asking = [objects.get, objects.size, lambda key: objects.get_part(key, 0, 2), lambda key: keys(objects)]
    with nobody():
        for ask in asking:
            with pytest.raises(
                VolumeError, match=r"^/\S+ cannot be read \(Permission denied\); check the disk and who"
            ):
                ask("a/b")
        for change in (objects.delete, lambda key: objects.rename(key, "c")):
            with pytest.raises(TargetError, match=r"cannot be written \(Permission denied\); choose a folder"):
                change("a/b")
    (tmp_path / "locked").chmod(0o700)
    assert objects.get("a/b") == b"content"


def test_a_folder_in_an_objects_place(tmp_path):
    objects = open_objects(str(tmp_path))
    objects.put("a/b", b"content")
    with pytest.raises(VolumeError, match=r"/a cannot be read \(Is a directory\)"):
        objects.get("a")


def test_a_pipe_in_an_objects_place(tmp_path, make_pipe):
    make_pipe(tmp_path / "a")
    objects = open_objects(str(tmp_path))
    for ask in (objects.get, lambda key: objects.get_part(key, 0, 2)):
        with pytest.raises(VolumeError, match=r"/a is a pipe or a device and no file; save what comes from it"):
            ask("a")


def test_a_put_is_readable_by_others(tmp_path):
    open_objects(str(tmp_path)).put("a", b"")
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o644


def test_paths_and_urls(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert absolute("x/../y.zarr/") == absolute(f"file://{tmp_path}/y.zarr") == str(tmp_path / "y.zarr")
    assert absolute("s3://bucket/a/") == open_objects("s3://bucket/a/").url == "s3://bucket/a"
    assert isinstance(open_objects("file:///x"), LocalObjects)
    assert not isinstance(open_objects("gs://x/y"), LocalObjects)
