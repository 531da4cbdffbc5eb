"""How a volume's values become the 8-bit grey levels that augmentation and the network work on."""

from collections.abc import Callable, Iterable
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import model_validator

from unet_ray.config.base import Config
from unet_ray.errors import VolumeError
from unet_ray.numerics.order_statistics import order_statistics


class IntensityMap(Config):
    """A straight line from values to grey levels: ``low`` becomes 0, ``high`` 255; stored with a model.

    >>> IntensityMap(low=0, high=4095, dtype="uint16").apply(np.array([0, 2048, 4095, 9999], np.uint16))
    array([  0, 128, 255, 255], dtype=uint8)
    """

    low: float
    """Value that becomes 0, as do those below."""
    high: float
    """Value that becomes 255, as do those above; above low."""
    dtype: str
    """The volume's dtype, as NumPy names it."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low {self.low:g} is not below high {self.high:g}")
        return self

    @classmethod
    def identity(cls) -> "IntensityMap":
        """The map of 8-bit volumes, which changes nothing."""
        return cls(low=0.0, high=255.0, dtype="uint8")

    @classmethod
    def of_sections(
        cls,
        read: Callable[[], Iterable[NDArray[Any]]],
        dtype: np.dtype[Any],
        *,
        percentiles: tuple[float, float] = (0.1, 99.9),
    ) -> "IntensityMap":
        """The map for a stack, from all its values; what is in memory is one section.

        8-bit stacks are taken as they are and not read. Others are stretched between two percentiles,
        which are order statistics, not means between two, and exact: so whole numbers give whole numbers.
        A stack of one value is mapped to 0.

        Args:
            read: yields the sections, each time that it is called (`order_statistics` says how often).
            dtype: the stack's; without NaN and infinity.
            percentiles: of the values, in percent; what lies beyond is clipped.

        >>> ramp = np.arange(1001, dtype=np.uint16)
        >>> IntensityMap.of_sections(lambda: [ramp[:600], ramp[600:]], ramp.dtype, percentiles=(10, 90))
        IntensityMap(low=100.0, high=900.0, dtype='uint16')
        """
        if dtype == np.uint8:
            return cls.identity()
        lowest, low, high, highest = order_statistics(read, dtype, [0, percentiles[0] / 100, percentiles[1] / 100, 1])
        if low == high:  # hardly anything stands out from one value: keep what does
            low, high = lowest, highest
        return cls(low=low, high=high if high > low else low + max(1.0, abs(low)), dtype=dtype.name)

    @classmethod
    def of_sample(cls, sample: NDArray[Any], *, name: str = "volume") -> "IntensityMap":
        """The map for a volume of which ``sample`` is an even sample: `of_sections` of that.

        Args:
            sample: values of any shape, with the volume's dtype.
            name: what an error calls the volume.

        Raises:
            VolumeError: the sample is empty, or holds NaN or infinity.
        """
        if sample.dtype != np.uint8 and (sample.size == 0 or not np.isfinite(sample).all()):
            found = "no values" if sample.size == 0 else "NaN or infinity"
            raise VolumeError(f"{name} was to be mapped to 8 bits, but holds {found}; mend what is damaged")
        return cls.of_sections(lambda: [sample], sample.dtype)

    def apply(self, values: NDArray[Any]) -> NDArray[np.uint8]:
        """Grey levels of ``values``, rounded half up, uint8 of the same shape."""
        if values.dtype == np.uint8 and (self.low, self.high) == (0, 255):
            return np.ascontiguousarray(values, np.uint8)
        if values.dtype in (np.uint8, np.uint16):  # a table of all values is faster than arithmetic on each
            table = self._grey(np.arange(np.iinfo(values.dtype).max + 1))
            return np.take(table, values)
        return self._grey(values)

    def _grey(self, values: NDArray[Any]) -> NDArray[np.uint8]:
        scaled = (np.asarray(values, np.float64) - self.low) * 255 / (self.high - self.low)
        grey: NDArray[np.uint8] = np.clip(np.floor(scaled + 0.5), 0, 255).astype(np.uint8)
        return grey
