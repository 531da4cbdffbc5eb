"""What every settings object is: frozen, checked, and without unknown keys."""

import os
import re
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

_Nanometres = Annotated[float, Field(gt=0)]
VoxelSize = tuple[_Nanometres, _Nanometres, _Nanometres]
"""(z, y, x) in nm."""

# s3:/bucket and s3:bucket would be folders here; of one letter are drives.
_LACKS_SLASHES = re.compile(r"([a-z][a-z0-9+.-]+:/|(s3|gs|az):)(?!/)", re.IGNORECASE)
_NAMES_NO_BUCKET = re.compile(r"(?!file:)[a-z][a-z0-9+.-]+://(/|$)", re.IGNORECASE)
_URL = re.compile(r"([a-z][a-z0-9+.-]+)://", re.IGNORECASE)
# Those that the README names, and the other words for the same stores.
_SCHEMES = ("file", "s3", "s3a", "gs", "az", "azure", "abfs", "abfss", "adl")


def _place(given: str) -> str:
    """A path or URL as it was meant; what would be a place of this machine that nobody means is refused."""
    if not given.strip():
        raise ValueError("it names no place; give a path or a URL, and look whether a variable in it is set")
    if _LACKS_SLASHES.match(given):
        scheme, _, rest = given.partition(":")
        rest = rest if scheme.lower() == "file" else rest.lstrip("/")
        raise ValueError(f"a URL has two slashes after its first word; write {scheme}://{rest}")
    url = _URL.match(given)
    if url is not None and url[1].lower() not in _SCHEMES:
        raise ValueError(
            f"{url[0]} is read and written by nothing here; give a local path, or s3://, gs:// or az:// and a bucket"
        )
    if _NAMES_NO_BUCKET.match(given):
        raise ValueError("the URL names no bucket; name one after the two slashes, and look whether a variable is set")
    # The shell does not where it stands in a YAML file, in quotes or after a flag's =.
    return os.path.expanduser(given)


Place = Annotated[str, AfterValidator(_place)]
"""A path, in which ~ is the home folder, or a URL."""


class Config(BaseModel):
    """Settings of a job or of a part of one.

    A field's docstring is its ``--help``: what it is, its unit, its default's reason.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False, validate_default=True
    )

    def named_defaults(self) -> Self:
        """The settings with what a chosen name (a preset, a recipe) sets; flags are then laid over them."""
        return self
