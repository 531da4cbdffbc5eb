import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from unet_ray.errors import LabelError
from unet_ray.numerics.labels import MAX_CLASSES, class_counts, class_map, membrane_and_cells

TWO_CELLS = np.array([[9, 9, 0, 9], [9, 9, 0, 9], [0, 0, 9, 9]])


def test_interior_and_membrane_are_opposite():
    interior = membrane_and_cells(TWO_CELLS, "interior")
    membrane = membrane_and_cells(TWO_CELLS == 0, "membrane")
    np.testing.assert_array_equal(interior.class_map, (TWO_CELLS == 0).astype(np.uint8))
    np.testing.assert_array_equal(interior.class_map, membrane.class_map)
    np.testing.assert_array_equal(interior.cell_ids, membrane.cell_ids)
    assert interior.class_map.dtype == np.uint8
    assert interior.cell_ids.dtype == np.int32


def test_cells_are_four_connected():
    # The two cells of the corner touch at (1, 1) and (2, 2) by their corners only.
    ids = membrane_and_cells(TWO_CELLS, "interior").cell_ids
    np.testing.assert_array_equal(ids, [[1, 1, 0, 2], [1, 1, 0, 2], [0, 0, 2, 2]])


def _instances_oracle(ids, ignored):
    """Pixel by pixel, as the docstring says it."""
    membrane = np.zeros(ids.shape, bool)
    for y, x in np.ndindex(ids.shape):
        if ids[y, x] in ignored:
            continue
        membrane[y, x] = ids[y, x] == 0
        for i, j in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
            if 0 <= i < ids.shape[0] and 0 <= j < ids.shape[1]:
                counts = ids[y, x] != 0 and ids[i, j] != 0 and ids[i, j] not in ignored
                membrane[y, x] |= counts and ids[y, x] != ids[i, j]
    return membrane


@settings(deadline=None)
@given(
    ids=hnp.arrays(np.uint16, hnp.array_shapes(min_dims=2, max_dims=2, max_side=7), elements=st.integers(0, 4)),
    ignore_label=st.sampled_from([None, 0, 3]),
)
def test_instances_match_a_plain_loop(ids, ignore_label):
    found = membrane_and_cells(ids, "instances", ignore_label=ignore_label)
    ignored = () if ignore_label is None else (ignore_label,)
    np.testing.assert_array_equal(found.class_map, _instances_oracle(ids, ignored))
    unknown = np.isin(ids, ignored)
    np.testing.assert_array_equal(found.cell_ids > 0, (found.class_map == 0) & ~unknown)
    for cell in range(1, found.cell_ids.max() + 1):
        assert np.unique(ids[found.cell_ids == cell]).size == 1


def test_large_ids_keep_apart():
    ids = np.array([[2**63 + 1, 2**63 + 1, 2**63 + 2, 2**63 + 2]], np.uint64)
    np.testing.assert_array_equal(membrane_and_cells(ids, "instances").class_map, [[0, 1, 1, 0]])


def test_ignored_pixels_are_neither_membrane_nor_cell():
    found = membrane_and_cells(np.array([[255, 7, 0]]), "interior", ignore_label=7)
    np.testing.assert_array_equal(found.class_map, [[0, 0, 1]])
    np.testing.assert_array_equal(found.cell_ids, [[1, 0, 0]])
    np.testing.assert_array_equal(found.ignore, [[False, True, False]])
    np.testing.assert_array_equal(class_counts(found.class_map, found.ignore)[:3], [1, 1, 0])


def test_classes_are_kept_and_have_no_cells():
    found = membrane_and_cells(np.array([[0, 1, 31, 5]]), "classes", ignore_label=5)
    np.testing.assert_array_equal(found.class_map, [[0, 1, 31, 0]])
    assert not found.cell_ids.any()
    counts = class_counts(found.class_map, found.ignore)
    np.testing.assert_array_equal(counts, [1, 1] + [0] * (MAX_CLASSES - 3) + [1])


@pytest.mark.parametrize("kind", ["interior", "membrane", "instances", "classes"])
@given(data=st.data())
def test_a_mask_ignores_as_a_label_does(kind, data):
    shape = data.draw(hnp.array_shapes(min_dims=2, max_dims=2, max_side=6))
    labels = data.draw(
        hnp.arrays(np.uint8, shape, elements=st.integers(0, 3 if kind in ("instances", "classes") else 1))
    )
    mask, other = data.draw(hnp.arrays(bool, shape)), data.draw(hnp.arrays(bool, shape))
    by_label = membrane_and_cells(np.where(mask | other, 77, labels), kind, ignore_label=77)
    # What lies under a mask need not fit the kind.
    by_mask = membrane_and_cells(np.where(mask, 88, labels), kind, ignore_mask=mask | other)
    by_both = membrane_and_cells(np.where(mask, 77, labels), kind, ignore_mask=other, ignore_label=77)
    for found in (by_mask, by_both):
        np.testing.assert_array_equal(found.class_map, by_label.class_map)
        np.testing.assert_array_equal(found.cell_ids, by_label.cell_ids)
        np.testing.assert_array_equal(found.ignore, mask | other)


def test_ignored_pixels_cut_cells_and_make_no_border():
    mask = np.array([[False, False, True, False, False]])
    for ids in ([[7, 7, 7, 7, 7]], [[7, 7, 9, 9, 9]]):
        found = membrane_and_cells(ids, "instances", ignore_mask=mask)
        np.testing.assert_array_equal(found.class_map, [[0, 0, 0, 0, 0]])
        np.testing.assert_array_equal(found.cell_ids, [[1, 1, 0, 2, 2]])


@pytest.mark.parametrize("kind", ["interior", "membrane", "instances", "classes"])
def test_counting_needs_no_cells(kind):
    labels = np.random.default_rng(0).integers(0, 2, (9, 8), dtype=np.uint8)
    classes, ignore = class_map(labels, kind, ignore_mask=labels == 1)
    whole = membrane_and_cells(labels, kind, ignore_mask=labels == 1)
    np.testing.assert_array_equal(classes, whole.class_map)
    np.testing.assert_array_equal(ignore, whole.ignore)
    assert class_counts(classes, ignore).sum() == (labels == 0).sum()


def test_nothing_known_fits_every_kind():
    for kind in ("interior", "membrane", "instances", "classes"):
        found = membrane_and_cells([[-5, -5]], kind, ignore_label=-5)
        assert not class_counts(found.class_map, found.ignore).any()
        assert not found.cell_ids.any()


@pytest.mark.parametrize(
    ("labels", "kind", "said"),
    [
        (
            np.arange(57)[None],
            "interior",
            "L, section 3 hold 57 different values, but .* --label-kind instances",
        ),
        ([[0, 1, 2]], "membrane", "0 for the inside of cells and one bright value for membrane"),
        ([[1, 2]], "interior", "hold the values 1 and 2, .*; change 1 to 0"),
        ([[-1, 0]], "interior", "hold the value -1, .* --ignore-label -1"),
        ([[-1, 0]], "instances", "hold the value -1"),
        ([[-1, 0]], "classes", "hold the value -1"),
        ([[0, 1, 2, 2]], "interior", "3 different values, .* for class indices classes"),
        ([[0, 32]], "classes", "hold the value 32, "),
        ([[0, 255]], "classes", "hold the value 255, .* class indices from 0 to at most 31"),
        (np.arange(300)[None], "classes", "hold the value 299, .* for ids use --label-kind instances"),
        ([[1.0, 2.5]], "instances", "float64 values that are not whole numbers"),
        ([[1.0, 2.5]], "classes", "float64 values that are not whole numbers"),
        ([[0.5, 1.0]], "interior", "float64 values that are not whole numbers"),
        ([[float("nan"), 1.0]], "interior", "not whole numbers"),
        ([[1j, 0]], "interior", "complex128"),
        ([0, 1], "interior", r"shape \(2,\), but one section is \(y, x\)"),
        ([[[0, 1]]], "interior", r"shape \(1, 1, 2\), but one section is \(y, x\)"),
    ],
)
def test_wrong_labels_are_refused(labels, kind, said):
    with pytest.raises(LabelError, match=said):
        membrane_and_cells(labels, kind, name="L, section 3")


def test_whole_floats_are_taken():
    np.testing.assert_array_equal(membrane_and_cells([[0.0, 255.0]], "interior").class_map, [[1, 0]])


@pytest.mark.real_data
def test_isbi_labels_are_interior(shared_data):
    tifffile = pytest.importorskip("tifffile")
    section = tifffile.imread(shared_data / "isbi2012" / "train-labels.tif", key=0)
    found = membrane_and_cells(section, "interior")
    assert 0.2 < found.class_map.mean() < 0.25
    assert found.cell_ids.max() == 136
