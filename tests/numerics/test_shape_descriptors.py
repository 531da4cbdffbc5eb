"""Shape descriptors against the plain formula over each pixel's own cell."""

import numpy as np
import numpy.typing as npt
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from scipy import ndimage

from unet_ray.geometry.descriptor_grid import STEP_PX, descriptor_sides
from unet_ray.numerics.shape_descriptors import _REACH, _SIGMA, shape_descriptors

Label = npt.NDArray[np.uint8]
SIDES = st.tuples(st.integers(4, 90), st.integers(4, 90))
COARSE = st.integers(0, 2**32 - 1)


def made(label: Label, known: npt.NDArray[np.bool_] | None = None) -> npt.NDArray[np.float32]:
    out = np.full(descriptor_sides(*label.shape), np.nan, np.float32)
    shape_descriptors(label, np.ones(label.shape, bool) if known is None else known, out)
    return out


def drawn(sides: tuple[int, int], seed: int) -> Label:
    """Cells of some ten pixels with membranes between them, as thresholded smooth noise has."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=sides), 3)
    return (np.abs(noise) < 0.04).astype(np.uint8)


def plain(label: Label, known: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
    """Weighted mean and covariance of the places of the same cell, one descriptor after the other."""
    rows, columns = descriptor_sides(*label.shape)[1:]
    ids = ndimage.label((label == 0) & known)[0]
    ids = ids[STEP_PX // 2 :: STEP_PX, STEP_PX // 2 :: STEP_PX][:rows, :columns]
    found = np.zeros((7, rows, columns))
    y, x = np.mgrid[:rows, :columns]
    for row, column in zip(*np.nonzero(ids), strict=True):
        far = np.maximum(abs(y - row), abs(x - column)) > _REACH
        window = np.where(far, 0, np.exp(-((y - row) ** 2 + (x - column) ** 2) / (2 * _SIGMA**2)))
        mine = window * (ids == ids[row, column])
        places = np.stack([y.ravel() - row, x.ravel() - column])
        mean = np.average(places, axis=1, weights=mine.ravel())
        covariance = np.cov(places, aweights=mine.ravel(), ddof=0)
        correlation = covariance[0, 1] / np.sqrt(max(covariance[0, 0] * covariance[1, 1], 0.01))
        scaled = [*((mean / _SIGMA + 1) / 2), *(np.diag(covariance) / _SIGMA**2), (correlation + 1) / 2]
        found[:, row, column] = np.clip([*scaled, mine.sum() / window.sum(), 1], 0, 1)
    return found.astype(np.float32)


@given(SIDES, COARSE, st.booleans())
def test_they_are_moments_of_the_cell_in_the_window(sides: tuple[int, int], seed: int, all_known: bool) -> None:
    label = drawn(sides, seed)
    known = np.ones(sides, bool) if all_known else drawn(sides, seed + 1) == 0
    np.testing.assert_allclose(made(label, known), plain(label, known), rtol=0, atol=1e-5)


@given(SIDES, COARSE)
def test_the_two_axes_are_alike(sides: tuple[int, int], seed: int) -> None:
    label = drawn(sides, seed)
    turned = made(np.ascontiguousarray(label.T)).transpose(0, 2, 1)
    np.testing.assert_allclose(made(label), turned[[1, 0, 3, 2, 4, 5, 6]], rtol=0, atol=1e-6)


@given(st_numpy.arrays(np.uint8, SIDES, elements=st.integers(0, 2)), COARSE)
def test_any_label_is_described_within_its_range(label: Label, seed: int) -> None:
    known = np.random.default_rng(seed).random(label.shape) < 0.9
    found = made(label, known)
    assert np.isfinite(found).all()
    assert found.min() >= 0
    assert found.max() <= 1
    cell = ((label == 0) & known)[2::4, 2::4][: found.shape[1], : found.shape[2]]
    assert np.array_equal(found[6] == 1, cell)
    assert not found[:, ~cell].any()


def test_another_cell_does_not_count_however_near_it_is() -> None:
    """A membrane of one pixel, which no descriptor lies on, parts two cells; a gap in it makes them one."""
    parted = np.zeros((128, 128), np.uint8)
    parted[:, 64] = 1
    open_somewhere = parted.copy()
    open_somewhere[60:68, 64] = 0
    beside = np.s_[:, 16, 15]  # 2 px left of the membrane
    two, one = made(parted)[beside], made(open_somewhere)[beside]
    assert two[5] < 0.6 < 0.95 < one[5]  # about half of the window, or nearly all
    assert two[1] < 0.3  # the centre of mass is to the left
    assert abs(one[1] - 0.5) < 0.05
