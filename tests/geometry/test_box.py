import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unet_ray.geometry.box import Box, mirror_index, triple

corners = st.tuples(*[st.integers(-6, 8)] * 3)
shapes = st.tuples(*[st.integers(0, 6)] * 3)
boxes = st.builds(lambda start, shape: Box.of_shape(shape, start), corners, shapes)


def voxels(box):
    z, y, x = (range(a, b) for a, b in zip(box.start, box.stop, strict=True))
    return {(i, j, k) for i in z for j in y for k in x}


@settings(deadline=None)
@given(side=st.integers(1, 9), before=st.integers(0, 30), after=st.integers(0, 30))
def test_mirror_index_is_numpys_reflect(side, before, after):
    expected = np.pad(np.arange(side), (before, after), mode="reflect")
    assert [mirror_index(i, side) for i in range(-before, side + after)] == expected.tolist()


@settings(deadline=None)
@given(boxes, boxes)
def test_intersection_holds_the_shared_voxels(a, b):
    assert voxels(a.intersect(b)) == voxels(a) & voxels(b)
    assert a.intersect(b).voxels == len(voxels(a) & voxels(b))


@settings(deadline=None)
@given(boxes, boxes)
def test_contains_is_the_subset_of_boxes_with_voxels(a, b):
    if b.voxels:
        assert a.contains(b) == (voxels(b) <= voxels(a))


@settings(deadline=None)
@given(boxes, shapes, corners)
def test_grow_and_shift(box, by, move):
    grown = box.grow(by)
    assert grown.shape == tuple(n + 2 * m for n, m in zip(box.shape, by, strict=True))
    assert grown.contains(box)
    assert box.shift(move).relative_to(move) == box
    assert box.shift(move).shape == box.shape


@settings(deadline=None)
@given(st.tuples(*[st.integers(0, 5)] * 3), shapes)
def test_slices_index_the_boxs_voxels(start, shape):
    box = Box.of_shape(shape, start)
    marked = np.zeros((12, 12, 12), bool)
    marked[box.slices] = True
    assert set(map(tuple, np.argwhere(marked).tolist())) == voxels(box)


def test_a_box_that_stops_before_it_starts_is_refused():
    with pytest.raises(ValueError, match=r"stops before it starts: \(0, 0, 5\) to \(1, 1, 4\)"):
        Box((0, 0, 5), (1, 1, 4))


@pytest.mark.parametrize("values", [(1, 2), (1, 2, 3, 4)])
def test_triple_takes_exactly_three(values):
    with pytest.raises(ValueError, match="unpack"):
        triple(values)
