"""The threshold grid of the ISBI 2012 challenge, and predictions in the form it asks for.

Source: definitions in the organisers' Java classes (fiji/Trainable_Segmentation,
package trainableSegmentation.metrics) and their published evaluation scripts.
"""

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from unet_ray.errors import VolumeError

Polarity = Literal["membrane", "interior"]

# The challenge starts at 0.0 and adds 0.1 in double precision. The rounding is kept: the last value
# lies just below 1, so that a certain cell (1.0) is still a cell there.
THRESHOLDS: npt.NDArray[np.float64] = np.add.accumulate(np.array([0.0] + 10 * [0.1]))
THRESHOLDS.setflags(write=False)
# The warping error scans up to 0.9.
WARPING_THRESHOLDS: npt.NDArray[np.float64] = THRESHOLDS[:10]
HALF = 5
"""Index of the threshold 0.5, for everything that is measured on the mask alone."""


def cell_probability(
    prediction: npt.NDArray[Any], polarity: Polarity = "membrane", full_scale: float | None = None
) -> npt.NDArray[np.float32]:
    """Probability of cell interior, as the challenge's metrics take it, from stored values.

    The values are turned to the cell's polarity first, then divided in single precision:
    8-bit 51 becomes float32(51/255), which is above 0.2, while the double 51/255 is not.

    Args:
        prediction: any shape; bool, unsigned whole numbers, or floats.
        polarity: what a high value means. "membrane": our output; "interior": the challenge's submissions.
        full_scale: the value that means 1. Default: the largest of an integer type, 1 for bool and float.
            A mask stored as 0 and 1 in uint8 needs ``full_scale=1``.

    Returns:
        float32, same shape, 0 = surely membrane, 1 = surely cell.

    Raises:
        VolumeError: a value is not a number, or outside 0..``full_scale``; or signed integers without
            a full scale.

    >>> cell_probability(np.array([[0, 128, 255]], np.uint8))
    array([[1.        , 0.49803922, 0.        ]], dtype=float32)
    """
    if full_scale is None:
        if prediction.dtype.kind == "u":
            full_scale = float(np.iinfo(prediction.dtype).max)
        elif prediction.dtype.kind in "bf":
            full_scale = 1.0
        else:
            raise VolumeError(
                f"the prediction holds {prediction.dtype} values and it is not said which one means"
                " certainty; give unsigned integers, floats from 0 to 1, or a mask"
            )
    low, high = (float(prediction.min()), float(prediction.max())) if prediction.size else (0.0, 0.0)
    if not 0 <= low <= high <= full_scale:  # NaN fails, too
        raise VolumeError(
            f"a prediction has to lie between 0 and {full_scale:g}, but this one's values go from {low:g}"
            f" to {high:g}; give a probability or a mask, not an image or raw network output"
        )
    # Double precision holds the integers exactly, and the difference is rounded to single once.
    exact = prediction.astype(np.float64)
    if polarity == "membrane":
        exact = full_scale - exact
    return exact.astype(np.float32) / np.float32(full_scale)


def threshold_levels(cell_probability: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """How many of `THRESHOLDS` lie below each value; the value is a cell at threshold k where this is > k.

    A cell is what is strictly above the threshold, the float32 widened to double.

    >>> threshold_levels(np.array([0, 0.05, 0.2, 0.5, 1], np.float32)).tolist()
    [0, 1, 3, 5, 11]
    """
    levels = np.zeros(cell_probability.shape, np.uint8)
    wide = cell_probability.astype(np.float64)
    for threshold in THRESHOLDS:
        levels += wide > threshold
    return levels
