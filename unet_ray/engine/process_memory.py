"""How much memory this process has taken at most."""

import resource
from pathlib import Path


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
