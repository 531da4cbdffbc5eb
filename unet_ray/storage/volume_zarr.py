"""zarr arrays and OME-Zarr groups as volumes."""

import asyncio
import contextlib
import difflib
import hashlib
import json
import threading
import warnings
from collections.abc import Callable
from typing import Any, Literal, TypeVar

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.core.sync import sync

from unet_ray.errors import VolumeError
from unet_ray.geometry.box import Box
from unet_ray.storage import store_client
from unet_ray.storage.failure import reason
from unet_ray.storage.ome_metadata import Level, find_level
from unet_ray.storage.open_objects import open_objects
from unet_ray.storage.volume import Volume

_NAMES_SHOWN = 8
# Far more than a refusal takes; a store that stays silent has been waited for already.
_SETTLE_SECONDS = 5.0

Node = TypeVar("Node")


def open_zarr(path: str, where: str, array: str | None, channel: int | None = None) -> Volume:
    """A zarr array, or one array of a group: ``array``, or the highest resolution of an OME-Zarr group.

    Args:
        path: how errors name it.
        where: local folder or URL.
        array: key below ``where``.
        channel: which of several channels, where the array has one axis before z y x.

    Raises:
        VolumeError: no zarr there, no such array, no multiscales to choose from, or axes
            that are not sections of one channel and time.
    """
    node = _open_node(path, where)
    _refuse_programs(path, node)
    level: Level | None = None
    if isinstance(node, zarr.Group):
        level = find_level(path, dict(node.attrs), array)
        key = array if level is None else level.array
        if key is None and "bioformats2raw.layout" in node.attrs:
            # bioformats2raw puts its images into groups 0, 1, ...
            return open_zarr(path, f"{where.rstrip('/')}/0", None, channel)
        if key is None:
            raise VolumeError(
                f"{path} is a zarr group without multiscales, so it does not tell which array is meant; "
                f"name one: {_names(node)}"
            )
        group = node
        array_node = _opening(f"{path.rstrip('/')}/{key}", where, lambda: group.get(key.strip("/")))
        if not isinstance(array_node, zarr.Array):
            raise VolumeError(f"{path} has no array {key}; {_suggest(node, key)}")
        where = f"{where.rstrip('/')}/{key.strip('/')}"
        path = f"{path.rstrip('/')}/{key.strip('/')}"
        node = array_node
        _refuse_programs(path, node)
    elif array is not None:
        raise VolumeError(f"array {array} is asked for, but {path} is itself an array; leave the array out")
    return ZarrVolume(path, where, node, level, channel)


def group_attributes(where: str) -> dict[str, Any]:
    """Attributes of the group at a place; none where there is no group.

    Raises:
        VolumeError: its store does not answer, or refuses.
    """

    def request() -> dict[str, Any]:
        try:
            return dict(zarr.open_group(open_objects(where).zarr_store(), mode="r").attrs)
        except (FileNotFoundError, ValueError):  # ValueError: an array, or what is damaged
            return {}

    return _opening(where, where, request)


class ZarrVolume(Volume):
    """A zarr array of two or three axes, or more where the leading ones have one entry or a channel is named.

    See `open_zarr`.
    """

    def __init__(
        self, path: str, where: str, array: "zarr.Array[Any]", level: Level | None, channel: int | None = None
    ) -> None:
        self.path = path
        self.where = where
        shape, names = tuple(array.shape), None if level is None else level.axes
        if names is not None and len(names) != len(shape):
            raise VolumeError(
                f"{path} has {len(shape)} axes but its multiscales names {len(names)} ({' '.join(names)}); "
                "mend the metadata"
            )
        # A leading "z" is a section axis, even of one entry.
        leading = max(0, len(shape) - 3) if names is None else sum(name not in ("z", "y", "x") for name in names)
        spatial = shape[leading:]
        self._channel = channel
        self._leading = (0,) * leading if channel is None else (channel,)
        if channel is not None and (leading != 1 or channel >= shape[0]):
            raise VolumeError(f"{path} has shape {shape} and no channel {channel}; name one of a channel axis before z")
        if len(spatial) < 2 or (channel is None and any(n != 1 for n in shape[:leading])):
            axes = "" if names is None else f" (axes {' '.join(names)})"
            raise VolumeError(
                f"{path} has shape {shape}{axes}; give a 2-D or 3-D array, or one channel and time of it as an array"
            )
        self.shape = (1, *spatial) if len(spatial) == 2 else spatial  # type: ignore[assignment]
        self._flat = len(spatial) == 2
        if not isinstance(array.dtype, np.dtype):
            raise VolumeError(f"{path} has {array.dtype} voxels; convert it to whole or real numbers")
        self.dtype = array.dtype.newbyteorder("=")
        self.voxel_size_nm = None if level is None else level.voxel_size_nm
        self.pixel_size_nm = None if level is None else level.pixel_size_nm
        self._format = array.metadata.zarr_format
        self._array: zarr.Array[Any] | None = array
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_lock"} | {"_array": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def identity(self) -> dict[str, object]:
        """The array's metadata and a hash of the sorted listing (key, size, mtime or ETag)."""
        array = self._opened()
        metadata = json.dumps(array.metadata.to_dict(), sort_keys=True, default=str)
        listing = hashlib.sha256()
        for info in sorted(open_objects(self.where).list(), key=lambda info: info.key):
            listing.update(f"{info.key}\0{info.size}\0{info.version}\n".encode())
        return {
            "format": "zarr",
            "shape": list(self.shape),
            "dtype": self.dtype.str,
            "metadata": hashlib.sha256(metadata.encode()).hexdigest(),
            "listing": listing.hexdigest(),
            **({} if self._channel is None else {"channel": self._channel}),
        }

    def _read_inside(self, box: Box) -> NDArray[Any]:
        spatial = box.slices[1:] if self._flat else box.slices
        try:
            block = _ask(self.where, lambda: self._opened()[self._leading + spatial])
        # zarr hands on whatever its codecs and stores raise.
        except Exception as error:
            last = box.stop[0] - 1
            if store_client.is_away(error):
                raise VolumeError(store_client.refusal(f"{self.path} cannot be read", error)) from error
            raise VolumeError(
                f"sections {box.start[0]} to {last} of {self.path} cannot be read ({reason(error)}); "
                "a chunk is damaged: mend or copy it again"
            ) from error
        return np.asarray(block, self.dtype).reshape(box.shape)

    def _opened(self) -> "zarr.Array[Any]":
        with self._lock:
            if self._array is None:
                node = _open_node(self.path, self.where, self._format)
                if not isinstance(node, zarr.Array):
                    raise VolumeError(f"{self.path} is not an array any more; run again")
                self._array = node
            return self._array


def _open_node(path: str, where: str, version: Literal[2, 3] | None = None) -> "zarr.Array[Any] | zarr.Group":
    """What is there; where its version of zarr is known, the other's names are not asked for."""
    return _opening(path, where, lambda: zarr.open(open_objects(where).zarr_store(), mode="r", zarr_format=version))


def _ask(where: str, request: Callable[[], Node]) -> Node:
    """What zarr returns, as `store_client.ask` has it.

    zarr asks for several names or chunks at once, and fails with the first. What the others come to is waited for: an
    answer that finds Python at its end, with zarr's event loop closed, would come out as a traceback.
    """
    try:
        return store_client.ask(where, request)
    except Exception:
        with contextlib.suppress(Exception):
            sync(_others_end())
        raise


async def _others_end() -> None:
    current = asyncio.current_task()
    if others := [task for task in asyncio.all_tasks() if task is not current]:
        await asyncio.wait(others, timeout=_SETTLE_SECONDS)


def _opening(path: str, where: str, request: Callable[[], Node]) -> Node:
    try:
        return _ask(where, request)
    except FileNotFoundError as error:
        raise VolumeError(f"cannot find a zarr array or group at {path}; check the path") from error
    # Metadata that is no JSON, of an unknown version or codec, a store that does not answer.
    except Exception as error:
        if store_client.is_away(error):
            raise VolumeError(store_client.refusal(f"{path} cannot be read", error)) from error
        if "pickle" in str(error):
            raise _holds_programs(path) from error
        raise VolumeError(
            f"cannot open the zarr {path} ({store_client.why(error)}); check its metadata and the address"
        ) from error


def _refuse_programs(path: str, node: "zarr.Array[Any] | zarr.Group") -> None:
    """Refuse a codec that runs what its maker has put into the chunks; zarr knows one, and no dtype of ours has it."""
    if isinstance(node, zarr.Array):
        # Attributes are the user's words, and run nothing.
        said = {key: value for key, value in node.metadata.to_dict().items() if key != "attributes"}
        if "pickle" in json.dumps(said, default=str):
            raise _holds_programs(path)


def _holds_programs(path: str) -> VolumeError:
    return VolumeError(
        f"{path} is stored with pickle, which runs whatever program is in it; have it stored with another codec"
    )


def _arrays(group: zarr.Group) -> list[str]:
    with warnings.catch_warnings():
        # zarr warns of each file beside them, as of a patch cache's contact sheet.
        warnings.simplefilter("ignore")
        return sorted(name for name, node in group.members(max_depth=None) if isinstance(node, zarr.Array))


def _names(group: zarr.Group) -> str:
    names = _arrays(group)
    if not names:
        return "it holds no arrays at all"
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(names[:_NAMES_SHOWN]) + more


def _suggest(group: zarr.Group, key: str) -> str:
    near = difflib.get_close_matches(key, _arrays(group), n=1, cutoff=0.4)
    return f"did you mean {near[0]}?" if near else f"there are: {_names(group)}"
