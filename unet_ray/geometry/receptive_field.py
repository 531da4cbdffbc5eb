"""What a convolutional network sees: margin, halo, legal sides, pooling factor.

A network is described along one axis by the list of its layers in the order of
computation. Everything here follows from that list; nothing is typed in.

>>> def level(): return [Conv(3), Conv(3)]
>>> unet = level()
>>> for _ in range(4): unet = [*unet, Push(), Pool(2), *level()]
>>> for _ in range(4): unet = [*unet, Up(2), Join(), *level()]
>>> output_side(unet, 572), margin_px(unet), pooling_factor(unet), halo_px(unet)
(388, 92, 16, 94)

Source: figure 1 and section 2 of Ronneberger et al. 2015 (572 -> 388). The halo
is not the margin 92 but the least one that also keeps 384-pixel tiles legal.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import count

from unet_ray.errors import TileGridError


@dataclass(frozen=True, slots=True)
class Conv:
    """Convolution of stride 1; ``padding`` zeros are added (before, after)."""

    kernel: int
    padding: tuple[int, int] = (0, 0)


@dataclass(frozen=True, slots=True)
class Pool:
    """Pooling of ``factor`` x ``factor`` voxels into one."""

    factor: int


@dataclass(frozen=True, slots=True)
class Up:
    """Up-sampling by ``factor``: nearest, or a transposed convolution with kernel = stride."""

    factor: int


@dataclass(frozen=True, slots=True)
class Push:
    """A skip connection leaves here."""


@dataclass(frozen=True, slots=True)
class Join:
    """The last open skip connection arrives here, cropped about its centre."""


Layer = Conv | Pool | Up | Push | Join
Layers = Sequence[Layer]


def pooling_factor(layers: Layers) -> int:
    """Input voxels per voxel of the network's coarsest level.

    >>> pooling_factor([Conv(3), Push(), Pool(2), Up(2), Join()])
    2
    """
    scale = coarsest = 1
    for layer in layers:
        if isinstance(layer, Pool):
            scale *= layer.factor
        elif isinstance(layer, Up):
            scale //= layer.factor
        coarsest = max(coarsest, scale)
    return coarsest


def _trace(layers: Layers, input_side: int) -> tuple[int, list[int]] | None:
    """Output side and the crop of every Join, or None where the side is not legal."""
    side, skips, crops = input_side, list[int](), list[int]()
    for layer in layers:
        match layer:
            case Conv(kernel, (before, after)):
                side += before + after - kernel + 1
            case Pool(factor):
                if side % factor:
                    return None
                side //= factor
            case Up(factor):
                side *= factor
            case Push():
                skips.append(side)
            case Join():
                surplus = skips.pop() - side
                if surplus < 0 or surplus % 2:
                    return None
                crops.append(surplus // 2)
        if side <= 0:
            return None
    return side, crops


def is_legal(layers: Layers, input_side: int) -> bool:
    """Whether every pooling sees a side that it divides and every skip crops evenly."""
    return _trace(layers, input_side) is not None


def output_side(layers: Layers, input_side: int) -> int:
    """Side of the output for an input of ``input_side``, in pixels.

    Raises:
        TileGridError: the side is not legal; the message names the nearest two.
    """
    traced = _trace(layers, input_side)
    if traced is None:
        below = next((s for s in range(input_side - 1, 0, -1) if is_legal(layers, s)), None)
        above = next(s for s in count(input_side + 1) if is_legal(layers, s))
        nearest = f"{above} is the least legal side" if below is None else f"the nearest are {below} and {above}"
        raise TileGridError(f"an input side of {input_side} px does not fit the network's poolings; {nearest}")
    return traced[0]


@lru_cache(maxsize=256)
def _margin(layers: tuple[Layer, ...]) -> int:
    side = next(s for s in count(1) if is_legal(layers, s))
    lost = side - output_side(layers, side)
    if lost % 2:
        raise ValueError(f"the network loses {lost} px, an odd number: its two margins differ")
    return lost // 2


def margin_px(layers: Layers) -> int:
    """Pixels that an output lacks on each side of its input; 0 for ``same`` padding."""
    return _margin(tuple(layers))


def input_interval(layers: Layers, input_side: int, start: int, stop: int) -> tuple[int, int]:
    """Input indices [first, last) on which the outputs [start, stop) depend.

    Indices below 0 or from ``input_side`` on are zeros that a padded
    convolution put there.

    >>> input_interval([Conv(3), Conv(3)], 10, 0, 1)
    (0, 5)
    >>> input_interval([Conv(3, (1, 1))], 10, 0, 10)
    (-1, 11)
    """
    output_side(layers, input_side)  # raises where the side is not legal
    traced = _trace(layers, input_side)
    assert traced is not None
    crops = list(traced[1])
    skips: list[tuple[int, int]] = []
    first, last = start, stop - 1
    for layer in reversed(layers):
        match layer:
            case Conv(kernel, (before, _)):
                first, last = first - before, last - before + kernel - 1
            case Pool(factor):
                first, last = first * factor, last * factor + factor - 1
            case Up(factor):
                first, last = first // factor, last // factor
            case Join():
                crop = crops.pop()
                skips.append((first + crop, last + crop))
            case Push():
                skip_first, skip_last = skips.pop()
                first, last = min(first, skip_first), max(last, skip_last)
    return first, last + 1


@lru_cache(maxsize=256)
def _halo(layers: tuple[Layer, ...]) -> int:
    factor, margin = pooling_factor(layers), _margin(layers)
    # Legality and reach repeat with the pooling factor, so one tile of many factors stands for all.
    tile = factor * (1 + 4 * len(layers))
    for halo in count(margin):
        window = tile + 2 * halo
        if is_legal(layers, window):
            first, last = input_interval(layers, window, halo - margin, halo - margin + tile)
            if first >= 0 and last <= window:
                return halo
    raise AssertionError("unreachable: a large enough halo always exists")


def halo_px(layers: Layers) -> int:
    """Least halo with which every tile of a multiple of the pooling factor is exact.

    With it a tile's window is a legal input side, the output covers the tile,
    and no output of the tile depends on a zero that padding put at the window's
    edge. Tiles whose first pixel is a multiple of the pooling factor (from the
    volume's origin) then give what the whole section in one piece gives.
    """
    return _halo(tuple(layers))


@lru_cache(maxsize=256)
def cuts_px(layers: tuple[Layer, ...], crop: int) -> tuple[int, ...]:
    """What to cut off each side before each up-sampling, and at last off the output, to crop the output by ``crop``.

    Where the outermost pixels of an output are not wanted, most of what the expanding path would compute for them need
    not be computed: behind an up-sampling a pixel sees but few others of its path, while the halo is as wide as the
    whole network sees. A skip connection is cropped about its centre to what arrives beside it, as ever.

    Returns:
        Pixels before each ``Up`` in order, of what the cuts before it have left, and at last those of the output. They
        are the most with which no pixel that is kept depends on a zero that padding puts at the edge of a cut.

    >>> def level(): return [Conv(3, (1, 1)), Conv(3, (1, 1))]
    >>> cuts_px((*level(), Push(), Pool(2), *level(), Up(2), Join(), *level()), 20)
    (9, 2)
    """
    needless, totals = crop, list[tuple[int, int]]()
    for layer in reversed(layers):
        match layer:
            case Conv(_, padding):
                needless = max(0, needless - max(padding))
            case Up(factor):
                needless //= factor
                totals.append((needless, factor))
            case _:
                pass
    cuts, before = list[int](), 0
    for total, factor in reversed(totals):
        cuts.append(total - before)
        before = total * factor
    return (*cuts, crop - before)


def legal_output_sides(layers: Layers, at_least: int = 1) -> Iterator[int]:
    """Output sides that the network can make, ascending, from ``at_least`` on.

    >>> from itertools import islice
    >>> list(islice(legal_output_sides([Conv(3), Pool(2), Up(2)], at_least=5), 3))
    [6, 8, 10]
    """
    margin = margin_px(layers)
    return (s for s in count(max(at_least, 1)) if is_legal(layers, s + 2 * margin))


def nearest_output_sides(layers: Layers, wanted: int) -> tuple[int, ...]:
    """``(wanted,)`` where that output side is legal, else the nearest one or two."""
    margin = margin_px(layers)
    above = next(legal_output_sides(layers, at_least=wanted))
    if above == wanted:
        return (wanted,)
    below = (s for s in range(wanted - 1, 0, -1) if is_legal(layers, s + 2 * margin))
    return (*(s for s in [next(below, None)] if s is not None), above)
