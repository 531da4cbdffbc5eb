"""A folder of objects in an object store."""

import contextlib
import uuid
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from unet_ray.errors import InputError, TargetError, VolumeError
from unet_ray.storage import store_client
from unet_ray.storage.objects import UNLISTED, ObjectInfo, Objects

# What a store keeps beside an object of `put_new`, to tell who put it.
WRITER = "writer"
# A request has `store_client.REQUEST_SECONDS`; what is larger goes in parts, each by a request of its own.
LARGEST_SINGLE_PUT = 64 << 20
PART_BYTES = 16 << 20
PARTS_AT_ONCE = 4

Answer = TypeVar("Answer")


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
