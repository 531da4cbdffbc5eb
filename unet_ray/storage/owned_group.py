"""A zarr group that is ours alone: its root's metadata claims the place and says what made it."""

from typing import Any, ClassVar, Self

from unet_ray.errors import InputError, OutputMismatchError
from unet_ray.storage.objects import Objects, absolute
from unet_ray.storage.open_objects import open_objects
from unet_ray.storage.shards import read_document

ROOT = "zarr.json"


class OwnedGroup:
    """A group at a local path or URL; pickles as its path, so that each worker opens its own.

    Attributes:
        noun: what errors call it.
        attribute: key of what it says of itself, in the root's attributes.
        foreign_error: raised where something else is at the path.
    """

    noun: ClassVar[str]
    attribute: ClassVar[str]
    foreign_error: ClassVar[type[InputError]] = OutputMismatchError

    def __init__(self, path: str) -> None:
        self.path = absolute(path)
        self.objects: Objects = open_objects(path)

    def __reduce__(self) -> tuple[type[Self], tuple[str]]:
        return type(self), (self.path,)

    def attributes(self) -> dict[str, Any] | None:
        """What the group says of itself, or None where there is nothing.

        Raises:
            InputError: something else is at the path; `foreign_error`.
        """
        document = read_document(self.objects)
        if document is None:
            foreign = next(iter(self.objects.list()), None)
            if foreign is not None:
                raise self.foreign_error(
                    f"{self.path} is not a {self.noun} (it holds {foreign.key}); choose a new path or that of a "
                    f"{self.noun}"
                )
            return None
        found = document.get("attributes", {}).get(self.attribute)
        if not isinstance(found, dict):
            raise self.foreign_error(f"{self.path} is zarr but not a {self.noun} of ours; choose another path")
        return found

    def overwrite(self) -> None:
        """Remove the group, if there is one.

        Raises:
            InputError: something else is at the path.
        """
        if self.attributes() is not None:
            remove_group(self.objects)


def remove_group(objects: Objects) -> None:
    """Remove a group; its root goes last, so that what is left is still known."""
    for info in list(objects.list()):
        if info.key != ROOT:
            objects.delete(info.key)
    objects.delete(ROOT)
