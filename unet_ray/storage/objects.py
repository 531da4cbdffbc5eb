"""A folder of objects, on a disk or in an object store, written whole or not at all."""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

# What begins so is never listed: a killed process may leave it behind.
UNLISTED = ".put-"
PROBE = f"{UNLISTED}probe"


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What a listing tells of an object: its key below the root, bytes, and ETag or modification time."""

    key: str
    size: int
    version: str


class Objects(ABC):
    """Objects below one root, addressed by keys with ``/``.

    `put` is atomic: a reader sees the old object, the new one or none, never a part.
    """

    url: str

    @abstractmethod
    def put(self, key: str, data: bytes) -> None:
        """Write one object whole, durably.

        Raises:
            TargetError: the place cannot be written.
        """

    @abstractmethod
    def put_new(self, key: str, data: bytes) -> bool:
        """`put` where there is no object yet; of several who try at once, one succeeds.

        Returns:
            False where there is one: it stays as it is.
        """

    @abstractmethod
    def get(self, key: str) -> bytes | None:
        """The object's bytes, or None where there is none.

        Raises:
            VolumeError: the disk refuses, or the store does not answer, like `size` and `list`.
        """

    @abstractmethod
    def get_part(self, key: str, offset: int, length: int) -> bytes | None:
        """``length`` bytes of the object, or None where there is none; fewer where it is shorter.

        Args:
            key: of the object.
            offset: of the first byte; negative: from the end, with ``length`` no longer than that.
            length: at least 1.

        Raises:
            VolumeError: the disk refuses, or the store does not answer.
        """

    @abstractmethod
    def size(self, key: str) -> int | None:
        """The object's bytes, counted, or None where there is none."""

    @abstractmethod
    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Objects below ``prefix`` (a key that ends with ``/``, or nothing), in no promised order."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove an object; nothing happens where there is none."""

    @abstractmethod
    def rename(self, key: str, new_key: str) -> None:
        """Move an object; an object of the new key is replaced."""

    @abstractmethod
    def zarr_store(self) -> Any:
        """A zarr store of the same root, for reading what does not change: it may remember what it has read."""

    def free_bytes(self) -> int | None:
        """Bytes that can still be put, or None where nobody tells: an object store has no end."""
        return None

    def delete_all(self, prefix: str = "") -> None:
        """Remove every object below ``prefix``."""
        for info in list(self.list(prefix)):
            self.delete(info.key)

    def require_writable(self) -> None:
        """Write and remove a small object, so that a bad target shows before the work starts.

        Raises:
            TargetError: the place cannot be written.
        """
        self.put(PROBE, b"probe")
        self.delete(PROBE)


def absolute(path: str) -> str:
    """A path as every worker can use it, whatever its working directory; a URL as it is.

    >>> absolute("s3://bucket/volume.zarr/")
    's3://bucket/volume.zarr'
    """
    if "://" in path and not path.startswith("file://"):
        return path.rstrip("/")
    return os.path.abspath(path.removeprefix("file://"))
