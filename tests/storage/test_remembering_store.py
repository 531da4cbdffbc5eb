"""What several readers ask for at the same time is asked for once."""

import asyncio

import obstore
import pytest
from obstore.store import MemoryStore
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import ObjectStore

from unet_ray.storage.remembering_store import RememberingStore


@pytest.fixture
def asked(monkeypatch):
    """Keys that were asked for; whoever asks waits, so that others come meanwhile."""
    keys, get = [], ObjectStore.get

    async def slow(self, key, *how):
        keys.append(key)
        await asyncio.sleep(0.01)
        if len(keys) == 1 and key == "fails":
            raise OSError(key)
        return await get(self, key, *how)

    monkeypatch.setattr(ObjectStore, "get", slow)
    return keys


def readings(*keys):
    memory = MemoryStore()
    obstore.put(memory, "a", b"chunk")
    obstore.put(memory, "fails", b"once")
    store = RememberingStore(memory)

    async def read(key):
        found = await store.get(key, default_buffer_prototype())
        return None if found is None else found.to_bytes()

    async def at_once(several):
        return await asyncio.gather(*map(read, several), return_exceptions=True)

    async def one_after_the_other():
        return [await at_once(several) for several in keys]

    return asyncio.run(one_after_the_other())


def test_readers_at_once_share_an_answer(asked):
    assert readings(("a", "a", "none", "a"), ("a", "none")) == [[b"chunk", b"chunk", None, b"chunk"], [b"chunk", None]]
    assert asked == ["a", "none", "none"]  # what is not there is not remembered


def test_they_share_an_error_which_is_not_remembered(asked):
    first, second = readings(("fails", "fails"), ("fails",))
    assert [type(found) for found in first] == [OSError, OSError]
    assert second == [b"once"]
    assert asked == ["fails", "fails"]
