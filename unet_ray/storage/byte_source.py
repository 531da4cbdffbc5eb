"""Byte ranges of one file, local or in an object store."""

import io
import os
import threading
from collections.abc import Callable
from typing import Any, BinaryIO, Protocol, TypeVar, cast

from unet_ray.errors import VolumeError
from unet_ray.storage import store_client

Answer = TypeVar("Answer")

READ_AHEAD = 64 << 10


class ByteSource(Protocol):
    """Read-only bytes at a place; pickles as the place, reads from several threads."""

    @property
    def size(self) -> int:
        """Length in bytes."""
        ...

    @property
    def version(self) -> str:
        """Changes when the bytes are replaced: mtime in ns, or the store's ETag."""
        ...

    def read_at(self, offset: int, length: int) -> bytes:
        """``length`` bytes from ``offset``; fewer where the file ends."""
        ...


class LocalFile:
    """A file on this machine or a mounted one."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._file: BinaryIO | None = None
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type["LocalFile"], tuple[str]]:
        return LocalFile, (self.path,)

    @property
    def size(self) -> int:
        return os.stat(self.path).st_size

    @property
    def version(self) -> str:
        return str(os.stat(self.path).st_mtime_ns)

    def read_at(self, offset: int, length: int) -> bytes:
        with self._lock:
            if self._file is None:
                self._file = open(self.path, "rb", buffering=0)  # noqa: SIM115  closed with the object
            number = self._file.fileno()
        parts = []
        # One pread gives at most 2 GiB.
        while length > 0 and (part := os.pread(number, min(length, 1 << 30), offset)):
            parts.append(part)
            offset, length = offset + len(part), length - len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)


class ObjectFile:
    """An object behind a URL that obstore knows (s3://, gs://, az://, file://).

    Credentials and endpoint come from the environment's usual variables.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._opened: tuple[Any, str, dict[str, Any]] | None = None

    def __reduce__(self) -> tuple[type["ObjectFile"], tuple[str]]:
        return ObjectFile, (self.url,)

    def _object(self) -> tuple[Any, str, dict[str, Any]]:
        if self._opened is None:
            import obstore

            folder, _, name = self.url.rpartition("/")

            def opened() -> tuple[Any, str, dict[str, Any]]:
                store = store_client.open_store(folder)
                return store, name, dict(obstore.head(store, name))

            self._opened = self._ask("opened", opened)
        return self._opened

    def _ask(self, done: str, request: Callable[[], Answer]) -> Answer:
        from obstore.exceptions import BaseError

        try:
            return store_client.ask(self.url, request)
        except FileNotFoundError as error:
            raise VolumeError(f"cannot find {self.url}; check bucket and key") from error
        except (BaseError, ValueError, OSError) as error:
            raise VolumeError(store_client.refusal(f"{self.url} cannot be {done}", error)) from error

    @property
    def size(self) -> int:
        return int(self._object()[2]["size"])

    @property
    def version(self) -> str:
        meta = self._object()[2]
        return str(meta.get("e_tag") or meta["last_modified"])

    def read_at(self, offset: int, length: int) -> bytes:
        import obstore

        store, name, meta = self._object()
        length = min(length, int(meta["size"]) - offset)
        if length <= 0:
            return b""
        return self._ask("read", lambda: bytes(obstore.get_range(store, name, start=offset, length=length)))


def open_bytes(where: str) -> ByteSource:
    """The bytes of a local path or of a URL; nothing is read yet."""
    return ObjectFile(where) if "://" in where else LocalFile(where)


class _RangeReader(io.RawIOBase):
    """A ByteSource as a raw file."""

    def __init__(self, source: ByteSource) -> None:
        self._source = source
        self._size = source.size
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        data = self._source.read_at(self._at, len(buffer))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def as_file(source: ByteSource) -> BinaryIO:
    """A buffered file object over ``source``, for libraries that want one; one thread at a time."""
    return cast(BinaryIO, io.BufferedReader(_RangeReader(source), READ_AHEAD))
