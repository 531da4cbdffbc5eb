"""What labels mean: membrane, cells and ignored pixels of one section."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from unet_ray.errors import LabelError

LabelKind = Literal["interior", "membrane", "instances", "classes"]
MAX_CLASSES = 32
"""More class indices than this are taken for a mistake in the label kind."""


@dataclass(frozen=True)
class SectionLabels:
    """Labels of one section in the words of the project; all arrays (y, x) of one shape."""

    class_map: NDArray[np.uint8]
    """1 = membrane, 0 = cell interior; a class index for label kind ``classes``; 0 where ignored."""
    cell_ids: NDArray[np.int32]
    """1, 2, ... = the 4-connected cells of this section; 0 = membrane or ignored; all 0 for ``classes``."""
    ignore: NDArray[np.bool_] | None = None
    """True where the label is unknown; None: nowhere."""


def class_map(
    labels: ArrayLike,
    kind: LabelKind,
    *,
    ignore_label: int | None = None,
    ignore_mask: NDArray[np.bool_] | None = None,
    name: str = "labels",
) -> tuple[NDArray[np.uint8], NDArray[np.bool_] | None]:
    """Class map and ignored pixels of one section's labels: all that counting needs, without its cells.

    Two values mean what `kind` says of the brighter: ``interior`` the inside of a cell, ``membrane``
    the membrane. ``instances`` are ids: a pixel is membrane where its id is 0, or where one of its four
    neighbours has another id (0 aside), so a border between touching ids is two pixels wide. ``classes``
    are class indices. Values of ignored pixels need not fit the kind, and make no border.

    Args:
        labels: (y, x), bool, whole numbers, or floats that are whole numbers.
        kind: what the values mean.
        ignore_label: a value whose pixels are unknown.
        ignore_mask: (y, x), True at other pixels that do not count.
        name: what an error calls the labels, for example ``labels.tif, section 3``.

    Returns:
        ``class_map`` and ``ignore`` of `SectionLabels`.

    Raises:
        LabelError: the values do not fit the label kind.

    >>> class_map(np.array([[7, 7, 0, 9, 9, 9]]), "interior", ignore_label=9)[0]
    array([[0, 0, 1, 0, 0, 0]], dtype=uint8)
    """
    assert kind in get_args(LabelKind), kind
    values = _section(np.asarray(labels), name)
    ignore = ignore_mask
    if ignore_label is not None:
        unknown = values == ignore_label
        ignore = unknown if ignore is None else ignore | unknown
    known = values if ignore is None else values[~ignore]
    _check_whole_numbers(known, name)
    if known.size:
        _CHECKS[kind](known, name)
    if kind == "classes":
        classes = values if ignore is None else np.where(ignore, 0, values)
        return classes.astype(np.uint8), ignore
    if kind == "instances":
        membrane = _borders_between_ids(values, ignore)
    else:
        membrane = (values == 0) if kind == "interior" else (values != 0)
    if ignore is not None:
        membrane &= ~ignore
    return membrane.view(np.uint8), ignore


def class_counts(classes: NDArray[np.uint8], ignore: NDArray[np.bool_] | None) -> NDArray[np.int64]:
    """Pixels of each class, ignored ones left out: `MAX_CLASSES` numbers, to be added up over sections."""
    known = classes if ignore is None else classes[~ignore]
    return np.bincount(known.ravel(), minlength=MAX_CLASSES)


def membrane_and_cells(
    labels: ArrayLike,
    kind: LabelKind,
    *,
    ignore_label: int | None = None,
    ignore_mask: NDArray[np.bool_] | None = None,
    name: str = "labels",
) -> SectionLabels:
    """Class map, cell ids and ignored pixels of one section's labels; arguments and errors are `class_map`'s.

    Cells are the 4-connected components of the interior: two profiles of one neuron count as two cells,
    as the membrane between them separates them all the same. An ignored region cuts cells, too: were it to
    join what touches it, the membranes between those cells would lose their border term. ``classes`` have
    no cells.

    >>> ids = np.array([[7, 7, 7, 9, 9, 9]])
    >>> found = membrane_and_cells(ids, "instances")
    >>> found.class_map, found.cell_ids
    (array([[0, 0, 1, 1, 0, 0]], dtype=uint8), array([[1, 1, 0, 0, 2, 2]], dtype=int32))
    """
    classes, ignore = class_map(labels, kind, ignore_label=ignore_label, ignore_mask=ignore_mask, name=name)
    cell_ids = np.zeros(classes.shape, np.int32)
    if kind != "classes":
        interior = classes == 0
        # SciPy's default structure is the cross of four neighbours.
        ndimage.label(interior if ignore is None else interior & ~ignore, output=cell_ids)
    return SectionLabels(classes, cell_ids, ignore)


def _section(labels: NDArray[Any], name: str) -> NDArray[Any]:
    if labels.ndim != 2:
        raise LabelError(f"{name} have shape {labels.shape}, but one section is (y, x); give single sections")
    return labels


def _check_whole_numbers(known: NDArray[Any], name: str) -> None:
    if known.dtype.kind not in "bui" and (known.dtype.kind != "f" or not np.array_equal(known, np.rint(known))):
        raise LabelError(
            f"{name} hold {known.dtype} values that are not whole numbers, but labels are bright and dark, "
            "ids, or class indices; threshold or convert them first"
        )


def _check_not_negative(known: NDArray[Any], name: str) -> None:
    if (lowest := known.min()) < 0:
        raise LabelError(
            f"{name} hold the value {lowest:.0f}, but labels start at 0; "
            f"name the value of unknown pixels with --ignore-label {lowest:.0f}"
        )


def _check_two_values(known: NDArray[Any], name: str, *, kind: str) -> None:
    dark, bright = "membrane", "the inside of cells"
    if kind == "membrane":
        dark, bright = bright, dark
    meaning = f"label kind '{kind}' means two, 0 for {dark} and one bright value for {bright}"
    lowest, highest = known.min(), known.max()
    if ((known != lowest) & (known != highest)).any():
        raise LabelError(
            f"{name} hold {np.unique(known).size} different values, but {meaning}; "
            "for ids use --label-kind instances, for class indices classes"
        )
    _check_not_negative(known, name)
    if 0 != lowest != highest:
        raise LabelError(
            f"{name} hold the values {lowest:.0f} and {highest:.0f}, but {meaning}; "
            f"change {lowest:.0f} to 0, or leave it out with --ignore-label {lowest:.0f}"
        )


def _check_classes(known: NDArray[Any], name: str) -> None:
    _check_not_negative(known, name)
    if (highest := known.max()) >= MAX_CLASSES:
        raise LabelError(
            f"{name} hold the value {highest:.0f}, but label kind 'classes' means class indices from 0 to "
            f"at most {MAX_CLASSES - 1}; for ids use --label-kind instances, for dark and bright interior"
        )


_CHECKS: dict[LabelKind, Callable[[NDArray[Any], str], None]] = {
    "interior": partial(_check_two_values, kind="interior"),
    "membrane": partial(_check_two_values, kind="membrane"),
    "instances": _check_not_negative,
    "classes": _check_classes,
}


def _borders_between_ids(ids: NDArray[Any], ignore: NDArray[np.bool_] | None) -> NDArray[np.bool_]:
    """Id 0, and both sides of every border between two other ids that touch."""
    outside = ids == 0
    counts = ~outside if ignore is None else ~(outside | ignore)
    membrane: NDArray[np.bool_] = outside.copy()
    for ahead, behind in (((slice(1, None), slice(None)), (slice(None, -1), slice(None))),
                          ((slice(None), slice(1, None)), (slice(None), slice(None, -1)))):  # fmt: skip
        border = (ids[ahead] != ids[behind]) & counts[ahead] & counts[behind]
        membrane[ahead] |= border
        membrane[behind] |= border
    return membrane
