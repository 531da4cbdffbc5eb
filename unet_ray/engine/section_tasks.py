"""A function of sections, wherever a CPU is free."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray

from unet_ray.engine.cluster import fetched, pool_size


def in_tasks(
    function: Callable[..., Any], calls: Sequence[tuple[Any, ...]], workers: int | None
) -> Iterator[tuple[int, Any]]:
    """Call a function in tasks of one CPU, at most ``workers`` at once; begun in order.

    Args:
        function: picklable; so are its results.
        calls: arguments of each call: numbers and descriptions of files, never voxels.
        workers: None: as many as there are CPUs.

    Yields:
        Number of a call and what came of it, as they end. Who stops listening begins no more calls.
    """
    task = ray.remote(num_cpus=1)(function)
    at_once = pool_size(workers, cpus_each=1)
    waiting, running = list(range(len(calls)))[::-1], dict[Any, int]()
    while waiting or running:
        while waiting and len(running) < at_once:
            number = waiting.pop()
            running[task.remote(*calls[number])] = number
        ready, _ = ray.wait(list(running), timeout=1.0)
        for reference in ready:
            yield running.pop(reference), fetched(reference)
