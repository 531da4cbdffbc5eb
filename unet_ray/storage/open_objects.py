"""Where objects are: on a disk or in an object store."""

from pathlib import Path

from unet_ray.storage.local_objects import LocalObjects
from unet_ray.storage.objects import Objects, absolute
from unet_ray.storage.remote_objects import RemoteObjects


def open_objects(url: str) -> Objects:
    """The folder at a local path or at an ``s3://``, ``gs://`` or ``az://`` URL."""
    place = absolute(url)
    return RemoteObjects(place) if "://" in place else LocalObjects(Path(place))
