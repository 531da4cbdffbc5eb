"""What labels mean: membrane, cells and ignored pixels of one section."""

from dataclasses import dataclass
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

    @property
    def has_membrane(self) -> bool:
        """Whether any pixel is of class 1."""
        return bool((self.class_map == 1).any())

    @property
    def has_interior(self) -> bool:
        """Whether any pixel that is not ignored is of class 0."""
        inside = self.class_map == 0
        return bool((inside if self.ignore is None else inside & ~self.ignore).any())

    def class_counts(self, num_classes: int = 2) -> NDArray[np.int64]:
        """Pixels of each class, ignored ones left out; add them up over sections for `class_weights`."""
        known = self.class_map if self.ignore is None else self.class_map[~self.ignore]
        return np.bincount(known.ravel(), minlength=num_classes)


def membrane_and_cells(
    labels: ArrayLike, kind: LabelKind, *, ignore_label: int | None = None, name: str = "labels"
) -> SectionLabels:
    """Class map, cell ids and ignored pixels of one section's labels.

    Two values mean what `kind` says of the brighter: ``interior`` the inside of a cell, ``membrane``
    the membrane. ``instances`` are ids: a pixel is membrane where its id is 0, or where one of its four
    neighbours has another id (0 aside), so a border between touching ids is two pixels wide. Cells are
    the 4-connected components of the interior: two profiles of one neuron count as two cells, as the
    membrane between them separates them all the same. ``classes`` are class indices; they have no cells.

    Args:
        labels: (y, x), bool, whole numbers, or floats that are whole numbers.
        kind: what the values mean.
        ignore_label: a value whose pixels are unknown.
        name: what an error calls the labels, for example ``labels.tif, section 3``.

    Raises:
        LabelError: the values do not fit the label kind.

    >>> ids = np.array([[7, 7, 7, 9, 9, 9]])
    >>> found = membrane_and_cells(ids, "instances")
    >>> found.class_map, found.cell_ids
    (array([[0, 0, 1, 1, 0, 0]], dtype=uint8), array([[1, 1, 0, 0, 2, 2]], dtype=int32))
    """
    assert kind in get_args(LabelKind), kind
    values = _whole_numbers(np.asarray(labels), name)
    ignore = None if ignore_label is None else values == ignore_label
    known = np.unique(values if ignore is None else values[~ignore])
    if kind == "classes":
        _check_classes(known, name)
        classes = values if ignore is None else np.where(ignore, 0, values)
        return SectionLabels(classes.astype(np.uint8), np.zeros(values.shape, np.int32), ignore)
    if kind == "instances":
        _check_not_negative(known, name)
        membrane = _borders_between_ids(values, ignore)
    else:
        _check_two_values(known, kind, name)
        membrane = (values == 0) if kind == "interior" else (values != 0)
    if ignore is not None:
        membrane &= ~ignore
    cell_ids = np.empty(values.shape, np.int32)
    # SciPy's default structure is the cross of four neighbours.
    ndimage.label(~membrane if ignore is None else ~(membrane | ignore), output=cell_ids)
    return SectionLabels(membrane.view(np.uint8), cell_ids, ignore)


def _whole_numbers(labels: NDArray[Any], name: str) -> NDArray[Any]:
    if labels.ndim != 2:
        raise LabelError(f"{name} have shape {labels.shape}, but one section is (y, x); give single sections")
    if labels.dtype.kind in "bui":
        return labels
    if labels.dtype.kind != "f" or not np.array_equal(labels, np.rint(labels)):
        raise LabelError(
            f"{name} hold {labels.dtype} values that are not whole numbers, but labels are bright and dark, "
            "ids, or class indices; threshold or convert them first"
        )
    return labels


def _check_not_negative(known: NDArray[Any], name: str) -> None:
    if known.size and known[0] < 0:
        raise LabelError(
            f"{name} hold the value {known[0]:.0f}, but labels start at 0; "
            f"name the value of unknown pixels with --ignore-label {known[0]:.0f}"
        )


def _check_two_values(known: NDArray[Any], kind: str, name: str) -> None:
    dark, bright = "membrane", "the inside of cells"
    if kind == "membrane":
        dark, bright = bright, dark
    meaning = f"label kind '{kind}' means two, 0 for {dark} and one bright value for {bright}"
    if known.size > 2:
        raise LabelError(
            f"{name} hold {known.size} different values, but {meaning}; for ids use --label-kind instances"
        )
    _check_not_negative(known, name)
    if known.size == 2 and known[0] != 0:
        raise LabelError(
            f"{name} hold the values {known[0]:.0f} and {known[1]:.0f}, but {meaning}; "
            f"change {known[0]:.0f} to 0, or leave it out with --ignore-label {known[0]:.0f}"
        )


def _check_classes(known: NDArray[Any], name: str) -> None:
    _check_not_negative(known, name)
    if known.size and known[-1] >= MAX_CLASSES:
        raise LabelError(
            f"{name} hold the value {known[-1]:.0f}, but label kind 'classes' means class indices from 0 to "
            f"at most {MAX_CLASSES - 1}; for ids use --label-kind instances, for dark and bright interior"
        )


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
