"""zarr as a viewer asks for it, key by key: a stored group as it is, or any volume made into one on the fly."""

import os
import re
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import zarr
from zarr.storage import MemoryStore

from unet_ray.geometry.box import Box, triple
from unet_ray.storage.objects import absolute
from unet_ray.storage.ome_image import AXES, ome_image
from unet_ray.storage.open_objects import open_objects
from unet_ray.storage.volume import Volume

CHUNK_SIDE_PX = 512
_CHUNK_FOLDER = "0/c/"
_NUMBER = re.compile(r"[0-9]{1,12}")
# Names with a leading point that zarr v2 has; no other such file is part of a group.
_POINT_NAMES = frozenset({".zarray", ".zattrs", ".zgroup", ".zmetadata"})


class ServedZarr(Protocol):
    """A zarr group by its keys; no key leads out of it."""

    def size(self, key: str) -> int | None:
        """Bytes of the object, or None where there is none."""

    def get_part(self, key: str, offset: int, length: int) -> bytes | None:
        """``length`` bytes from ``offset`` on, fewer at the end; None where there is no object.

        Raises:
            VolumeError: it cannot be read.
        """


def is_safe_key(key: str) -> bool:
    r"""Whether a key names something below its root, and nothing hidden.

    >>> [is_safe_key(key) for key in ("0/c/1/2", "a/.zarray", "../a", "a//b", "", "a\\..\\b", ".git/config")]
    [True, True, False, False, False, False, False]
    """
    if "\\" in key or "\0" in key:
        return False
    return all(part and (part[0] != "." or part in _POINT_NAMES) for part in key.split("/"))


class StoredZarr:
    """A group on a disk or in an object store, byte for byte."""

    def __init__(self, path: str) -> None:
        self._objects = open_objects(path)
        place = absolute(path)
        # What symbolic links lead to must lie in the group, too; object stores have none.
        self._folder = None if "://" in place else os.path.realpath(place)

    def size(self, key: str) -> int | None:
        return self._objects.size(key) if self._is_inside(key) else None

    def get_part(self, key: str, offset: int, length: int) -> bytes | None:
        return self._objects.get_part(key, offset, length) if self._is_inside(key) else None

    def _is_inside(self, key: str) -> bool:
        if not is_safe_key(key):
            return False
        if self._folder is None:
            return True
        real = os.path.realpath(os.path.join(self._folder, key))
        return real.startswith(f"{self._folder}{os.sep}") and os.path.isfile(real)


class VirtualZarr:
    """A volume as an OME-Zarr 0.5 image of one level whose uncompressed chunks are read when they are asked for.

    Voxels come as stored, except that viewers show neither bool nor floats of other than 32 bits: those become
    uint8 and float32.

    Args:
        volume: of any format.
        voxel_size_nm: (z, y, x); None: unknown.
    """

    def __init__(self, volume: Volume, voxel_size_nm: tuple[float, float, float] | None) -> None:
        self._volume = volume
        self._voxel_size_nm = voxel_size_nm
        side = CHUNK_SIDE_PX
        self._chunk = (1, min(side, volume.shape[1]), min(side, volume.shape[2]))
        self._dtype = _shown_dtype(volume.dtype)

    def size(self, key: str) -> int | None:
        if key in self._metadata:
            return len(self._metadata[key])
        return None if self._box(key) is None else int(np.prod(self._chunk)) * self._dtype.itemsize

    def get_part(self, key: str, offset: int, length: int) -> bytes | None:
        data = self._metadata.get(key)
        box = self._box(key) if data is None else None
        if box is not None:
            voxels = self._volume.read(box)
            # Chunks at the border have the sides of the others.
            whole = np.zeros(self._chunk, self._dtype)
            whole[tuple(slice(0, n) for n in voxels.shape)] = voxels
            data = whole.tobytes()
        return None if data is None else data[offset : offset + length]

    def _box(self, key: str) -> Box | None:
        """Voxels of the chunk at a key, clipped to the volume; None where the key is no chunk's."""
        parts = key.removeprefix(_CHUNK_FOLDER).split("/")
        if not key.startswith(_CHUNK_FOLDER) or len(parts) != 3 or not all(map(_NUMBER.fullmatch, parts)):
            return None
        start = triple([int(p) * n for p, n in zip(parts, self._chunk, strict=True)])
        if any(a >= n for a, n in zip(start, self._volume.shape, strict=True)):
            return None
        return Box.of_shape(self._chunk, start).intersect(Box.of_shape(self._volume.shape))

    @cached_property
    def _metadata(self) -> dict[str, bytes]:
        """What zarr itself writes for such a group."""
        objects: dict[str, Any] = {}
        image = ome_image("raw", [(1, 1, 1)], self._voxel_size_nm, dtype=self._dtype.name)
        group = zarr.create_group(MemoryStore(objects), attributes={"ome": image})
        group.create_array(
            "0",
            shape=self._volume.shape,
            chunks=self._chunk,
            dtype=self._dtype,
            compressors=None,
            fill_value=0,
            dimension_names=AXES,
        )
        return {key: value.to_bytes() for key, value in objects.items()}


def _shown_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Little-endian dtype that viewers show for voxels of ``dtype``."""
    shown = np.dtype(np.uint8) if dtype.kind == "b" else np.dtype(np.float32) if dtype.kind == "f" else dtype
    return shown.newbyteorder("<")
