"""A folder of objects, on a disk or in an object store, written whole or not at all."""

import contextlib
import errno
import os
import shutil
import tempfile
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from unet_ray.errors import InputError, TargetError, VolumeError
from unet_ray.storage import store_client

# What begins so is never listed: a killed process may leave it behind.
UNLISTED = ".put-"
PROBE = f"{UNLISTED}probe"
# What a store keeps beside an object of `put_new`, to tell who put it.
WRITER = "writer"
# A request has `store_client.REQUEST_SECONDS`; what is larger goes in parts, each by a request of its own.
LARGEST_SINGLE_PUT = 64 << 20
PART_BYTES = 16 << 20
PARTS_AT_ONCE = 4

Answer = TypeVar("Answer")


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


def open_objects(url: str) -> Objects:
    """The folder at a local path or at an ``s3://``, ``gs://`` or ``az://`` URL."""
    place = absolute(url)
    return RemoteObjects(place) if "://" in place else LocalObjects(Path(place))


class LocalObjects(Objects):
    """Objects as files below a folder, which need not exist yet."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.url = str(self.root)

    def put(self, key: str, data: bytes) -> None:
        """Temporary file, fsync, rename, fsync of the folder: whole or absent after a power cut."""
        self._put(key, data, os.replace)

    def put_new(self, key: str, data: bytes) -> bool:
        try:
            self._put(key, data, _move_new)
        except TargetError as error:
            if isinstance(error.__cause__, FileExistsError) and self.size(key) is not None:
                return False
            raise
        return True

    def _put(self, key: str, data: bytes, move: Callable[[str, Path], None]) -> None:
        path = self.root / key
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(prefix=UNLISTED, dir=path.parent)
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fchmod(handle, 0o644)
                    os.fsync(handle)
                move(temporary, path)
            finally:
                Path(temporary).unlink(missing_ok=True)
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            raise TargetError(_why_unwritable(self.root, error)) from error

    def get(self, key: str) -> bytes | None:
        try:
            return (self.root / key).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise _unreadable(self.root / key, error) from error

    def get_part(self, key: str, offset: int, length: int) -> bytes | None:
        try:
            number = os.open(os.path.join(self.root, key), os.O_RDONLY)
            try:
                start = offset if offset >= 0 else max(0, os.fstat(number).st_size + offset)
                return os.pread(number, length, start)
            finally:
                os.close(number)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise _unreadable(self.root / key, error) from error

    def size(self, key: str) -> int | None:
        try:
            return (self.root / key).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise _unreadable(self.root / key, error) from error

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        def refuse(error: OSError) -> None:
            # What may not be entered would look empty.
            if not isinstance(error, FileNotFoundError | NotADirectoryError):
                raise _unreadable(error.filename, error) from error

        for folder, _, names in os.walk(self.root / prefix, onerror=refuse):
            for name in names:
                if name.startswith(UNLISTED):
                    continue
                path = os.path.join(folder, name)
                try:
                    status = os.stat(path)
                except FileNotFoundError:
                    continue
                except OSError as error:
                    raise _unreadable(path, error) from error
                key = os.path.relpath(path, self.root).replace(os.sep, "/")
                yield ObjectInfo(key, status.st_size, str(status.st_mtime_ns))

    def delete(self, key: str) -> None:
        try:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                (self.root / key).unlink()
        except OSError as error:
            raise TargetError(_why_unwritable(self.root, error)) from error

    def rename(self, key: str, new_key: str) -> None:
        try:
            os.replace(self.root / key, self.root / new_key)
        except OSError as error:
            raise TargetError(_why_unwritable(self.root, error)) from error

    def zarr_store(self) -> Any:
        from zarr.storage import LocalStore

        return LocalStore(self.root)

    def free_bytes(self) -> int | None:
        """Of the disk, for this user; a quota is not seen."""
        there = next(folder for folder in (self.root, *self.root.parents) if folder.is_dir())
        return shutil.disk_usage(there).free


def _move_new(temporary: str, path: Path) -> None:
    """Unlike a rename, a hard link refuses a name that is there."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without links; here two jobs that start in the same moment can miss each other
        if path.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        os.replace(temporary, path)


def is_full(error: BaseException) -> bool:
    """Whether an object could not be put because the disk, or what this user may have of it, is full."""
    why = error.__cause__
    return isinstance(error, TargetError) and isinstance(why, OSError) and why.errno in (errno.ENOSPC, errno.EDQUOT)


def _unreadable(path: Path | str, error: OSError) -> VolumeError:
    why = f"{path} cannot be read ({error.strerror or error})"
    return VolumeError(f"{why}; check the disk and who may read from it")


def _why_unwritable(root: Path, error: OSError) -> str:
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            remedy = "free some room and run the same command again; what is complete stays complete"
        case errno.EACCES | errno.EPERM | errno.EROFS:
            remedy = "choose a folder that you may write"
        case errno.ENOTDIR | errno.EEXIST:
            remedy = "a file is where a folder is needed; choose another path"
        case _:
            remedy = "choose another path or mend the disk"
    return f"{root} cannot be written ({error.strerror or error}); {remedy}"


class RemoteObjects(Objects):
    """Objects in a bucket, through obstore; endpoint and credentials come from the environment.

    A store that is slow, breaks connections or answers 5xx is asked again, see `store_client`.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._store: tuple[float, Any] | None = None

    def __reduce__(self) -> tuple[type["RemoteObjects"], tuple[str]]:
        return RemoteObjects, (self.url,)

    @property
    def _objects(self) -> Any:
        patience = store_client.patience_seconds(self.url)
        if self._store is None or self._store[0] != patience:
            self._store = patience, store_client.open_store(self.url)
        return self._store[1]

    def _ask(self, kind: type[InputError], done: str, request: Callable[[Any], Answer]) -> Answer:
        """What the store answers; what it refused, in one sentence. A request must be safe to repeat."""
        from obstore.exceptions import BaseError

        try:
            return store_client.ask(self.url, lambda: request(self._objects))
        except (BaseError, ValueError, OSError) as error:
            raise kind(store_client.refusal(f"{self.url} cannot be {done}", error)) from error

    def _find(self, request: Callable[[Any], Answer]) -> Answer | None:
        """What is read of an object, or None where there is none."""

        def find(store: Any) -> Answer | None:
            try:
                return request(store)
            except FileNotFoundError:
                return None

        return self._ask(VolumeError, "read", find)

    def put(self, key: str, data: bytes) -> None:
        import obstore

        def put(store: Any) -> None:
            # In one piece as far as the time for a request lets it: parts take two requests more.
            obstore.put(
                store, key, data, use_multipart=len(data) > LARGEST_SINGLE_PUT, chunk_size=PART_BYTES,
                max_concurrency=PARTS_AT_ONCE,
            )  # fmt: skip

        self._ask(TargetError, "written", put)

    def put_new(self, key: str, data: bytes) -> bool:
        import obstore
        from obstore.exceptions import AlreadyExistsError

        # An answer may get lost: whether the object that is there is this one is told by its writer.
        writer = uuid.uuid4().hex

        def put_new(store: Any) -> bool:
            try:
                obstore.put(store, key, data, mode="create", use_multipart=False, attributes={WRITER: writer})
            except (AlreadyExistsError, FileExistsError):
                there = obstore.get(store, key, options={"head": True})
                return there.attributes.get(WRITER) == writer
            return True

        return self._ask(TargetError, "written", put_new)

    def get(self, key: str) -> bytes | None:
        import obstore

        return self._find(lambda store: bytes(obstore.get(store, key).bytes()))

    def get_part(self, key: str, offset: int, length: int) -> bytes | None:
        import obstore
        from obstore.exceptions import BaseError

        def get_part(store: Any) -> bytes:
            try:
                if offset >= 0:
                    return bytes(obstore.get_range(store, key, start=offset, length=length))
                return bytes(obstore.get(store, key, options={"range": {"suffix": -offset}}).bytes())[:length]
            except BaseError as error:
                # A range outside the object is refused, in words that differ between stores.
                if not store_client.is_away(error) and obstore.head(store, key)["size"] < max(offset + length, -offset):
                    return b""
                raise

        return self._find(get_part)

    def size(self, key: str) -> int | None:
        import obstore

        return self._find(lambda store: int(obstore.head(store, key)["size"]))

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        import obstore

        listing: Iterator[Any] | None = None
        last, in_order = "", True

        def more(store: Any) -> Any:
            """The next entries; after a failure, which ends a listing, those of a new one from the last key on."""
            nonlocal listing
            if listing is None:
                listing = iter(obstore.list(store, prefix=prefix or None, offset=last or None))
            try:
                return next(listing, None)
            except Exception:
                if in_order:
                    listing = None
                raise

        while entries := self._ask(VolumeError, "listed", more):
            for entry in entries:
                # Not every store sorts; one that does not has no place to go on from.
                in_order, last = in_order and entry["path"] > last, entry["path"]
                version = entry.get("e_tag") or entry["last_modified"].isoformat()
                if not entry["path"].rpartition("/")[2].startswith(UNLISTED):
                    yield ObjectInfo(entry["path"], entry["size"], version)

    def delete(self, key: str) -> None:
        import obstore

        # Deleting what is not there is no error on S3 but one elsewhere.
        def delete(store: Any) -> None:
            with contextlib.suppress(FileNotFoundError):
                obstore.delete(store, key)

        self._ask(TargetError, "written", delete)

    def rename(self, key: str, new_key: str) -> None:
        import obstore

        # In two steps: each can be repeated, both together cannot.
        self._ask(TargetError, "written", lambda store: obstore.copy(store, key, new_key))
        self.delete(key)

    def zarr_store(self) -> Any:
        from unet_ray.storage.remembering_store import RememberingStore

        return RememberingStore(self._objects)
