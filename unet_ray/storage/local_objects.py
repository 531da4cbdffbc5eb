"""A folder of objects on a disk."""

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from unet_ray.errors import TargetError, VolumeError
from unet_ray.storage.objects import UNLISTED, ObjectInfo, Objects
from unet_ray.storage.plain_file import plain


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
            with open(self.root / key, "rb", opener=plain) as file:
                return file.read()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise _unreadable(self.root / key, error) from error

    def get_part(self, key: str, offset: int, length: int) -> bytes | None:
        try:
            number = plain(os.path.join(self.root, key), os.O_RDONLY)
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
        from unet_ray.storage.plain_store import PlainStore  # loads zarr

        return PlainStore(self.root)

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
