"""jobs/view.py as a process: it says what to open, serves, and ends when it is interrupted."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.scenes import raw_values, write_segmentation

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def start(tmp_path):
    """start(*flags): the process and the lines of stderr until it serves."""
    processes = []

    def run(*flags):
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "jobs" / "view.py"), *map(str, flags)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        processes.append(process)
        lines = []
        for line in process.stderr:
            lines.append(line.rstrip("\n"))
            if "serving until" in line:
                break
        return process, lines

    yield run
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serves_until_interrupted(start, stack, tmp_path, number):
    write_segmentation(tmp_path / "s.zarr")
    raw = stack("raw.tif", raw_values())
    process, lines = start("--volume", raw, "--segmentation", "s.zarr", "--voxel-size-nm", 50, 4, 4, "--port", 0)
    page, neuroglancer, napari, last = lines
    address = re.fullmatch(r"view: page +(http://127\.0\.0\.1:\d+)/", page).group(1)
    link = re.fullmatch(r"view: neuroglancer +(https://neuroglancer-demo\.appspot\.com/#!\S+)", neuroglancer).group(1)
    state = json.loads(unquote(link.partition("#!")[2]))
    assert [layer["name"] for layer in state["layers"]] == ["raw", "probability", "membrane"]
    assert state["dimensions"] == {"z": [5e-8, "m"], "y": [4e-9, "m"], "x": [4e-9, "m"]}
    assert napari.endswith(f"napari --plugin napari-ome-zarr {address}/raw.zarr {address}/segmentation.zarr")
    assert last == "view: serving until Ctrl-C"
    for layer in state["layers"]:
        group = layer["source"]["url"].removeprefix("zarr3://")
        with urllib.request.urlopen(f"{group}/zarr.json", timeout=20) as answer:
            assert json.load(answer)["node_type"] == "group"
    # A connection that a browser keeps open must not hold the process.
    with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))):
        began = time.monotonic()
        process.send_signal(number)
        out, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert time.monotonic() - began < 3
    assert err == "view: stopped serving\n"
    (summary,) = map(json.loads, out.splitlines())
    assert (summary["status"], summary["page"], summary["neuroglancer"]) == ("interrupted", f"{address}/", link)
    assert 0 < summary["startup_seconds"] <= summary["seconds"]


def test_without_a_known_voxel_size_it_says_so(start, stack):
    _, lines = start("--volume", stack("raw.tif", raw_values()), "--port", 0)
    assert any("--voxel-size-nm" in line for line in lines)


def test_wrong_input_is_one_sentence_and_exit_code_2(call_job, stack, tmp_path):
    raw = stack("raw.tif", raw_values())
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for flags, says in (
            ([], "neither --volume nor --segmentation"),
            (["--volume", tmp_path / "raw.tiff"], "did you mean"),
            (["--segmentation", raw], "cannot find a segmentation"),
            (["--volume", raw, "--port", port], f"--port {port} cannot be served at (Address already in use)"),
            (["--volume", raw, "--port", 65536], "--port was given 65536"),
            (["--volume", raw, "--port", "http"], "--port"),
            (["--volume", raw, "--neuroglancer", "appspot"], "--neuroglancer was given"),
            (["--volume", raw, "--volum", raw], "--volum is not an option of view; the nearest option is --volume"),
        ):
            ended = call_job("view", *flags)
            assert (ended.code, ended.out) == (2, ""), flags
            assert says in ended.err
            assert len(ended.err.splitlines()) == 1
