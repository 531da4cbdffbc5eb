"""A folder of objects, on a disk or in an object store, written whole or not at all."""

import contextlib
import errno
import os
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unet_ray.errors import InputError, TargetError, VolumeError
from unet_ray.storage.failure import reason

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
            VolumeError: the store does not answer, like `size` and `list`.
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
        """A zarr store of the same root, for reading."""

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
            why = f"{self.root / key} cannot be read ({error.strerror or error})"
            raise VolumeError(f"{why}; check the disk and who may read from it") from error

    def size(self, key: str) -> int | None:
        try:
            return (self.root / key).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return None

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        for folder, _, names in os.walk(self.root / prefix):
            for name in names:
                if name.startswith(UNLISTED):
                    continue
                path = os.path.join(folder, name)
                try:
                    status = os.stat(path)
                except FileNotFoundError:
                    continue
                key = os.path.relpath(path, self.root).replace(os.sep, "/")
                yield ObjectInfo(key, status.st_size, str(status.st_mtime_ns))

    def delete(self, key: str) -> None:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            (self.root / key).unlink()

    def rename(self, key: str, new_key: str) -> None:
        os.replace(self.root / key, self.root / new_key)

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
    """Objects in a bucket, through obstore; endpoint and credentials come from the environment."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._store: Any = None

    def __reduce__(self) -> tuple[type["RemoteObjects"], tuple[str]]:
        return RemoteObjects, (self.url,)

    @property
    def _objects(self) -> Any:
        if self._store is None:
            from obstore.store import from_url

            options: dict[str, Any] = {}
            # A loopback or private endpoint speaks plain HTTP, which obstore refuses unless told.
            if os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://"):
                options["client_options"] = {"allow_http": True}
            self._store = from_url(self.url, **options)
        return self._store

    @contextlib.contextmanager
    def _answering(self, kind: type[InputError], done: str) -> Iterator[None]:
        """Say what the store refused in one sentence."""
        from obstore.exceptions import BaseError

        try:
            yield
        except (BaseError, OSError) as error:
            why = f"{self.url} cannot be {done} ({reason(error)})"
            raise kind(f"{why}; check bucket, endpoint and credentials") from error

    def put(self, key: str, data: bytes) -> None:
        import obstore

        with self._answering(TargetError, "written"):
            obstore.put(self._objects, key, data)

    def put_new(self, key: str, data: bytes) -> bool:
        import obstore
        from obstore.exceptions import AlreadyExistsError

        with self._answering(TargetError, "written"):
            try:
                obstore.put(self._objects, key, data, mode="create", use_multipart=False)
            except (AlreadyExistsError, FileExistsError):
                return False
        return True

    def get(self, key: str) -> bytes | None:
        import obstore

        with self._answering(VolumeError, "read"):
            try:
                return bytes(obstore.get(self._objects, key).bytes())
            except FileNotFoundError:
                return None

    def get_part(self, key: str, offset: int, length: int) -> bytes | None:
        import obstore
        from obstore.exceptions import BaseError

        with self._answering(VolumeError, "read"):
            try:
                if offset >= 0:
                    return bytes(obstore.get_range(self._objects, key, start=offset, length=length))
                return bytes(obstore.get(self._objects, key, options={"range": {"suffix": -offset}}).bytes())[:length]
            except FileNotFoundError:
                return None
            except BaseError:
                # A range outside the object is refused, in words that differ between stores.
                size = self.size(key)
                if size is not None and size < max(offset + length, -offset):
                    return b""
                raise

    def size(self, key: str) -> int | None:
        import obstore

        with self._answering(VolumeError, "read"):
            try:
                return int(obstore.head(self._objects, key)["size"])
            except FileNotFoundError:
                return None

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        import obstore

        with self._answering(VolumeError, "listed"):
            for batch in obstore.list(self._objects, prefix=prefix or None):
                for entry in batch:
                    version = entry.get("e_tag") or entry["last_modified"].isoformat()
                    if not entry["path"].rpartition("/")[2].startswith(UNLISTED):
                        yield ObjectInfo(entry["path"], entry["size"], version)

    def delete(self, key: str) -> None:
        import obstore

        # Deleting what is not there is no error on S3 but one elsewhere.
        with self._answering(TargetError, "written"), contextlib.suppress(FileNotFoundError):
            obstore.delete(self._objects, key)

    def rename(self, key: str, new_key: str) -> None:
        import obstore

        with self._answering(TargetError, "written"):
            obstore.rename(self._objects, key, new_key)

    def zarr_store(self) -> Any:
        from zarr.storage import ObjectStore

        return ObjectStore(self._objects, read_only=True)
