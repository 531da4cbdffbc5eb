"""A zarr store for reading that remembers what it has read: neighbouring boxes share chunks, and shards their index."""

import asyncio
import threading
from collections import OrderedDict
from typing import Any

from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import ObjectStore

REMEMBERED_BYTES = 64 << 20


class RememberingStore(ObjectStore[Any]):
    """An object store of which the latest answers are kept, as they came, in `REMEMBERED_BYTES` at most.

    For objects that do not change while it is open. One answer that is larger is not kept.
    """

    def __init__(self, store: Any) -> None:
        super().__init__(store, read_only=True)
        self._kept: OrderedDict[tuple[str, ByteRequest | None], Buffer] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()
        # Of zarr's one event loop: what is being asked for, which another reader then waits for.
        self._asked: dict[tuple[str, ByteRequest | None], asyncio.Future[Buffer | None]] = {}

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """Bytes of an object, or of a range of it; None where there is none, which is not remembered."""
        place = key, byte_range
        with self._lock:
            if place in self._kept:
                self._kept.move_to_end(place)
                return self._kept[place]
        if place not in self._asked:
            asked = self._asked[place] = asyncio.ensure_future(super().get(key, prototype, byte_range))
            asked.add_done_callback(lambda _: self._asked.pop(place))
        found = await asyncio.shield(self._asked[place])
        if found is not None and len(found) <= REMEMBERED_BYTES:
            with self._lock:
                if place not in self._kept:
                    self._kept[place] = found
                    self._bytes += len(found)
                while self._bytes > REMEMBERED_BYTES:
                    _, dropped = self._kept.popitem(last=False)
                    self._bytes -= len(dropped)
        return found
