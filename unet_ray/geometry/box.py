"""Axis-aligned boxes of voxels and the mirror rule at a volume's border."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

Triple = tuple[int, int, int]


def triple(values: Sequence[int]) -> Triple:
    """The three whole numbers of a (z, y, x) sequence.

    Raises:
        ValueError: there are not exactly three.

    >>> triple([1, 2, 3])
    (1, 2, 3)
    """
    z, y, x = values
    return int(z), int(y), int(x)


def mirror_index(index: int, side: int) -> int:
    """Index inside [0, side) that holds the mirrored value of any whole ``index``.

    The edge voxel is not repeated (NumPy ``reflect``), folded as often as
    needed; a side of 1 repeats its only voxel.

    >>> [mirror_index(i, 4) for i in range(-4, 9)]
    [2, 3, 2, 1, 0, 1, 2, 3, 2, 1, 0, 1, 2]
    >>> mirror_index(-7, 1)
    0
    """
    if side == 1:
        return 0
    period = 2 * (side - 1)
    folded = index % period
    return folded if folded < side else period - folded


@dataclass(frozen=True, slots=True)
class Box:
    """Voxels from ``start`` to ``stop``, stop excluded, axes (z, y, x).

    A box may reach outside its volume, and may be empty.

    >>> Box((0, 0, 384), (1, 384, 512)).shape
    (1, 384, 128)
    """

    start: Triple
    stop: Triple

    def __post_init__(self) -> None:
        if any(b < a for a, b in zip(self.start, self.stop, strict=True)):
            raise ValueError(f"box stops before it starts: {self.start} to {self.stop}")

    @classmethod
    def of_shape(cls, shape: Sequence[int], start: Sequence[int] = (0, 0, 0)) -> "Box":
        """Box of ``shape`` whose first voxel is ``start``.

        >>> Box.of_shape((1, 2, 3), start=(4, 0, 0))
        Box(start=(4, 0, 0), stop=(5, 2, 3))
        """
        first = triple(start)
        return cls(first, triple([a + n for a, n in zip(first, shape, strict=True)]))

    @property
    def shape(self) -> Triple:
        """Sides in voxels, (z, y, x)."""
        return triple([b - a for a, b in zip(self.start, self.stop, strict=True)])

    @property
    def voxels(self) -> int:
        """Number of voxels inside."""
        return prod(self.shape)

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """The box as an index of an array whose first voxel is the origin."""
        z, y, x = (slice(a, b) for a, b in zip(self.start, self.stop, strict=True))
        return z, y, x

    def grow(self, by: Sequence[int]) -> "Box":
        """The box with ``by`` (z, y, x) voxels more on both sides of each axis.

        >>> Box((0, 0, 0), (1, 384, 384)).grow((0, 94, 94)).shape
        (1, 572, 572)
        """
        return Box(
            triple([a - n for a, n in zip(self.start, by, strict=True)]),
            triple([b + n for b, n in zip(self.stop, by, strict=True)]),
        )

    def shift(self, by: Sequence[int]) -> "Box":
        """The box moved by ``by`` (z, y, x) voxels."""
        return Box(
            triple([a + n for a, n in zip(self.start, by, strict=True)]),
            triple([b + n for b, n in zip(self.stop, by, strict=True)]),
        )

    def relative_to(self, origin: Sequence[int]) -> "Box":
        """The box as seen from ``origin``: what to index in an array that begins there."""
        return self.shift([-n for n in origin])

    def intersect(self, other: "Box") -> "Box":
        """Voxels in both boxes; an empty box where there are none.

        >>> Box((0, 0, 0), (4, 4, 4)).intersect(Box((2, 2, 2), (9, 9, 9)))
        Box(start=(2, 2, 2), stop=(4, 4, 4))
        """
        start = [max(a, b) for a, b in zip(self.start, other.start, strict=True)]
        stop = [min(a, b) for a, b in zip(self.stop, other.stop, strict=True)]
        return Box(triple(start), triple([max(a, b) for a, b in zip(start, stop, strict=True)]))

    def contains(self, other: "Box") -> bool:
        """Whether every voxel of ``other`` is in this box."""
        return all(a <= c for a, c in zip(self.start, other.start, strict=True)) and all(
            d <= b for b, d in zip(self.stop, other.stop, strict=True)
        )
