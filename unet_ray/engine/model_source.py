"""Model files at paths and URLs."""

from unet_ray.errors import ModelFileError, VolumeError
from unet_ray.storage.open_objects import open_objects


def read_model_file(path: str) -> bytes:
    """The bytes of a model file at a path or URL.

    Raises:
        ModelFileError: there is none.
        VolumeError: it cannot be read.
    """
    folder, slash, name = path.rstrip("/").rpartition("/")
    try:
        data = open_objects(folder or slash or ".").get(name)
    except VolumeError as error:
        if isinstance(error.__cause__, IsADirectoryError):
            raise ModelFileError(f"{path} is a folder; give the model.safetensors in it") from None
        raise
    if data is None:
        raise ModelFileError(f"there is no model file at {path}; give the model.safetensors of a training run")
    return data
