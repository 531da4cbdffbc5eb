"""Sharded zarr v3 arrays whose every shard is put whole, once, and checked.

A shard is encoded in memory and put with one request; nothing is read back
first. zarr's ordinary writes would delete a shard of fill values, and read the
old shard before replacing it.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy.typing as npt
import zarr
from zarr.storage import MemoryStore

from unet_ray.errors import TargetError
from unet_ray.storage.array_spec import ArraySpec
from unet_ray.storage.objects import Objects
from unet_ray.storage.shard_codec import ShardCodec

DAMAGED = ".damaged"

Encoded = dict[str, bytes]
"""Shards of one block, encoded, by key; the record comes last."""


def _in_memory(objects: dict[str, Any], key: str) -> bytes:
    data: bytes = objects[key].to_bytes()
    return data


def put_array(root: Objects, path: str, spec: ArraySpec, attributes: Mapping[str, Any] | None = None) -> None:
    """Put the metadata of an array; its shards stay as they are."""
    root.put(*_array(path, spec, attributes))


def keep_array(root: Objects, path: str, spec: ArraySpec) -> None:
    """`put_array`, unless the very same metadata are there: what is complete may be read-only."""
    _keep(root, *_array(path, spec))


def _array(path: str, spec: ArraySpec, attributes: Mapping[str, Any] | None = None) -> tuple[str, bytes]:
    objects: dict[str, Any] = {}
    spec.create(MemoryStore(objects), spec.shape, attributes or {})
    return f"{path}/zarr.json", _in_memory(objects, "zarr.json")


def put_group(root: Objects, path: str, attributes: Mapping[str, Any] | None = None) -> None:
    """Put the metadata of a group; what it holds stays as it is."""
    root.put(*_group(path, attributes))


def keep_group(root: Objects, path: str, attributes: Mapping[str, Any] | None = None) -> None:
    """`put_group`, unless the very same metadata are there."""
    _keep(root, *_group(path, attributes))


def _keep(root: Objects, key: str, data: bytes) -> None:
    if root.get(key) != data:
        root.put(key, data)


def put_new_group(root: Objects, path: str, attributes: Mapping[str, Any] | None = None) -> bool:
    """`put_group` where there is none yet; False where there is one."""
    return root.put_new(*_group(path, attributes))


def _group(path: str, attributes: Mapping[str, Any] | None) -> tuple[str, bytes]:
    objects: dict[str, Any] = {}
    zarr.create_group(MemoryStore(objects), attributes=dict(attributes or {}))
    return f"{path}/zarr.json" if path else "zarr.json", _in_memory(objects, "zarr.json")


def shard_key(path: str, position: Sequence[int]) -> str:
    """Key of the shard at a place in the grid of shards.

    >>> shard_key("labels/membrane/0", (0, 1, 2))
    'labels/membrane/0/c/0/1/2'
    """
    return f"{path}/c/{'/'.join(str(p) for p in position)}"


def put_shard(root: Objects, path: str, codec: ShardCodec, position: Sequence[int], values: npt.NDArray[Any]) -> int:
    """Encode a shard and put it with one request.

    Returns:
        Bytes put.
    """
    return put_encoded(root, {shard_key(path, position): codec.encode(values)})


def put_encoded(root: Objects, encoded: Encoded) -> int:
    """Put shards in their order, each with one request.

    Returns:
        Bytes put.
    """
    for key, data in encoded.items():
        root.put(key, data)
    return sum(len(data) for data in encoded.values())


def present_shards(root: Objects, path: str, ending: str = "") -> Iterator[tuple[int, ...]]:
    """Places of the array's shards that exist with at least one byte, from one listing.

    A 0-byte shard would read as fill values without an error: it counts as absent. With the ending `DAMAGED`, places
    whose shard was set aside.
    """
    prefix = f"{path}/c/"
    for info in root.list(prefix):
        parts = info.key.removeprefix(prefix).removesuffix(ending).split("/")
        if info.size > 0 and info.key.endswith(ending) and all(part.isdigit() for part in parts):
            yield tuple(int(part) for part in parts)


def set_aside_damaged(
    root: Objects, path: str, spec: ArraySpec, positions: Iterable[Sequence[int]]
) -> list[tuple[int, ...]]:
    """Check size, index and data checksums of shards; rename what fails to ``*.damaged``.

    Returns:
        Places of the shards that failed; the next run makes exactly those again.
    """
    codec, damaged = ShardCodec(spec), list[tuple[int, ...]]()
    for position in positions:
        key = shard_key(path, position)
        data = root.get(key)
        try:
            codec.decode(data or b"")
        except ValueError:
            if data is not None:
                root.rename(key, key + DAMAGED)
            damaged.append(tuple(position))
    return damaged


def read_attributes(root: Objects, path: str = "") -> dict[str, Any] | None:
    """Attributes of the array or group at ``path``, or None where there is none.

    Raises:
        TargetError: its metadata is not zarr's.
    """
    document = read_document(root, path)
    return None if document is None else document.get("attributes", {})


def read_document(root: Objects, path: str = "") -> dict[str, Any] | None:
    """The whole zarr.json of the array or group at ``path``, or None where there is none.

    Raises:
        TargetError: it is not zarr metadata.
    """
    import json

    key = f"{path}/zarr.json" if path else "zarr.json"
    data = root.get(key)
    if data is None:
        return None
    try:
        document: dict[str, Any] = json.loads(data)
    except ValueError:
        document = {}
    if not isinstance(document, dict) or "zarr_format" not in document:
        raise TargetError(f"{root.url}/{key} is not zarr metadata; choose another path or remove it")
    return document
