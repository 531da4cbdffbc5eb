"""Workers that count what the loop over blocks asks of them, and fail as they are told."""

import errno
import os
from collections import Counter
from collections.abc import Iterable

from unet_ray.errors import TargetError, VolumeError

STAGES = ("read", "compute", "encode", "write")


class Counting:
    """Fails stage s of block b as often as ``fails[s, b]`` says; keeps what it did."""

    def __init__(self, fails: dict[tuple[str, int], int], there: Iterable[int] = ()) -> None:
        self.left, self.there = Counter(fails), set(there)
        self.calls = Counter[tuple[str, int]]()
        self.written: dict[int, int] = {}

    def _enter(self, stage: str, block: int) -> None:
        self.calls[stage, block] += 1
        if self.left[stage, block] > 0:
            self.left[stage, block] -= 1
            raise VolumeError(f"block {block} does not {stage}")

    def is_done(self, block: int) -> bool:
        return block in self.there

    def read(self, block: int) -> int:
        self._enter("read", block)
        return 10 * block

    def compute(self, block: int, data: int) -> int:
        assert data == 10 * block
        self._enter("compute", block)
        return data + 1

    def encode(self, block: int, result: int) -> str:
        self._enter("encode", block)
        return str(result)

    def write(self, block: int, encoded: str) -> int:
        self._enter("write", block)
        self.written[block] = int(encoded)
        return 7


class Full(Counting):
    """Has room for so many blocks."""

    def __init__(self, room: int, number: int = errno.ENOSPC) -> None:
        super().__init__({})
        self.room, self.number = room, number

    def write(self, block: int, encoded: str) -> int:
        if len(self.written) == self.room:
            error = OSError(self.number, os.strerror(self.number))
            raise TargetError(f"out cannot be written ({error.strerror})") from error
        return super().write(block, encoded)
