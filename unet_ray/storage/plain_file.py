"""Files that can be read at any place of them and come to an end: no pipes, no devices."""

import os
import stat

from unet_ray.errors import VolumeError


def plain(path: str, flags: int) -> int:
    """For `open` as its ``opener``: a file, and nothing whose opening or reading could wait for ever.

    Raises:
        VolumeError: it is a pipe, a socket or a device.
        OSError: as `open`.

    >>> open("/dev/null", "rb", opener=plain)
    Traceback (most recent call last):
    unet_ray.errors.VolumeError: /dev/null is a pipe or a device and no file; save what comes from it to a file first
    """
    # Who opens a pipe waits for its writer, unless he says that he will not.
    number = os.open(path, flags | os.O_NONBLOCK)
    if not _is_plain(os.fstat(number)):
        os.close(number)
        raise _no_file(path)
    return number


def require_plain(path: str | os.PathLike[str]) -> None:
    """For a library that opens files by itself; nothing happens where there is nothing.

    Raises:
        VolumeError: it is a pipe, a socket or a device.
    """
    try:
        status = os.stat(path)
    except OSError:  # which whoever opens it is told, too
        return
    if not _is_plain(status):
        raise _no_file(path)


def _is_plain(status: os.stat_result) -> bool:
    return stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)


def _no_file(path: str | os.PathLike[str]) -> VolumeError:
    said = os.fspath(path)
    return VolumeError(f"{said} is a pipe or a device and no file; save what comes from it to a file first")
