import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from unet_ray.geometry.box import Box
from unet_ray.geometry.pyramid_level import coarser_box, factors_between


def divided(side: int, factor: int) -> list[int]:
    """Voxel of the level that each voxel of the volume is in, by counting."""
    return [n for n in range(side) for _ in range(factor)][:side]


@given(side=st.integers(1, 60), coarser=st.integers(1, 70))
def test_factors_are_those_that_give_that_many_voxels(side: int, coarser: int) -> None:
    fitting = [factor for factor in range(1, side + 1) if len(set(divided(side, factor))) == coarser]
    found = list(factors_between(side, coarser))
    assert found == fitting
    if coarser == 1:
        assert found == [side]


@given(side=st.integers(1, 4000), factor=st.integers(1, 40))
def test_a_level_with_more_voxels_than_its_factor_is_never_ambiguous(side: int, factor: int) -> None:
    coarser = -(-side // factor)
    assert factor in factors_between(side, coarser) or coarser == 1
    assume(coarser > factor + 1)
    assert list(factors_between(side, coarser)) == [factor]


@given(data=st.data(), sides=st.tuples(*[st.integers(1, 13)] * 3), factor=st.tuples(*[st.integers(1, 5)] * 3))
def test_a_coarser_box_has_the_voxels_that_the_box_is_in(
    data: st.DataObject, sides: tuple[int, int, int], factor: tuple[int, int, int]
) -> None:
    start = [data.draw(st.integers(0, side - 1)) for side in sides]
    stop = [data.draw(st.integers(a + 1, side)) for a, side in zip(start, sides, strict=True)]
    found = coarser_box(Box(tuple(start), tuple(stop)), factor)
    for axis in range(3):
        named = divided(sides[axis], factor[axis])[start[axis] : stop[axis]]
        assert range(found.start[axis], found.stop[axis]) == range(min(named), max(named) + 1)


def test_levels_of_known_pyramids() -> None:
    assert factors_between(1000, 63) == range(16, 17)
    assert factors_between(4, 2) == range(2, 4)  # 2 + 2 or 3 + 1
    assert not factors_between(30, 31)
    with pytest.raises(ValueError, match="stops before"):
        coarser_box(Box((0, 0, 5), (1, 1, 4)), (1, 1, 1))
