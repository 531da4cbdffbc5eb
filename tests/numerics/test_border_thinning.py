from collections import deque

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from unet_ray.numerics.border_thinning import thin_borders
from unet_ray.numerics.contingency import label_cells

masks = hnp.arrays(np.bool_, st.tuples(st.integers(1, 9), st.integers(1, 9)))


def thinned_plainly(labels):
    """The definition, step by step, on a dictionary of pixels."""
    state = {(x, y): int(labels[y, x]) or "unvisited" for y, x in np.ndindex(labels.shape)}
    around = ((-1, 0), (0, -1), (1, 0), (0, 1))
    queue = deque()
    for x in range(labels.shape[1]):
        for y in range(labels.shape[0]):
            near = (state.get((x + dx, y + dy)) for dx, dy in around)
            if state[x, y] == "unvisited" and any(isinstance(s, int) for s in near):
                queue.append((x, y))
    for p in queue:
        state[p] = "queued"
    flag = False
    while queue:
        p = queue.popleft()
        for dx, dy in around:
            q = (p[0] + dx, p[1] + dy)
            r = state.get(q)
            if isinstance(r, int):
                if state[p] == "queued" or (state[p] == "dam" and flag):
                    state[p] = r
                elif isinstance(state[p], int) and state[p] != r:
                    state[p], flag = "dam", False
            elif r == "dam":
                if state[p] == "queued":
                    state[p], flag = "dam", True
            elif r == "unvisited":
                state[q] = "queued"
                queue.append(q)
    thinned = np.zeros_like(labels)
    for (x, y), s in state.items():
        assert isinstance(s, int) or s == "dam"
        thinned[y, x] = 0 if s == "dam" else s
    return thinned


@settings(deadline=None, max_examples=300)
@given(masks)
def test_it_is_the_definition_step_by_step(cell):
    labels = label_cells(cell)
    if cell.any():
        np.testing.assert_array_equal(thin_borders(labels), thinned_plainly(labels))


def test_it_is_the_definition_on_thick_membranes_where_the_flag_decides():
    rng = np.random.default_rng(5)
    for density in (0.02, 0.05, 0.2, 0.4):
        labels = label_cells(rng.random((40, 50)) < density)
        np.testing.assert_array_equal(thin_borders(labels), thinned_plainly(labels))


@settings(deadline=None)
@given(masks)
def test_segments_only_grow(cell):
    labels = label_cells(cell)
    before = labels.copy()
    thinned = thin_borders(labels)
    np.testing.assert_array_equal(labels, before)
    if cell.any():
        np.testing.assert_array_equal(thinned[cell], labels[cell])


def test_a_section_without_a_cell_is_one_region():
    np.testing.assert_array_equal(thin_borders(np.zeros((3, 4), np.int32)), np.ones((3, 4)))


def test_a_thick_membrane_between_two_cells_becomes_one_line():
    labels = np.zeros((6, 9), np.int32)
    labels[:, :2], labels[:, 7:] = 1, 2
    thinned = thin_borders(labels)
    assert [set(column) for column in thinned.T] == [{1}] * 4 + [{0}] + [{2}] * 4
