"""A set of block numbers, one bit each, and the runs of those that are missing."""

from collections.abc import Iterable, Iterator


class BlockSet:
    """Which of ``num_blocks`` blocks are in; one bit per block.

    >>> done = BlockSet(10, [0, 1, 5])
    >>> len(done), 5 in done, list(done.missing_runs(longest=3))
    (3, True, [(2, 5), (6, 9), (9, 10)])
    """

    def __init__(self, num_blocks: int, members: Iterable[int] = ()) -> None:
        self.num_blocks = num_blocks
        self._bits = bytearray(-(-num_blocks // 8))
        for block in members:
            self.add(block)

    def add(self, block: int) -> None:
        """Put a block in.

        Raises:
            IndexError: there is no such block.
        """
        if not 0 <= block < self.num_blocks:
            raise IndexError(f"there is no block {block}; there are {self.num_blocks}")
        self._bits[block >> 3] |= 1 << (block & 7)

    def add_run(self, start: int, stop: int) -> None:
        """Put blocks ``start`` to ``stop`` in, stop excluded; of a million at once much faster than `add`.

        Raises:
            IndexError: there is no such block.
        """
        if start >= stop:
            return
        if start < 0 or stop > self.num_blocks:
            raise IndexError(f"there are no blocks {start} to {stop - 1}; there are {self.num_blocks}")
        first, end = start >> 3, (stop + 7) >> 3
        bits = ((1 << (stop - start)) - 1) << (start & 7)
        bits |= int.from_bytes(self._bits[first:end], "little")
        self._bits[first:end] = bits.to_bytes(end - first, "little")

    def __contains__(self, block: int) -> bool:
        return 0 <= block < self.num_blocks and bool(self._bits[block >> 3] >> (block & 7) & 1)

    def __len__(self) -> int:
        return int.from_bytes(self._bits).bit_count()

    def __iter__(self) -> Iterator[int]:
        return (b for b in range(self.num_blocks) if b in self)

    def missing(self) -> Iterator[int]:
        """Blocks that are not in, ascending."""
        block = 0
        while block < self.num_blocks:
            if not block & 7 and self._bits[block >> 3] == 0xFF:
                block += 8
                continue
            if block not in self:
                yield block
            block += 1

    def missing_runs(self, longest: int) -> Iterator[tuple[int, int]]:
        """Runs (start, stop) of missing blocks, stop excluded, at most ``longest`` long."""
        start = stop = -1
        for block in self.missing():
            if block == stop and stop - start < longest:
                stop += 1
                continue
            if stop > start:
                yield start, stop
            start, stop = block, block + 1
        if stop > start:
            yield start, stop
