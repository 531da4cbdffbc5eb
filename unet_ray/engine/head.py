"""The head of a cluster that is joined: whether it answers, before the start and all the time."""

import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator

from unet_ray.errors import ConfigError

CONNECT_SECONDS = 3.0
# A head that is just starting, or a name that is not known yet.
START_SECONDS = 10.0
# Ray's own core aborts the process after 60 s with a stack trace; a cable may be out for less.
PATIENCE_SECONDS = 45.0
EVERY_SECONDS = 3.0


def answers(address: str) -> bool:
    """Whether somebody listens at ``host:port``."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
    except OSError:
        return False
    return True


def require_head(address: str) -> None:
    """Wait a little for the head, of which Ray by itself says nothing for minutes.

    Args:
        address: what ``RAY_ADDRESS`` names; other forms than ``host:port`` are left to Ray.

    Raises:
        ConfigError: nobody answers there.
    """
    if not address.rpartition(":")[2].isdigit() or "://" in address:
        return
    until = time.monotonic() + START_SECONDS
    while not answers(address):
        if time.monotonic() > until:
            raise ConfigError(
                f"RAY_ADDRESS names the Ray cluster at {address}, where nobody answers; start it, correct the address, "
                "or unset RAY_ADDRESS to run on this machine alone"
            )
        time.sleep(0.5)


@contextlib.contextmanager
def watched(address: str) -> Iterator[None]:
    """End the process with a sentence when the head has not answered for long.

    Whatever waits for Ray in the meantime waits inside its C++ core and cannot be woken, so the process ends as a
    killed driver's does: what is complete stays complete.
    """
    over = threading.Event()

    def watch() -> None:
        heard = time.monotonic()
        while not over.wait(EVERY_SECONDS):
            if answers(address):
                heard = time.monotonic()
            elif time.monotonic() - heard > PATIENCE_SECONDS:
                print(
                    f"cluster: the head of the Ray cluster at {address} has not answered for {PATIENCE_SECONDS:.0f} s; "
                    "the same command on a cluster that runs continues where this run stopped",
                    file=sys.stderr,
                    flush=True,
                )
                os._exit(1)

    watcher = threading.Thread(target=watch, name="head", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
