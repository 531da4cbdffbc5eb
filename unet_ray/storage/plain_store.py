"""A zarr store on a disk in which a pipe or a device is refused instead of waited for."""

from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import LocalStore

from unet_ray.storage.plain_file import require_plain


class PlainStore(LocalStore):
    """A local store for reading whose objects are files."""

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Bytes of an object, or of a range of it; None where there is none.

        Raises:
            VolumeError: it is a pipe, a socket or a device.
        """
        # Nobody can end a thread that waits for a pipe's writer.
        require_plain(self.root / key)
        return await super().get(key, prototype, byte_range)
