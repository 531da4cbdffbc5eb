"""Plain loops compiled by Numba, with the types they were written with."""

from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

import numba

P = ParamSpec("P")
R = TypeVar("R")


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """Return ``function`` compiled by Numba on first use, and kept on disk for the next process.

    It holds no GIL while it runs. Where nothing can be kept (no writable folder beside the module
    nor in the user's home) every process compiles for itself. Numba's own decorator has no types,
    which would hide those of every loop behind it from the type checker.

    >>> import numpy as np
    >>> @compiled
    ... def total(values):
    ...     result = 0
    ...     for value in values:
    ...         result += value
    ...     return result
    >>> int(total(np.arange(4)))
    6
    """
    try:
        kernel = numba.njit(cache=True, nogil=True)(function)
    except RuntimeError:  # no place for the cache
        kernel = numba.njit(nogil=True)(function)
    return cast("Callable[P, R]", kernel)
