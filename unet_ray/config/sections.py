"""Choices of sections: numbers, ``A:B`` and ``A:B:STEP``."""

import re
from collections.abc import Iterable

from unet_ray.errors import ConfigError

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
