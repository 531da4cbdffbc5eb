"""How far a job is, on stderr: a live bar on a terminal, a plain line every 10 s in a log."""

# Why not a library: on a pipe tqdm 4 still writes carriage returns and only when update() is called, so a
# job whose first block takes minutes looks dead; rich 15 prints nothing before the end. Turning either into
# "one plain line every 10 s" takes a clock thread and a wrapped stream, which is most of what is below.

import os
import sys
import threading
import time
from collections import deque
from itertools import pairwise
from types import TracebackType
from typing import Self, TextIO

_BAR_SIDE = 24
_TERMINAL_EVERY_S = 0.2
_LOG_EVERY_S = 10.0
# The rate is that of the last minute, or of the last few advances where those took longer: a slow start
# (workers starting, compiling) must not spoil the time left for the rest of the run.
_RATE_WINDOW_S = 60.0
_RATE_ADVANCES = 8


class Progress:
    """Progress of one stage, shown on stderr while the ``with`` block runs.

    On a terminal one line is redrawn five times a second; elsewhere a plain
    line is written every 10 s, whether or not something advanced, and a last
    one at the end. A stream that breaks is given up; the job goes on.
    ``advance`` may be called from any thread.

    Args:
        stage: name of the stage, first in every line.
        total: all there is to do, in ``unit``, work already done included.
        unit: what is counted, ``"Mvox"``, ``"patches"``; the rate is per second.
        already_done: what an earlier run did; part of done/total, not of the rate.
        every_s: seconds between two lines; None is 0.2 on a terminal and 10 elsewhere.
        stream: where to write; None is stderr.

    >>> import sys
    >>> with Progress("segment", total=8, unit="Mvox", already_done=2, stream=sys.stdout) as progress:
    ...     progress.advance(6, note="block 7")  # doctest: +ELLIPSIS
    segment: 8 of 8 Mvox (100 %), 2 of them before, ... Mvox/s, took 0:00
    """

    def __init__(
        self,
        stage: str,
        *,
        total: float,
        unit: str,
        already_done: float = 0.0,
        every_s: float | None = None,
        stream: TextIO | None = None,
    ) -> None:
        self._stage, self._total, self._unit, self._before = stage, total, unit, already_done
        self._stream = sys.stderr if stream is None else stream
        self._live = self._stream.isatty() and os.environ.get("TERM") != "dumb"
        self._every_s = every_s or (_TERMINAL_EVERY_S if self._live else _LOG_EVERY_S)
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._broken = False
        self._here, self._note = 0.0, ""
        self._started = time.monotonic()
        self._advances = deque([(self._started, 0.0)])
        self._clock = threading.Thread(target=self._tick, name=f"progress-{stage}", daemon=True)

    @property
    def done(self) -> float:
        """Done so far, in units, work of earlier runs included."""
        return self._before + self._here

    def begin_at(self, done: float) -> None:
        """Count ``done`` as done before, where that is known only now; the rate is of what follows."""
        with self._lock:
            self._before = done - self._here
            self._advances = deque([(time.monotonic(), self._here)])

    def advance(self, units: float, note: str = "") -> None:
        """Count ``units`` more as done; ``note`` is shown until the next one."""
        now = time.monotonic()
        with self._lock:
            self._here += units
            self._note = note
            self._advances.append((now, self._here))
            while len(self._advances) > _RATE_ADVANCES and self._advances[1][0] < now - _RATE_WINDOW_S:
                self._advances.popleft()

    def log(self, line: str) -> None:
        """Write a line of its own above the bar (a warning, a retry), which would else be drawn over."""
        with self._lock:
            self._write(("\r\x1b[K" if self._live else "") + line + "\n")
            if self._live:
                self._draw()

    def __enter__(self) -> Self:
        self._started = time.monotonic()
        self._advances = deque([(self._started, self._here)])
        self._clock.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._clock.join()
        seconds = time.monotonic() - self._started
        before = f", {number(self._before)} of them before" if self._before else ""
        rate = f", {number(self._here / max(seconds, 1e-9))} {self._unit}/s" if self._here else ""
        took = f", {'took' if kind is None else 'stopped after'} {duration(seconds)}"
        with self._lock:
            clear = "\r\x1b[K" if self._live else ""
            self._write(f"{clear}{self._stage}: {self._amount()}{before}{rate}{took}\n")

    def _tick(self) -> None:
        while not self._ended.wait(self._every_s):
            with self._lock:
                self._draw()

    def _rate(self, now: float) -> tuple[float, float]:
        """Units per second, and until when they were counted.

        Until the last advance: what is under way since is not lost. But where that takes longer than any advance
        before, something hangs or has become slower, and the rate falls.
        """
        times = [time for time, _ in self._advances]
        longest = max((b - a for a, b in pairwise(times)), default=0.0)
        at = times[-1] if now - times[-1] <= longest else now
        since, then = self._advances[0]
        return (self._here - then) / max(at - since, 1e-9), at

    def _amount(self) -> str:
        share = self.done / self._total if self._total else 1.0
        # 99.9 % must not read as 100: rounded down.
        return f"{number(self.done)} of {number(self._total)} {self._unit} ({int(100 * share + 1e-9)} %)"

    def _draw(self) -> None:
        now = time.monotonic()
        rate, at = self._rate(now)
        words = [self._amount()]
        if rate > 0:
            words.append(f"{number(rate)} {self._unit}/s")
            words.append(f"{duration(max((self._total - self.done) / rate - (now - at), 0))} left")
        else:
            words.append(f"{duration(now - self._started)} so far")
        words += [self._note] if self._note else []
        if not self._live:
            self._write(f"{self._stage}: {', '.join(words)}\n")
            return
        share = min(self.done / self._total, 1.0) if self._total else 1.0
        bar = ("#" * int(share * _BAR_SIDE)).ljust(_BAR_SIDE, "-")
        line = f"{self._stage} [{bar}] {', '.join(words)}"
        # One column stays free: a full line wraps, and then redrawing leaves a trail.
        self._write("\r\x1b[K" + line[: self._columns() - 1])

    def _columns(self) -> int:
        try:
            # Of this stream: shutil's answer is that of stdout, which is often a pipe or a file.
            return os.get_terminal_size(self._stream.fileno()).columns or 80
        except (OSError, ValueError):
            return 80

    def _write(self, text: str) -> None:
        if self._broken:
            return
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):  # a closed terminal or pipe is no reason to lose the job
            self._broken = True


def number(value: float) -> str:
    """A count or a rate in three digits or so, never in powers of ten.

    >>> number(0.01234), number(1.234), number(12.34), number(7.0), number(123456.7)
    ('0.0123', '1.23', '12.3', '7', '123,457')
    """
    if value == int(value) or value >= 100:
        return f"{value:,.0f}"
    if value < 0.001:
        return f"{value:.6f}"
    return f"{value:#.3g}".rstrip(".")


def duration(seconds: float) -> str:
    """Seconds as a clock shows them; days from a day on.

    >>> duration(7.6), duration(754), duration(7384), duration(200000)
    ('0:08', '12:34', '2:03:04', '2 d 7 h')
    """
    whole = round(seconds)
    hours, rest = divmod(whole, 3600)
    if hours >= 24:
        return f"{hours // 24} d {hours % 24} h"
    minutes_seconds = f"{rest // 60:02d}:{rest % 60:02d}"
    return f"{hours}:{minutes_seconds}" if hours else f"{rest // 60}:{rest % 60:02d}"
