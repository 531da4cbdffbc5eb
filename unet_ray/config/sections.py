"""Choices of sections: numbers, ``A:B`` and ``A:B:STEP``; and regions of a volume."""

import re
from collections.abc import Iterable

from unet_ray.errors import ConfigError
from unet_ray.geometry.box import Box, Triple

_CHOICE = re.compile(r"(\d+)(?::(\d+)(?::([1-9]\d*))?)?")


def parse_sections(choices: Iterable[str], depth: int, option: str) -> tuple[int, ...]:
    """Section numbers that ``choices`` name, ascending, each once.

    Args:
        choices: numbers, ``A:B`` (B excluded) or ``A:B:STEP``.
        depth: sections there are; each number must be below it.
        option: the flag to name in an error.

    Raises:
        ConfigError: a choice is not of that form, names no section or one that is not there.

    >>> parse_sections(["4:30:5", "0"], depth=30, option="--sections")
    (0, 4, 9, 14, 19, 24, 29)
    """
    numbers: set[int] = set()
    for choice in choices:
        match = _CHOICE.fullmatch(choice)
        if match is None:
            raise ConfigError(
                f"{option} was given {choice!r}; give section numbers, A:B or A:B:STEP (B excluded), such as 4:30:5"
            )
        first, stop, step = (None if group is None else int(group) for group in match.groups())
        assert first is not None
        chosen = range(first, first + 1 if stop is None else stop, step or 1)
        if not chosen:
            raise ConfigError(f"{option} {choice} names no section, since B is excluded; make B larger than A")
        if chosen[-1] >= depth:
            raise ConfigError(
                f"{option} {choice} asks for section {chosen[-1]}, but the volume has {depth} (0 to {depth - 1}); "
                "name sections that are there"
            )
        numbers.update(chosen)
    return tuple(sorted(numbers))


def written(sections: Iterable[int]) -> str:
    """Section numbers as `parse_sections` reads them, runs in short.

    >>> written([5, 0, 1, 2, 7, 8])
    '0:3 5 7 8'
    """
    runs: list[tuple[int, int]] = []
    for section in sorted(sections):
        if runs and runs[-1][1] == section:
            runs[-1] = (runs[-1][0], section + 1)
        else:
            runs.append((section, section + 1))
    return " ".join(f"{a}:{b}" if b - a > 2 else " ".join(map(str, range(a, b))) for a, b in runs)


def parse_roi(roi: str | None, volume: Triple, option: str) -> Box:
    """The region of a volume that ``z0:z1,y0:y1,x0:x1`` names; an end that is left out is the volume's own.

    Args:
        roi: stops excluded; None: the whole volume.
        volume: sides, (z, y, x) voxels.
        option: the flag to name in an error.

    Raises:
        ConfigError: it is not of that form, or not a region inside the volume.

    >>> parse_roi("4:,100:356,:", (30, 512, 512), "--roi")
    Box(start=(4, 100, 0), stop=(30, 356, 512))
    """
    if roi is None:
        return Box.of_shape(volume)
    ranges = [re.fullmatch(r"(\d*):(\d*)", part.strip()) for part in roi.split(",")]
    if len(ranges) != 3 or None in ranges:
        raise ConfigError(
            f"{option} was given {roi!r}; give z0:z1,y0:y1,x0:x1 (stops excluded; an empty end is the volume's), "
            "such as 0:10,200:712,:"
        )
    start, stop = list[int](), list[int]()
    for axis, match, side in zip("zyx", ranges, volume, strict=True):
        assert match is not None
        first, last = int(match[1] or 0), int(match[2] or side)
        if not first < last <= side:
            raise ConfigError(
                f"{option} {roi} asks for {axis} {first}:{last}, but the volume has {axis} 0:{side}; name a region "
                "inside it that is not empty"
            )
        start.append(first)
        stop.append(last)
    return Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))
