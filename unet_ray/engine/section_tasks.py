"""A function of sections, wherever a CPU is free."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray

from unet_ray.engine.cluster import fetched, pool_size
from unet_ray.engine.same_code import off_strangers, own_code, require_code


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

    Raises:
        ConfigError: a node that has just joined has other code than the driver.
    """
    task = ray.remote(num_cpus=1)(_with_this_code)
    at_once = pool_size(workers, cpus_each=1)
    waiting, running = list(range(len(calls)))[::-1], dict[Any, int]()
    while waiting or running:
        while waiting and len(running) < at_once:
            number = waiting.pop()
            begun = task.options(name=function.__name__, **off_strangers()).remote(own_code(), function, *calls[number])
            running[begun] = number
        ready, _ = ray.wait(list(running), timeout=1.0)
        for reference in ready:
            yield running.pop(reference), fetched(reference)


def _with_this_code(code: str, function: Callable[..., Any], *arguments: Any) -> Any:
    require_code(code)
    return function(*arguments)
