"""The paper's weight of each pixel: class balance, and more between cells that lie close together."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from unet_ray.config.recipe import WeightMap
from unet_ray.numerics.compiled import compiled

_LARGEST = 65504.0  # float16
_FAR = 1 << 30


def weight_reach_px(weighting: WeightMap) -> int:
    """Pixels beyond a crop whose cells can matter to its weights: 5 sigma, rounded up; 0 if w0 is 0.

    A second cell further away than that adds at most w0 exp(-12.5), 3.7e-5 at w0 = 10: less than half
    of float16's last digit on any weight from 0.125 up.

    >>> weight_reach_px(WeightMap())
    25
    """
    return math.ceil(5 * weighting.border_sigma_px) if weighting.border_weight > 0 else 0


def class_weights(counts: Sequence[int] | NDArray[np.int64], weighting: WeightMap) -> tuple[float, ...]:
    """One weight per class, so that each class weighs the same in all and the mean over pixels is 1.

    Args:
        counts: pixels of each class in all training sections; the counts of a patch would make
            the same pixel weigh differently in each.
        weighting: class_balance off gives 1.0 for every class.

    Returns:
        Weights; 1.0 for a class that does not occur.

    >>> class_weights([75, 25], WeightMap())
    (0.6666666666666666, 2.0)

    Source: w_c of Ronneberger, Fischer, Brox 2015, equation 2, which leaves its normalisation open.
    """
    present = sum(1 for count in counts if count > 0)
    total = sum(int(count) for count in counts)
    if not weighting.class_balance:
        return (1.0,) * len(counts)
    return tuple(total / (present * int(count)) if count > 0 else 1.0 for count in counts)


def weight_map(
    cell_ids: NDArray[np.int32] | None,
    class_map: NDArray[np.uint8],
    *,
    weighting: WeightMap,
    class_weights: Sequence[float] = (1.0, 1.0),
    ignore: NDArray[np.bool_] | None = None,
) -> NDArray[np.float16]:
    """``w_c + w0 exp(-(d1 + d2)**2 / (2 sigma**2))``, d1 and d2 the distances to the two nearest cells.

    The border term is added on membrane only. Taken to the letter the formula also raises pixels inside
    a cell, where d1 is 0 and only d2 counts: these would then be pushed towards "cell" as hard as the
    membrane beside them towards "membrane", and the term would no longer favour the separating pixels it
    is there for. Figure 3 of the paper and the common implementations have it on the background alone.

    Args:
        cell_ids: ids of the cells, 0 = none, (h + 2r, w + 2r) where r is `weight_reach_px`: cells beyond
            the crop count. Give ids found on the whole, undeformed section: found again on a warped crop,
            cells would merge through membranes broken by the warp. None will do where w0 is 0.
        class_map: (h, w), 1 = membrane, or a class index.
        weighting: w0 and sigma.
        class_weights: w_c of each class.
        ignore: (h, w), True where the weight is 0.

    Returns:
        float16 (h, w), at most 65504.

    >>> ids = np.array([[1, 1, 0, 0, 2]], np.int32)
    >>> sigma_1 = WeightMap(border_sigma_px=1.0)
    >>> found = weight_map(np.pad(ids, 5), (ids == 0).astype(np.uint8), weighting=sigma_1)
    >>> found.astype(float).round(3).tolist()
    [[1.0, 1.0, 1.111, 1.111, 1.0]]

    Source: Ronneberger, Fischer, Brox 2015, equation 2.
    """
    reach = weight_reach_px(weighting)
    balance = np.minimum(np.asarray(class_weights, np.float32), np.float32(_LARGEST))
    if reach:
        if cell_ids is None or cell_ids.shape != tuple(side + 2 * reach for side in class_map.shape):
            given = "no cell ids" if cell_ids is None else f"cell ids {cell_ids.shape}"
            raise ValueError(f"{given} are not class map {class_map.shape} grown by {reach}")
        weights = np.take(balance, class_map)
        two_sigma_squared = 2 * weighting.border_sigma_px**2
        _add_border_term(weights, cell_ids, class_map, reach, weighting.border_weight, two_sigma_squared)
        rounded: NDArray[np.float16] = np.minimum(weights, np.float32(_LARGEST), out=weights).astype(np.float16)
    else:  # a table of two values is rounded, not each pixel
        rounded = np.take(balance.astype(np.float16), class_map)
    if ignore is not None:
        rounded[ignore] = 0
    return rounded


@compiled
def _next_row(
    ids: NDArray[np.int32], row: int,
    near: NDArray[np.int32], near_row: NDArray[np.int32],
    other: NDArray[np.int32], other_row: NDArray[np.int32],
) -> None:  # fmt: skip
    """Take in one more row: per column the last id met and the last one met that differs from it."""
    for x in range(ids.size):
        found = ids[x]
        if found > 0:
            if found != near[x]:
                other[x], other_row[x] = near[x], near_row[x]
                near[x] = found
            near_row[x] = row


@compiled
def _better(
    first: int, first_d: int, second: int, second_d: int, found: int, found_d: int
) -> tuple[int, int, int, int]:
    """The two nearest distinct ids, with one more candidate; squared distances."""
    if found == first:
        return first, min(first_d, found_d), second, second_d
    if found_d < first_d:
        return found, found_d, first, first_d
    if found_d < second_d:
        return first, first_d, found, found_d
    return first, first_d, second, second_d


@compiled
def _add_border_term(
    weights: NDArray[np.float32], ids: NDArray[np.int32], class_map: NDArray[np.uint8],
    reach: int, w0: float, two_sigma_squared: float,
) -> None:  # fmt: skip
    """Exact distances in two passes, along columns and along rows.

    A cell that is not among the two nearest of its column at some row is not among the two nearest
    through that column of any pixel of the row: two others are nearer by the same sideways step.
    """
    rows, columns = ids.shape
    height, width = weights.shape
    limit = reach * reach
    below = np.empty((2, height, columns), np.int32)
    below_row = np.empty((2, height, columns), np.int32)
    near, other = np.zeros(columns, np.int32), np.zeros(columns, np.int32)
    near_row, other_row = np.zeros(columns, np.int32), np.zeros(columns, np.int32)
    for y in range(rows - 1, reach - 1, -1):
        _next_row(ids[y], y, near, near_row, other, other_row)
        i = y - reach
        if i < height:
            for x in range(columns):
                below[0, i, x], below_row[0, i, x] = near[x], near_row[x]
                below[1, i, x], below_row[1, i, x] = other[x], other_row[x]
    for x in range(columns):
        near[x], other[x] = 0, 0
    first, second = np.empty(columns, np.int32), np.empty(columns, np.int32)
    first_d, second_d = np.empty(columns, np.int32), np.empty(columns, np.int32)
    for y in range(reach):
        _next_row(ids[y], y, near, near_row, other, other_row)
    for i in range(height):
        y = i + reach
        _next_row(ids[y], y, near, near_row, other, other_row)
        for x in range(columns):
            a, a_d, b, b_d = 0, _FAR, 0, _FAR
            if near[x]:
                a, a_d = near[x], (y - near_row[x]) ** 2
            if other[x]:
                b, b_d = other[x], (y - other_row[x]) ** 2
            for k in range(2):
                if below[k, i, x]:
                    a, a_d, b, b_d = _better(a, a_d, b, b_d, below[k, i, x], (y - below_row[k, i, x]) ** 2)
            first[x], first_d[x], second[x], second_d[x] = a, a_d, b, b_d
        for j in range(width):
            if class_map[i, j] != 1:
                continue
            x = j + reach
            a, a_d, b, b_d = first[x], first_d[x], second[x], second_d[x]
            step = 1
            while step <= reach and step * step < b_d:
                square = step * step
                for side in (x - step, x + step):
                    if first[side]:
                        a, a_d, b, b_d = _better(a, a_d, b, b_d, first[side], first_d[side] + square)
                    if second[side]:
                        a, a_d, b, b_d = _better(a, a_d, b, b_d, second[side], second_d[side] + square)
                step += 1
            if b_d <= limit:
                total = math.sqrt(a_d) + math.sqrt(b_d)
                weights[i, j] += w0 * math.exp(-total * total / two_sigma_squared)
