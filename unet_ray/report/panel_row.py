"""What a panel picture shows of a section; made on workers, which draw nothing."""

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class PanelRow:
    """One section of a panel picture; every array is (y, x) and of one shape."""

    section: int
    """Number of the section in its volume."""
    raw: NDArray[Any]
    """Grey levels; shown from the 0.5th to the 99.5th percentile."""
    probability: NDArray[Any]
    """Membrane probability: float 0 to 1, or uint8 0 to 255."""
    mask: NDArray[Any]
    """Predicted membrane: not 0."""
    truth: NDArray[Any] | None = None
    """True membrane: not 0; None where there is none."""
    caption: str = ""
    """Shown beside the section's number, for example its scores."""
