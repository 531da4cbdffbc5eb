"""What all commands share: settings, signals, errors, summary, exit code."""

import contextlib
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any, TypeVar

from unet_ray.config.base import Config
from unet_ray.config.parse import parse
from unet_ray.errors import UnetRayError

Settings = TypeVar("Settings", bound=Config)
Summary = dict[str, Any]

INTERRUPTED = 130
# `ray job stop` kills 3 s after SIGTERM: what is not wound up by then is left as a killed driver would leave it.
WIND_UP_SECONDS = 2.0


def run(
    kind: type[Settings],
    engine: Callable[[Settings], Summary],
    argv: Sequence[str] | None,
    program: str,
    interrupted: str = "interrupted; the same command continues where this run stopped",
) -> int:
    """Run one job: parse, call the engine, print its summary as the last line of stdout.

    Args:
        kind: of the settings.
        engine: the work; where an interruption is its usual end, it returns a summary of status "interrupted".
        argv: words of the command line; None: the process's own.
        program: how messages name the job.
        interrupted: said when it is interrupted.

    Returns:
        Exit code: 0 complete, 2 the input is wrong, 3 incomplete, 130 interrupted, 1 anything else.
    """
    try:
        try:
            settings = parse(kind, sys.argv[1:] if argv is None else argv, program)
        except BrokenPipeError:
            _forget_stdout()  # `--help | head`: the reader has had enough
            return 0
        # stdout is the summary's alone; whatever a library prints is a log.
        with _interruptible(program, interrupted), contextlib.redirect_stdout(sys.stderr):
            summary = engine(settings)
    except UnetRayError as error:
        _say(program, " ".join(str(error).split()))
        return error.exit_code
    except KeyboardInterrupt:
        if argv is None:
            # What Python unloads at its end takes a second, and on a busy machine longer than the grace.
            os._exit(INTERRUPTED)
        return INTERRUPTED
    except Exception as error:
        traceback.print_exc()
        _say(program, f"failed with an error of its own: {error!r}")
        return 1
    try:
        print(json.dumps(summary), flush=True)
    except OSError as error:
        # The reader of hours of work has gone, or the disk of its log is full: the work is done nevertheless.
        _forget_stdout()
        _say(program, f"stdout does not take the summary ({error.strerror}), which is {json.dumps(summary)}")
    return {"complete": 0, "interrupted": INTERRUPTED}.get(summary["status"], 3)


def _forget_stdout() -> None:
    """Let what was not written go: Python would complain again when it closes stdout."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _say(program: str, sentence: str) -> None:
    print(f"{program}: {sentence}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def _interruptible(program: str, sentence: str) -> Iterator[None]:
    """SIGINT and SIGTERM end the block in an orderly way, and the process anyway when that takes too long."""
    forced: list[threading.Timer] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        if not forced:
            _say(program, sentence)
            forced.append(threading.Timer(WIND_UP_SECONDS, os._exit, [INTERRUPTED]))
            forced[0].daemon = True
            forced[0].start()
            # Raised inside a callback of Python's own, it is swallowed there and only printed; the timer remains.
            sys.unraisablehook = lambda unraisable: None
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may handle signals
        return
    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for timer in forced:
            timer.cancel()
        sys.unraisablehook = sys.__unraisablehook__
