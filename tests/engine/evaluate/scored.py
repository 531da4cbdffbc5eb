"""The plain loop over sections that evaluation is held against."""

from typing import Any

import numpy as np
import numpy.typing as npt

from unet_ray.numerics.metrics import score_section
from unet_ray.numerics.stack_scores import combine
from unet_ray.numerics.thresholds import cell_probability

SHAPE = (4, 96, 112)


def scores_of(
    prediction: npt.NDArray[Any], membrane: npt.NDArray[np.uint8], sections: Any = range(4), **how: Any
) -> dict[str, Any]:
    scored = [score_section(cell_probability(prediction[z], **how), membrane[z] == 0) for z in sections]
    return combine(scored).summary()


def same(summary: dict[str, Any], expected: dict[str, Any]) -> bool:
    return {name: summary[name] for name in expected} == expected
