"""The one client of object stores: how long a request may take, what is asked again, and what a refusal is called.

obstore asks again by itself after 5xx answers, broken connections and time-outs,
also in the middle of an object that is read. What it leaves to the caller is here:
a listing cut off on its way, requests that are not safe to repeat unless one knows
what they do (deleting, creating), and waiting long enough. By its own count of ten
tries it gives up on a store that refuses connections after 2 to 6 s.
"""

import os
import random
import re
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar
from urllib.parse import urlsplit

from unet_ray.storage.failure import reason

Answer = TypeVar("Answer")

CONNECT_SECONDS = 5.0
# Of one request, its body included: 64 MB take that long at 1.1 MB/s.
REQUEST_SECONDS = 60.0
# For how long a store is asked again that answered this process before: a restart or a burst of 503 costs no block.
PATIENCE_SECONDS = 120.0
# And one that never has, more likely for a wrong endpoint, or was given up since.
FIRST_PATIENCE_SECONDS = 15.0
FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 10.0
# The pause before the next try is drawn between the first one and so many times the last one.
PAUSE_GROWTH = 3.0
# The seconds above decide, not the count.
_TRIES = 1000

# Kinds of store (s3, gs, ...) that have answered this process.
_reached: set[str] = set()
_STATUS = re.compile(r"status code: (\d{3})")
_S3_ERROR = re.compile(r"<Code>(.*?)</Code>\s*(?:<Message>(.*?)</Message>)?", re.DOTALL)


def patience_seconds(url: str) -> float:
    """For how long requests to the store of a URL are repeated."""
    return PATIENCE_SECONDS if urlsplit(url).scheme in _reached else FIRST_PATIENCE_SECONDS


def open_store(url: str) -> Any:
    """An obstore store of everything below a URL; endpoint and credentials come from the environment.

    Raises:
        ValueError, obstore.exceptions.BaseError: the URL or the environment's settings cannot be followed.
    """
    from obstore.store import from_url

    # A loopback or private endpoint speaks plain HTTP, which obstore refuses unless told.
    plain = os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://")
    return from_url(
        url,
        client_options={
            "allow_http": plain,
            "connect_timeout": f"{round(1000 * CONNECT_SECONDS)}ms",
            "timeout": f"{round(1000 * REQUEST_SECONDS)}ms",
        },
        retry_config={
            "max_retries": _TRIES,
            "retry_timeout": timedelta(seconds=patience_seconds(url)),
            "backoff": {
                "init_backoff": timedelta(seconds=FIRST_PAUSE_SECONDS),
                "max_backoff": timedelta(seconds=LONGEST_PAUSE_SECONDS),
                "base": PAUSE_GROWTH,
            },
        },
    )


def ask(url: str, request: Callable[[], Answer]) -> Answer:
    """What a request returns, made again while the store does not answer it; ``request`` must be safe to repeat.

    Raises:
        obstore.exceptions.BaseError: the store refused, or does not answer for as long as `patience_seconds`.
        OSError: the same.
    """
    began, pause = time.monotonic(), FIRST_PAUSE_SECONDS
    while True:
        try:
            answer = request()
        except Exception as error:
            if not is_away(error):
                _reached.add(urlsplit(url).scheme)
                raise
            # A request that obstore has repeated for as long comes here once.
            if time.monotonic() - began + pause > patience_seconds(url):
                # What else this process asks it is not waited for as long again.
                _reached.discard(urlsplit(url).scheme)
                raise
        else:
            _reached.add(urlsplit(url).scheme)
            return answer
        time.sleep(pause)
        pause = min(LONGEST_PAUSE_SECONDS, random.uniform(FIRST_PAUSE_SECONDS, PAUSE_GROWTH * pause))


def is_away(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, says that a store does not answer, as against that it refuses."""
    while error is not None:
        if type(error).__module__.startswith("obstore"):
            from obstore.exceptions import GenericError

            return isinstance(error, GenericError) and _may_pass(str(error))
        error = error.__cause__ or error.__context__
    return False


def _may_pass(said: str) -> bool:
    """5xx, "slow down" and a connection that broke or timed out may pass; other 4xx and wrong settings do not."""
    status = _STATUS.search(said)
    if status is None:
        return "HTTP error" in said or "response body" in said
    # S3 says 400 RequestTimeout where an upload came to a halt.
    return status[1] in ("408", "429") or status[1].startswith("5") or "<Code>RequestTimeout<" in said


def refusal(what: str, error: BaseException) -> str:
    """The sentence of what could not be done with a store."""
    if is_away(error):
        return (
            f"{what}: its store gives no whole answer however often it is asked ({why(error)}); check endpoint and "
            "network, then run the same command again"
        )
    return f"{what} ({why(error)}); check bucket, endpoint and credentials"


def why(error: BaseException) -> str:
    """What a store said: its code and message, without the XML about them and obstore's account of its tries."""
    said = str(error)
    status, told = _STATUS.search(said), _S3_ERROR.search(said)
    if status is not None and told is not None:
        return " ".join(f"{status[1]} {told[1]}: {told[2] or ''}".split()).rstrip(" :.")
    return reason(error).rpartition(" - ")[2].removeprefix("Server returned non-2xx status code: ").rstrip(" :")
