"""Memory of a process and all that it started, watched from outside through /proc."""

import os
import statistics
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def _children() -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                # After the name, which may hold brackets and blanks: state, parent, ...
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:  # it has ended
                continue
            found.setdefault(parent, []).append(int(folder.name))
    return found


def _peak_and_now(pid: int) -> tuple[int, int] | None:
    """Largest and present resident memory in bytes; None where the process has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        peak = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
        return peak, int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES
    except (OSError, StopIteration):
        return None


class MemoryWatch:
    """Samples resident memory of process trees in a thread while it is entered.

    Args:
        role: what to call a process, from its number and command line; None leaves it out.
        seconds: between samples.
    """

    def __init__(self, role: Callable[[int, str], str | None], seconds: float = 0.25) -> None:
        self._role, self._seconds = role, seconds
        self._roots: list[int] = []
        self._peaks: dict[tuple[str, int], int] = {}
        self._samples: dict[tuple[str, int], list[int]] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def add(self, pid: int) -> None:
        """Watch one more process and those below it."""
        self._roots.append(pid)

    def _run(self) -> None:
        while not self._ended.wait(self._seconds):
            children, pending, seen = _children(), list(self._roots), set[int]()
            while pending:
                pid = pending.pop()
                if pid in seen:
                    continue
                seen.add(pid)
                pending += children.get(pid, [])
                self._sample(pid)

    def _sample(self, pid: int) -> None:
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            return
        role, memory = self._role(pid, command), _peak_and_now(pid)
        if role is not None and memory is not None:
            self._peaks[role, pid] = memory[0]
            self._samples.setdefault((role, pid), []).append(memory[1])

    def summary(self) -> dict[str, list[dict[str, Any]]]:
        """Return per role one entry for each process: its peak, and the memory early, late and all along, bytes.

        Early is the median of the samples from a quarter of its time to a third, late that of the last twelfth, at
        least three: the very last may find a process that is giving its memory back.
        """
        found: dict[str, list[dict[str, Any]]] = {}
        for (role, pid), samples in self._samples.items():
            count = len(samples)
            early = samples[count // 4 : max(count // 3, count // 4 + 1)]
            late = samples[-max(3, count // 12) :]
            found.setdefault(role, []).append(
                {
                    "peak_bytes": self._peaks[role, pid],
                    "early_bytes": int(statistics.median(early)),
                    "late_bytes": int(statistics.median(late)),
                    "along_bytes": [samples[k * (count - 1) // 11] for k in range(12)],
                }
            )
        return found
