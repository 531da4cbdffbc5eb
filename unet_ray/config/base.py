"""What every settings object is: frozen, checked, and without unknown keys."""

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field

_Nanometres = Annotated[float, Field(gt=0)]
VoxelSize = tuple[_Nanometres, _Nanometres, _Nanometres]
"""(z, y, x) in nm."""


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
