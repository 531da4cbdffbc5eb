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
    kind = os.fstat(number).st_mode
    if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
        os.close(number)
        raise VolumeError(f"{path} is a pipe or a device and no file; save what comes from it to a file first")
    return number
