"""How much memory this process has taken at most, and how it keeps what it frees."""

import ctypes
import resource
from pathlib import Path

# malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_NEVER = 2**31 - 1


def peak_rss_bytes() -> int:
    """Largest resident memory of this process so far, bytes.

    Linux counts it per program in /proc. What getrusage tells there begins at the peak of the process that
    started this one, and so may be another program's.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def keep_freed_memory() -> bool:
    """Let the allocator of this process keep what is freed; whether it could be told (glibc alone can).

    By default glibc gives the memory of a network's tensors back to the kernel as they are freed, and every page of
    the next step's is mapped and cleared anew: 5 to 13 % of the processor time of a training step on a CPU.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, _NEVER))
