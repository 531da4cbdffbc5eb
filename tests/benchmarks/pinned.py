"""Processes that stay on cores of their own."""

import contextlib
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any


@contextlib.contextmanager
def on_cores(cores: Sequence[int]) -> Iterator[None]:
    """This process, and those that start within, run on these cores alone."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def start(work: Callable[[Connection], None], core: int, *inputs: Any) -> tuple[int, Connection]:
    """Run ``work(connection)`` in a new process on one core; returns its number and our end of the connection.

    ``inputs`` are the first that it receives. They are not arguments of the process: Python waits for ever for a
    child that ends before it has read large ones.
    """
    context = multiprocessing.get_context("spawn")
    end, theirs = context.Pipe()
    with on_cores([core]):
        process = context.Process(target=work, args=(theirs,), daemon=True)
        process.start()
    theirs.close()
    end.send(inputs)
    assert process.pid is not None
    return process.pid, end
