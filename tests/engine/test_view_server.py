"""The viewer's HTTP: ranges, other origins, other hosts, and nothing outside what is shown."""

import http.client
import json
import socket
from urllib.parse import urlsplit

import numpy as np
import pytest
import tifffile
import zarr
from zarr.storage import FsspecStore

from tests.scenes import SHAPE, VOXEL_SIZE_NM, raw_values, write_segmentation
from tests.viewer import served
from unet_ray.config.view import ViewConfig
from unet_ray.engine.view_server import ViewServer, byte_range
from unet_ray.errors import ConfigError, VolumeError

SHARD = "/segmentation.zarr/0/c/0/0/0"
NEUROGLANCER = "https://neuroglancer-demo.appspot.com"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("view")
    tifffile.imwrite(folder / "raw.tif", raw_values(), photometric="minisblack")
    write_segmentation(folder / "s.zarr")
    (folder / "secret").write_text("secret")
    return folder


@pytest.fixture(scope="module")
def address(files):
    with served(volume=files / "raw.tif", segmentation=files / "s.zarr", voxel_size_nm=VOXEL_SIZE_NM) as url:
        yield url


def ask(address, path, method="GET", **headers):
    """Status, headers and body; ``Range="bytes=0-1"`` gives a header."""
    where = urlsplit(address)
    connection = http.client.HTTPConnection(where.hostname, where.port, timeout=20)
    connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    found = answer.status, dict(answer.getheaders()), answer.read()
    connection.close()
    return found


def test_stored_bytes_come_unchanged(address, files):
    status, headers, body = ask(address, SHARD)
    assert (status, body) == (200, (files / "s.zarr/0/c/0/0/0").read_bytes())
    assert headers["Accept-Ranges"] == "bytes"
    status, headers, body = ask(address, "/segmentation.zarr/zarr.json")
    assert (status, headers["Content-Type"]) == (200, "application/json")
    assert body == (files / "s.zarr/zarr.json").read_bytes()


@pytest.mark.parametrize(("asked", "start", "stop"), [("0-3", 0, 4), ("-20", -20, None), ("7-", 7, None)])
def test_a_range(address, files, asked, start, stop):
    whole = (files / "s.zarr/0/c/0/0/0").read_bytes()
    status, headers, body = ask(address, SHARD, Range=f"bytes={asked}")
    assert (status, body) == (206, whole[start:stop])
    first = start % len(whole)
    assert headers["Content-Range"] == f"bytes {first}-{first + len(body) - 1}/{len(whole)}"
    assert headers["Content-Length"] == str(len(body))


def test_ranges_that_are_none(address, files):
    whole = (files / "s.zarr/0/c/0/0/0").read_bytes()
    for outside in (f"{len(whole)}-", "99999999-99999999", "-0"):
        status, headers, body = ask(address, SHARD, Range=f"bytes={outside}")
        assert (status, headers["Content-Range"], body) == (416, f"bytes */{len(whole)}", b"")
    for ignored in ("bytes=0-1,3-4", "bytes=5-2", "lines=1-2", "bytes=-", "bytes=x-"):
        assert ask(address, SHARD, Range=ignored)[::2] == (200, whole)


@pytest.mark.parametrize("size", [0, 1, 7])
def test_any_range_lies_inside(size):
    for first in range(9):
        for last in range(first, 9):
            start, length = byte_range(f"bytes={first}-{last}", size)
            inside = range(size)[first : last + 1]
            assert (start, length) == (min(first, size), len(inside))


def test_head_tells_the_size_alone(address, files):
    status, headers, body = ask(address, SHARD, "HEAD", Range="bytes=0-3")
    assert (status, headers["Content-Length"], body) == (200, str((files / "s.zarr/0/c/0/0/0").stat().st_size), b"")
    assert ask(address, "/nowhere", "HEAD")[0] == 404
    assert ask(address, "/", "HEAD")[0] == 200


def test_a_large_object_goes_in_pieces(address, files, monkeypatch):
    monkeypatch.setattr("unet_ray.engine.view_server._PIECE_BYTES", 100)
    whole = (files / "s.zarr/0/c/0/0/0").read_bytes()
    assert len(whole) > 300
    assert ask(address, SHARD)[2] == whole
    assert ask(address, SHARD, Range="bytes=50-299")[2] == whole[50:300]


def test_neuroglancer_may_read_from_its_own_site(address):
    _, headers, _ = ask(address, SHARD, Origin=NEUROGLANCER, Range="bytes=0-3")
    assert headers["Access-Control-Allow-Origin"] == NEUROGLANCER
    assert "Content-Range" in headers["Access-Control-Expose-Headers"]
    status, headers, body = ask(
        address, SHARD, "OPTIONS", Origin=NEUROGLANCER, Access_Control_Request_Method="GET",
        Access_Control_Request_Headers="range", Access_Control_Request_Private_Network="true",
    )  # fmt: skip
    assert (status, body) == (204, b"")
    assert {"GET", "HEAD", "OPTIONS"} == set(headers["Access-Control-Allow-Methods"].split(", "))
    assert headers["Access-Control-Allow-Headers"] == "Range"
    assert headers["Access-Control-Allow-Private-Network"] == "true"
    assert ask(address, "/nowhere", Origin=NEUROGLANCER)[1]["Access-Control-Allow-Origin"] == NEUROGLANCER


@pytest.mark.parametrize("origin", ["http://localhost:5173", "http://127.0.0.1", "http://[::1]:80"])
def test_pages_of_this_machine_may_read(address, origin):
    assert ask(address, SHARD, Origin=origin)[1]["Access-Control-Allow-Origin"] == origin


@pytest.mark.parametrize(
    "origin",
    ["https://example.com", "null", "http://neuroglancer-demo.appspot.com", "https://127.0.0.1.example.com",
     "https://neuroglancer-demo.appspot.com.example.com", "http://localhost@example.com", "http://[x"],
)  # fmt: skip
def test_other_sites_may_not_read(address, origin):
    _, headers, _ = ask(address, SHARD, Origin=origin)
    assert not [name for name in headers if name.startswith("Access-Control")]
    assert headers["Vary"] == "Origin"


@pytest.mark.parametrize("host", ["localhost:9", "127.0.0.1", "LOCALHOST:8765", "[::1]:8765"])
def test_this_machines_names_are_answered(address, host):
    assert ask(address, "/", Host=host)[0] == 200


@pytest.mark.parametrize("host", ["example.com", "example.com:8765", "127.0.0.1.example.com", "localhost.", "", "[::1"])
def test_a_name_that_was_rebound_is_refused(address, host):
    for path in ("/", SHARD, "/layers.json"):
        assert ask(address, path, Host=host)[0] == 403
    assert ask(address, SHARD, "OPTIONS", Host=host)[0] == 403


@pytest.mark.parametrize(
    "path",
    ["/segmentation.zarr/../secret", "/segmentation.zarr/%2e%2e/secret", "/segmentation.zarr/..%2fsecret", "/secret",
     "/segmentation.zarr/%2e%2e%2fsecret", "/segmentation.zarr//zarr.json", "/segmentation.zarr", "/segmentation.zarr/",
     "/segmentation.zarr/0", "/segmentation.zarr/labels%2fzarr.json", "/segmentation.zarr/0%00", "//etc/passwd",
     "/raw.zarr/../segmentation.zarr/zarr.json", "/segmentation.zarr/..\\secret", "/raw.tif", "/s.zarr/zarr.json",
     "/tile/0/0/0/0", "/tile/0/0/0/0/1.png", "/tile/9/0/0/0/0.png", "/tile/0/9/0/0/0.png", "/tile/0/0/5/0/0.png",
     "/tile/0/0/-1/0/0.png", "/tile/x/0/0/0/0.png", f"/tile/0/0/{'9' * 5000}/0/0.png", "/values/5/0/0.json",
     "/values/0/150/0.json", "/values/0/0/x.json", "/layers", "/favicon.ico"],
)  # fmt: skip
def test_there_is_nothing_else(address, path):
    status, _, body = ask(address, path)
    assert (status, b"secret" in body) == (404, False)


def test_only_reading_is_offered(address):
    for method in ("POST", "PUT", "DELETE"):
        assert ask(address, SHARD, method)[0] == 501


def test_the_page_asks_for_nothing_of_another_host(address):
    status, headers, body = ask(address, "/")
    assert (status, body[:15]) == (200, b"<!doctype html>")
    assert headers["Content-Security-Policy"].startswith("default-src 'none'")
    assert b"http" not in body


def test_the_layers_the_page_is_told_of(address, files):
    found = json.loads(ask(address, "/layers.json")[2])
    assert (found["title"], tuple(found["shape"])) == (str(files / "raw.tif"), SHAPE)
    assert tuple(found["voxel_size_nm"]) == VOXEL_SIZE_NM
    assert [layer["name"] for layer in found["layers"]] == ["raw", "probability", "membrane"]
    assert [len(layer["levels"]) for layer in found["layers"]] == [1, 2, 2]
    assert found["neuroglancer"].startswith(f"{NEUROGLANCER}/#!")


def test_zarr_python_reads_over_http(address, files):
    for key, expected in {
        "raw.zarr/0": raw_values(),
        "segmentation.zarr/0": zarr.open_array(files / "s.zarr/0")[...],
        "segmentation.zarr/labels/membrane/1": zarr.open_array(files / "s.zarr/labels/membrane/1")[...],
    }.items():
        array = zarr.open_array(FsspecStore.from_url(f"{address}/{key}", read_only=True), mode="r")
        assert expected.any()
        np.testing.assert_array_equal(array[...], expected)


def test_ome_zarr_py_reads_over_http_as_napari_does(address):
    from ome_zarr.io import parse_url
    from ome_zarr.reader import Reader

    nodes = [node for node in Reader(parse_url(f"{address}/segmentation.zarr"))() if node.data]
    assert [node.data[0].shape for node in nodes] == [SHAPE, SHAPE]
    assert nodes[1].metadata["name"] == "membrane"
    (raw,) = Reader(parse_url(f"{address}/raw.zarr"))()
    np.testing.assert_array_equal(np.asarray(raw.data[0]), raw_values())


def test_what_cannot_be_read_is_said(files, tmp_path):
    path = write_segmentation(tmp_path / "s.zarr")
    (path / "0/c/0/0/0").write_bytes(b"rubbish")
    with served(segmentation=path) as address:
        status, _, body = ask(address, "/tile/0/0/0/0/0.png")
        assert status == 500
        assert b"cannot be read" in body
        assert ask(address, "/tile/0/0/4/0/0.png")[0] == 200
        (path / "1/c/0/0/0").unlink()
        assert ask(address, "/segmentation.zarr/1/c/0/0/0")[0] == 404


def test_an_object_that_becomes_shorter_ends_early():
    class Shrinking:
        def size(self, key):
            return 10

        def get_part(self, key, offset, length):
            return b"abc" if key == "cut" else self.fail()

        def fail(self):
            raise VolumeError("the disk is gone")

    from threading import Thread

    with ViewServer(0, {"g": Shrinking()}, lambda parts: None) as server:
        thread = Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        with pytest.raises(http.client.IncompleteRead):
            ask(server.url, "/g/cut")
        assert ask(server.url, "/g/gone")[::2] == (500, b"the disk is gone\n")
        server.shutdown()
        thread.join()


def test_a_port_that_is_taken():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"--port {port} cannot be served at"):
            ViewServer(port, {}, lambda parts: None)


def test_another_neuroglancer_may_be_named(files):
    with served(segmentation=files / "s.zarr", neuroglancer="https://ng.lab.example/v1") as address:
        assert ask(address, SHARD, Origin="https://ng.lab.example")[1]["Access-Control-Allow-Origin"]
        assert "Access-Control-Allow-Origin" not in ask(address, SHARD, Origin=NEUROGLANCER)[1]
        assert json.loads(ask(address, "/layers.json")[2])["neuroglancer"].startswith("https://ng.lab.example/v1/#!")


def test_only_loopback_is_bound(address):
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.2", urlsplit(address).port), timeout=5)


def test_settings():
    with pytest.raises(ValueError, match="neuroglancer"):
        ViewConfig(neuroglancer="appspot")


@pytest.mark.parametrize("closed", [True, False])
def test_a_connection_that_an_interrupt_closed_is_no_error(capsys, closed):
    """It falls into the moment between a connection and its thread; other errors are told."""
    with ViewServer(0, {}, lambda parts: 1 // 0) as server:
        ours, theirs = socket.socketpair()
        theirs.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        if closed:
            ours.close()
        server.process_request_thread(ours, ("127.0.0.1", 1))
        theirs.close()
    assert ("Traceback" in capsys.readouterr().err) != closed
