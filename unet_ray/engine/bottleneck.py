"""What a run over blocks waited for, and what would make it faster."""

from collections.abc import Mapping
from typing import Any

from unet_ray.engine.block_work import STAGES

# From here on the computing itself is what the run consists of.
COMPUTE_BOUND = 0.8
_ADVICE = {
    "compute": "compute-bound: the network works {share:.0%} of the time; more workers or a GPU make it faster",
    "wait_for_read": "reader-bound: the network waits {share:.0%} of the time for input; take more --workers with "
    "fewer --threads each, or keep the volume nearer or in chunks about as large as a tile",
    "wait_for_write": "writer-bound: the network waits {share:.0%} of the time until its output is compressed and "
    "written; take more --workers with fewer --threads each, or write to a faster disk or store",
    "idle": "short of work: workers have no block {share:.0%} of the time, which is their start and their last blocks; "
    "fewer --workers would be as fast",
}


def bottleneck(stage_seconds: Mapping[str, float], worker_seconds: float) -> dict[str, Any]:
    """Shares of the workers' time by stage, and a verdict in one sentence.

    Args:
        stage_seconds: by each of `STAGES`, seconds that all workers spent there.
        worker_seconds: workers x seconds from the first block to the last; workers that joined later do not count.

    Returns:
        ``verdict``, and ``shares`` of ``worker_seconds``: computing, waiting for input, waiting for output and being
        idle make up 1; reading, compressing and writing go on beside them.

    >>> spent = dict.fromkeys(STAGES, 0.0) | {"compute": 12.0, "wait_for_read": 6.0, "read": 17.0}
    >>> found = bottleneck(spent, worker_seconds=20.0)
    >>> found["verdict"].partition(";")[0], found["shares"]["read"], found["shares"]["idle"]
    ('reader-bound: the network waits 30% of the time for input', 0.85, 0.1)
    """
    busy = sum(stage_seconds[stage] for stage in ("compute", "wait_for_read", "wait_for_write"))
    total = max(worker_seconds, busy, 1e-9)
    shares = {stage: stage_seconds[stage] / total for stage in STAGES}
    shares["idle"] = max(0.0, 1 - shares["compute"] - shares["wait_for_read"] - shares["wait_for_write"])
    waits = ("wait_for_read", "wait_for_write", "idle")
    worst = "compute" if shares["compute"] >= COMPUTE_BOUND else max(waits, key=lambda name: shares[name])
    return {
        "verdict": _ADVICE[worst].format(share=shares[worst]),
        "shares": {name: round(share, 3) for name, share in shares.items()},
    }
