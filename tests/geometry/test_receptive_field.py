"""Margin, halo and legal sides against networks that are really computed, in whole numbers."""

from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unet_ray.errors import TileGridError
from unet_ray.geometry.box import mirror_index
from unet_ray.geometry.receptive_field import (
    Conv,
    Join,
    Pool,
    Push,
    Up,
    cuts_px,
    halo_px,
    input_interval,
    is_legal,
    legal_output_sides,
    margin_px,
    nearest_output_sides,
    output_side,
    pooling_factor,
)


def unet(depth, convs, kernel, same, nearest):
    pad = kernel // 2 if same else 0
    level = [Conv(kernel, (pad, pad))] * convs
    net = list(level)
    for _ in range(depth - 1):
        net = [*net, Push(), Pool(2), *level]
    for _ in range(depth - 1):
        net += [Up(2), *([Conv(2, (0, 1))] if nearest else []), Join(), *level]
    return [*net, Conv(1)]


PAPER = unet(5, convs=2, kernel=3, same=False, nearest=False)
SAME = unet(3, convs=2, kernel=3, same=True, nearest=False)
NEAREST = unet(3, convs=2, kernel=3, same=True, nearest=True)


@st.composite
def unets(draw, deepest=5):
    same = draw(st.booleans())
    return unet(
        depth=draw(st.integers(1, deepest)),
        convs=draw(st.integers(1, 2)),
        kernel=draw(st.sampled_from([1, 3, 5])),
        same=same,
        nearest=same and draw(st.booleans()),
    )


class UnevenError(Exception):
    """The toy network cannot take this side."""


def along(axis, start, stop):
    return (slice(None),) * axis + (slice(start, stop),)


def compute(layers, values, axes, squash, pool=np.max, cuts=()):
    """The network in whole numbers: unequal taps so that a shift shows, pooling, repetition, skips added.

    Cuts: pixels off each side before each up-sampling, and at last off the output.
    """
    skips, cuts = [], list(cuts)
    for layer in [*layers, *([Up(1)] if cuts else [])]:
        if isinstance(layer, Up) and cuts:
            cut = cuts.pop(0)
            for axis in axes:
                values = values[along(axis, cut, values.shape[axis] - cut)]
        for axis in axes:
            match layer:
                case Conv(kernel, padding):
                    pads = [(0, 0)] * values.ndim
                    pads[axis] = padding
                    padded = np.pad(values, pads)
                    side = padded.shape[axis] - kernel + 1
                    if side < 1:
                        raise UnevenError
                    values = squash(sum((t + 1) * padded[along(axis, t, t + side)] for t in range(kernel)))
                case Pool(factor):
                    if values.shape[axis] % factor:
                        raise UnevenError
                    split = (*values.shape[:axis], -1, factor, *values.shape[axis + 1 :])
                    values = pool(values.reshape(split), axis=axis + 1)
                case Up(factor):
                    values = np.repeat(values, factor, axis)
        if isinstance(layer, Push):
            skips.append(values)
        if isinstance(layer, Join):
            skip = skips.pop()
            for axis in axes:
                surplus = skip.shape[axis] - values.shape[axis]
                if surplus < 0 or surplus % 2:
                    raise UnevenError
                skip = skip[along(axis, surplus // 2, surplus // 2 + values.shape[axis])]
            values = squash(values + skip)
    return values


def depends(layers, side):
    """Boolean (output, input): which outputs depend on which inputs, found by computing."""
    found = compute(layers, np.eye(side, dtype=np.int64), (0,), lambda v: np.minimum(v, 1), pool=np.sum)
    return found > 0


def computable(layers, side):
    try:
        return len(depends(layers, side))
    except UnevenError:
        return None


def residues(values):
    """Not linear, so no error can cancel, and no whole number outgrows 64 bits."""
    return values * values % 65521


def window(volume, starts, side):
    """``side`` voxels along each axis from ``starts`` on, mirrored outside the volume."""
    axes = [[mirror_index(i, n) for i in range(a, a + side)] for a, n in zip(starts, volume.shape, strict=True)]
    return volume[np.ix_(*axes)]


def tile_by_tile(layers, volume, tile, halo):
    """Each tile of the mirrored volume from its own window; as many whole tiles as cover the volume."""
    counts, crop = [-(-n // tile) for n in volume.shape], halo - margin_px(layers)
    result = np.zeros([n * tile for n in counts], np.int64)
    for place in np.ndindex(*counts):
        starts = [p * tile for p in place]
        read = window(volume, [s - halo for s in starts], tile + 2 * halo)
        written = compute(layers, read, range(volume.ndim), residues)
        inside = written[(slice(crop, crop + tile),) * volume.ndim]
        assert inside.shape == (tile,) * volume.ndim
        result[tuple(slice(s, s + tile) for s in starts)] = inside
    return result[tuple(slice(0, n) for n in volume.shape)]


def noise(shape, seed=0):
    return np.random.default_rng(seed).integers(1, 65521, shape)


def test_the_papers_numbers():
    """572 -> 388: Ronneberger et al. 2015, figure 1. 94: worked out by hand in the architecture's contract."""
    assert output_side(PAPER, 572) == 388
    assert (margin_px(PAPER), halo_px(PAPER), pooling_factor(PAPER)) == (92, 94, 16)
    assert nearest_output_sides(PAPER, 388) == (388,)
    assert nearest_output_sides(PAPER, 384) == (372, 388)
    assert is_legal(PAPER, 384 + 2 * 94)
    assert not is_legal(PAPER, 384 + 2 * 92)


@settings(deadline=None)
@given(unets(deepest=4), st.integers(1, 60))
def test_legal_sides_are_those_that_can_be_computed(layers, side):
    made = computable(layers, side)
    assert is_legal(layers, side) == (made is not None)
    if made is None:
        with pytest.raises(TileGridError, match=f"of {side} px does not fit .*(is the least legal|the nearest are)"):
            output_side(layers, side)
    else:
        assert output_side(layers, side) == made == side - 2 * margin_px(layers)


@pytest.mark.parametrize(
    ("side", "said"),
    [(571, "the nearest are 556 and 572"), (573, "the nearest are 572 and 588"), (187, "188 is the least legal side")],
)
def test_a_side_that_is_not_legal_is_told_which_are(side, said):
    for ask in (output_side, lambda layers, side: input_interval(layers, side, 0, 1)):
        with pytest.raises(TileGridError, match=f"of {side} px does not fit the network's poolings; {said}$"):
            ask(PAPER, side)


@settings(max_examples=40, deadline=None)
@given(unets(deepest=4), st.integers(1, 40))
def test_output_sides_near_a_wanted_one(layers, wanted):
    legal = [s for s in range(1, 100) if computable(layers, s + 2 * margin_px(layers)) == s]
    assert list(islice(legal_output_sides(layers, wanted), 3)) == [s for s in legal if s >= wanted][:3]
    below, above = [s for s in legal if s < wanted], [s for s in legal if s >= wanted]
    assert nearest_output_sides(layers, wanted) == ((wanted,) if wanted in legal else (*below[-1:], above[0]))


def test_a_skip_that_cannot_be_cropped_about_its_centre_is_not_legal():
    assert not is_legal([Push(), Conv(2), Join()], 9)
    assert not is_legal([Push(), Conv(3, (2, 2)), Join()], 9)


@settings(deadline=None)
@given(st.integers(1, 5), st.sampled_from([(False, False), (True, False), (True, True)]))
def test_pooling_factor(depth, kind):
    assert pooling_factor(unet(depth, 2, 3, *kind)) == 2 ** (depth - 1)
    twice = unet(depth, 2, 3, *kind) * 2  # down, up, and down again
    assert pooling_factor(twice) == 2 ** (depth - 1)


@settings(max_examples=60, deadline=None)
@given(unets(deepest=4), st.data())
def test_reach_is_what_computing_shows(layers, data):
    margin = margin_px(layers)
    side = next(legal_output_sides(layers, data.draw(st.integers(1, 40)))) + 2 * margin
    matrix = depends(layers, side)
    start = data.draw(st.integers(0, len(matrix) - 1))
    stop = data.draw(st.integers(start + 1, len(matrix)))
    seen = np.flatnonzero(matrix[start:stop].any(axis=0))
    first, last = input_interval(layers, side, start, stop)
    assert (max(first, 0), min(last, side)) == (seen[0], seen[-1] + 1)
    if margin:
        assert first >= 0
        assert last <= side


@settings(max_examples=40, deadline=None)
@given(unets(deepest=4), st.integers(1, 3), st.integers(1, 40), st.integers(0, 9))
def test_tile_by_tile_is_one_piece(layers, tiles, side, seed):
    """One piece: the whole mirrored line as one tile, with more halo than it needs."""
    factor, halo = pooling_factor(layers), halo_px(layers)
    line = noise((side,), seed)
    whole = tile_by_tile(layers, line, -(-side // factor) * factor, halo + 2 * factor)
    np.testing.assert_array_equal(tile_by_tile(layers, line, tiles * factor, halo), whole)


@pytest.mark.parametrize("layers", [SAME, NEAREST], ids=["same", "nearest"])
def test_tile_by_tile_is_one_piece_in_two_dimensions(layers):
    section = noise((37, 50))
    whole = tile_by_tile(layers, section, 52, halo_px(layers) + 8)
    np.testing.assert_array_equal(tile_by_tile(layers, section, 16, halo_px(layers)), whole)


@settings(max_examples=30, deadline=None)
@given(unets(deepest=3))
def test_no_smaller_halo_is_exact(layers):
    """The next smaller legal halo lets a zero of the padding into the tile, or does not cover it."""
    tile, halo, margin = pooling_factor(layers), halo_px(layers), margin_px(layers)
    smaller = next((h for h in range(halo - 1, margin - 1, -1) if is_legal(layers, tile + 2 * h)), None)
    if smaller is None:
        return
    side, more = tile + 2 * smaller, tile * -(-halo // tile)
    in_tile = slice(smaller - margin, smaller - margin + tile)
    alone = depends(layers, side)[in_tile]
    with_context = depends(layers, side + 2 * more)[in_tile.start + more : in_tile.stop + more]
    assert with_context.sum() > alone.sum()


@pytest.mark.parametrize("layers", [SAME, NEAREST], ids=["same", "nearest"])
def test_a_halo_one_pooling_step_smaller_shows(layers):
    line = noise((64,))
    whole = tile_by_tile(layers, line, 64, halo_px(layers) + 8)
    assert (tile_by_tile(layers, line, 16, halo_px(layers) - 4) != whole).any()


def test_tiles_off_the_pooling_grid_show():
    """388 mod 16 = 4: what the paper's own tiles do; here 18 mod 4 = 2."""
    line = noise((72,))
    layers, halo = SAME, halo_px(SAME) + 1
    assert is_legal(layers, 18 + 2 * halo)
    whole = tile_by_tile(layers, line, 72, halo_px(layers) + 8)
    assert (tile_by_tile(layers, line, 18, halo) != whole).any()


@settings(max_examples=60, deadline=None)
@given(unets(deepest=4), st.integers(1, 40), st.data())
def test_what_cuts_spare_was_not_wanted(layers, side, data):
    line = noise((next(legal_output_sides(layers, side)) + 2 * margin_px(layers),))
    whole = compute(layers, line, (0,), residues)
    crop = data.draw(st.integers(0, (len(whole) - 1) // 2))
    cuts = cuts_px(tuple(layers), crop)
    assert min(cuts) >= 0
    found = compute(layers, line, (0,), residues, cuts=cuts)
    np.testing.assert_array_equal(found, whole[crop : len(whole) - crop])


@pytest.mark.parametrize("layers", [SAME, NEAREST], ids=["same", "nearest"])
@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("crop", range(12, 18))
def test_no_more_can_be_cut(layers, place, crop):
    line = noise((64,))
    cuts = list(cuts_px(tuple(layers), crop))
    # One more, and as much less of what is cut next.
    cuts[place] += 1
    cuts[place + 1] -= 2
    assert cuts[place + 1] >= 0
    found = compute(layers, line, (0,), residues, cuts=cuts)
    assert (found != compute(layers, line, (0,), residues)[crop : 64 - crop]).any()


def test_cuts_of_the_default_network():
    """Worked out by hand: of 96 px 94 are needless before the last two convolutions, 47 above the last up-sampling."""
    layers = unet(5, convs=2, kernel=3, same=True, nearest=False)
    assert cuts_px(tuple(layers), 96) == (4, 2, 2, 3, 2)
    assert cuts_px(tuple(layers), 0) == (0, 0, 0, 0, 0)
    assert cuts_px(tuple(PAPER), 2) == (0, 0, 0, 1, 0)


def test_a_network_whose_margins_differ_is_our_mistake():
    with pytest.raises(ValueError, match="loses 1 px, an odd number"):
        margin_px([Conv(2)])
