"""The progress reporter on a pipe, a terminal and a stream that breaks."""

import fcntl
import io
import os
import pty
import struct
import subprocess
import sys
import termios
import time

import pytest

from unet_ray.report.progress import Progress, number

_SCRIPT = """
import sys, time
from unet_ray.report.progress import Progress
with Progress("segment", total=100, unit="Mvox", already_done=40, every_s=0.05) as progress:
    for block in range(4):
        time.sleep(0.1)
        progress.advance(15, note=f"block {block}")
        if block == 2:
            progress.log("block 1: tried again")
"""


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_pipe_there_are_plain_lines_and_nothing_on_stdout() -> None:
    run = subprocess.run([sys.executable, "-c", _SCRIPT], capture_output=True, text=True, check=True)
    assert run.stdout == ""
    assert "\r" not in run.stderr
    assert "\x1b" not in run.stderr
    lines = run.stderr.splitlines()
    assert len(lines) >= 5  # the clock's, not one per advance
    assert lines[0].startswith("segment: 40 of 100 Mvox (40 %)")
    assert "so far" in lines[0]
    assert any("Mvox/s" in line and "left" in line and "block " in line for line in lines)
    assert "block 1: tried again" in lines
    assert lines[-1].startswith("segment: 100 of 100 Mvox (100 %), 40 of them before, ")
    assert lines[-1].endswith("took 0:00")


def test_on_a_terminal_one_line_is_redrawn_within_its_width() -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 60, 0, 0))
    env = {**os.environ, "TERM": "xterm"}
    child = subprocess.Popen([sys.executable, "-c", _SCRIPT], stderr=theirs, stdout=subprocess.PIPE, env=env)
    os.close(theirs)
    seen = b""
    try:
        while part := os.read(ours, 4096):
            seen += part
    except OSError:  # how Linux says that the other end is closed
        pass
    os.close(ours)
    child.stdout.close()
    assert child.wait() == 0
    text = seen.decode().replace("\r\n", "\n")
    assert text.count("\n") == 2  # the logged line and the last one
    drawn = [part for part in text.split("\r\x1b[K") if part.startswith("segment [")]
    assert len(drawn) >= 4
    assert all(len(part) <= 59 for part in drawn)
    assert any("[" + "#" * 9 + "-" * 15 + "]" in part for part in drawn)  # 40 %
    assert "\r\x1b[Kblock 1: tried again\n" in text
    assert text.splitlines()[-1].split("\x1b[K")[-1].startswith("segment: 100 of 100 Mvox (100 %)")


def test_a_dumb_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    stream = Terminal()
    with Progress("augment", total=4, unit="patches", stream=stream) as progress:
        progress.advance(4)
    assert stream.getvalue().startswith("augment: 4 of 4 patches")
    assert "\r" not in stream.getvalue()


def test_the_rate_leaves_out_what_an_earlier_run_did() -> None:
    stream = io.StringIO()
    with Progress("segment", total=1010, unit="Mvox", already_done=1000, every_s=0.2, stream=stream) as progress:
        progress.advance(1)
        time.sleep(0.35)
    rate = float(stream.getvalue().splitlines()[0].split("), ")[1].split(" Mvox/s")[0])
    assert 2 < rate < 6  # 1 Mvox in 0.2 s, not 1001


def test_what_was_done_before_may_be_known_only_later() -> None:
    stream = io.StringIO()
    with Progress("train", total=1010, unit="steps", every_s=0.3, stream=stream) as progress:
        time.sleep(0.2)
        progress.begin_at(1000)
        progress.advance(1)
        time.sleep(0.2)
    first, last = stream.getvalue().splitlines()[0], stream.getvalue().splitlines()[-1]
    assert first.startswith("train: 1,001 of 1,010 steps (99 %), ")
    assert float(first.split("), ")[1].split(" steps/s")[0]) > 5  # 1 step in 0.1 s, not in 0.3 s
    assert last.startswith("train: 1,001 of 1,010 steps (99 %), 1,000 of them before, ")


def test_between_two_advances_the_rate_stays_and_the_time_left_falls() -> None:
    stream = io.StringIO()
    with Progress("segment", total=100, unit="Mvox", every_s=0.1, stream=stream) as progress:
        for _ in range(2):
            time.sleep(0.55)
            progress.advance(10)
        progress.log("A")
        time.sleep(0.35)
        progress.log("B")
        time.sleep(1.5)
    text = stream.getvalue()
    steady, stuck = text.split("\nA\n")[1].split("\nB\n")
    rates = [
        [float(line.split("), ")[1].split(" Mvox/s")[0]) for line in part.splitlines() if "left" in line]
        for part in (steady, stuck)
    ]
    assert len(rates[0]) >= 2
    assert max(rates[0]) == min(rates[0])  # 10 Mvox in 0.55 s
    assert rates[1][-1] < 0.6 * rates[0][0]  # as long as three of them


def test_a_line_comes_though_nothing_advances() -> None:
    stream = io.StringIO()
    with Progress("train", total=10, unit="samples", every_s=0.05, stream=stream):
        time.sleep(0.2)
    assert stream.getvalue().count("0 of 10 samples (0 %), 0:00 so far") >= 2


def test_without_work_and_with_an_error_the_last_line_says_so() -> None:
    stream = io.StringIO()
    with Progress("segment", total=8, unit="Mvox", already_done=8, stream=stream):
        pass
    with Progress("segment", total=0, unit="Mvox", stream=stream):
        pass

    def stop() -> None:
        with Progress("segment", total=8, unit="Mvox", stream=stream) as progress:
            progress.advance(7.999)
            raise KeyError

    with pytest.raises(KeyError):
        stop()
    nothing, empty, stopped = stream.getvalue().splitlines()
    assert nothing == "segment: 8 of 8 Mvox (100 %), 8 of them before, took 0:00"
    assert empty == "segment: 0 of 0 Mvox (100 %), took 0:00"
    assert stopped.startswith("segment: 8.00 of 8 Mvox (99 %)")
    assert stopped.endswith("stopped after 0:00")


def test_a_broken_stream_does_not_stop_the_job() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    stream = os.fdopen(writer, "w")
    with Progress("segment", total=2, unit="Mvox", every_s=0.01, stream=stream) as progress:
        progress.advance(1)
        time.sleep(0.05)
        progress.advance(1)
    assert progress.done == 2
    with pytest.raises(BrokenPipeError):
        stream.close()


def test_numbers_are_short() -> None:
    assert [number(value) for value in (0, 0.0005, 99.95, 1e6)] == ["0", "0.000500", "100", "1,000,000"]
