"""Errors that are the user's to mend, and the exit code each one means.

Every message is one sentence: what was asked, what was found, what to do next.
`unet_ray.command` prints it on stderr without a traceback.
"""


class UnetRayError(Exception):
    """An end of the run that a user can understand; `exit_code` is the process's."""

    exit_code = 1


class InputError(UnetRayError):
    """The user's input is wrong: exit code 2."""

    exit_code = 2


class ConfigError(InputError):
    """A flag, a key of the YAML file or a value of one is wrong."""


class TileGridError(InputError):
    """Tiles, halo or patch sides do not fit the network or the volume."""


class VolumeError(InputError):
    """A volume is missing, not readable, damaged, or not an image of the kind asked for."""


class LabelError(InputError):
    """Labels do not fit their images or their label kind."""


class ModelFileError(InputError):
    """A model file is missing, damaged, not ours, or made for other data."""


class CacheMismatchError(InputError):
    """A patch cache was made with other inputs or another recipe."""


class OutputMismatchError(InputError):
    """An output or run directory belongs to another run."""


class TargetError(InputError):
    """A target cannot be written: no permission, no room, or something else is there."""


class SeamError(InputError):
    """Tile by tile is not whole: the seam probe is beyond tolerance."""


class TrainingDivergedError(UnetRayError):
    """The training loss is not a finite number any more."""
