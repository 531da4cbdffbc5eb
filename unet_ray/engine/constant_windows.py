"""Windows of one grey value, as padding and blank resin give: predicted once, then remembered."""

from collections import OrderedDict
from typing import Any

import numpy as np
import numpy.typing as npt

# Padding has one grey value, perhaps two; more would be noise, and each costs as much memory as a tile's output.
MOST_KEPT = 4


class ConstantWindows:
    """What a predictor made of windows that hold one grey value only.

    The same window gives the same output, so that what is kept is what would be computed. The grey values that were
    met last are kept, `MOST_KEPT` of them.
    """

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[tuple[int, ...], int], npt.NDArray[Any]] = OrderedDict()

    def known(self, window: npt.NDArray[np.uint8]) -> npt.NDArray[Any] | None:
        """Output of a window (context, height, width) that is constant and was met before; None: predict it."""
        key = _key(window)
        if key not in self._kept:
            return None
        self._kept.move_to_end(key)
        return self._kept[key]

    def keep(self, window: npt.NDArray[np.uint8], output: npt.NDArray[Any]) -> None:
        """Remember what the predictor made of a constant window."""
        # A copy: an output may be a view of a whole batch's.
        self._kept[_key(window)] = output.copy()
        while len(self._kept) > MOST_KEPT:
            self._kept.popitem(last=False)


def is_constant(window: npt.NDArray[np.uint8]) -> bool:
    """Whether a window holds one grey value only.

    >>> is_constant(np.full((1, 2, 3), 7, np.uint8)), is_constant(np.arange(6, dtype=np.uint8).reshape(1, 2, 3))
    (True, False)
    """
    first = window.flat[0]
    # Nearly every other window differs in its first row already.
    return bool((window[0, 0] == first).all() and (window == first).all())


def _key(window: npt.NDArray[np.uint8]) -> tuple[tuple[int, ...], int]:
    return window.shape, int(window.flat[0])
