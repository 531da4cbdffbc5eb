import json
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from unet_ray.numerics.metrics import score_section
from unet_ray.numerics.stack_scores import combine
from unet_ray.numerics.thresholds import THRESHOLDS, WARPING_THRESHOLDS


def a_section(seed, side=40):
    """Cells between wavy membranes, and a noisy prediction of them."""
    rng = np.random.default_rng(seed)
    height = ndimage.gaussian_filter(rng.normal(size=(side, side)), 2)
    truth = np.abs(height) > 0.5 * height.std()
    noise = ndimage.gaussian_filter(rng.normal(size=truth.shape), 1)
    grey = ndimage.gaussian_filter(truth.astype(float), 1) + 0.1 / 0.28 * noise
    return np.clip(grey, 0, 1).astype(np.float32), truth


@pytest.fixture(scope="module")
def sections():
    return [score_section(*a_section(seed, side)) for seed, side in enumerate((40, 30, 52))]


def test_the_stack_is_not_trivial(sections):
    stack = combine(sections)
    assert 0.1 < stack.v_rand < 1
    assert 0 < stack.warping_error < 0.1
    assert 0 < stack.v_rand_threshold < 0.9
    assert stack.v_rand_threshold != stack.v_info_threshold
    assert stack.voi_split > 0 < stack.voi_merge


def test_each_score_is_the_best_of_its_curve(sections):
    stack = combine(sections)
    c = stack.curves
    assert stack.v_rand == c["v_rand"].max() == c["v_rand"][stack.v_rand_threshold == THRESHOLDS]
    assert stack.v_info == c["v_info"].max() == c["v_info"][stack.v_info_threshold == THRESHOLDS]
    assert stack.v_rand_unthinned == c["v_rand_unthinned"].max()
    assert stack.v_info_unthinned == c["v_info_unthinned"].max()
    assert stack.rand_error == 1 - c["rand_f"].max()
    assert stack.pixel_error == 1 - c["pixel_f"].max()
    assert stack.pixel_mismatch == pytest.approx(c["pixel_mismatch"][5])
    assert stack.voi == c["voi"].min() == c["voi"][stack.voi_threshold == THRESHOLDS]
    assert stack.voi == pytest.approx(stack.voi_split + stack.voi_merge)
    at = WARPING_THRESHOLDS.tolist().index(stack.warping_threshold)
    assert stack.warping_error == c["warping_error"].min() == c["warping_error"][at]
    pixels = 40**2 + 30**2 + 52**2
    assert stack.warping_error == pytest.approx((stack.warping_split_px + stack.warping_merge_px) / pixels)


@pytest.mark.parametrize(
    ("rand", "info", "place"),
    [
        # Real ones of two validation sections: 0.8 is best by 0.0001, at the edge of what serves.
        (
            [0.08, 0.3027, 0.6596, 0.859, 0.8871, 0.9225, 0.9777, 0.9743, 0.9812, 0.9347, 0.6931],
            [0.0, 0.7546, 0.9011, 0.9548, 0.9641, 0.9717, 0.9825, 0.9797, 0.9791, 0.9694, 0.8374],
            7,
        ),
        ([1.0, 0.9, 0, 0, 0, 0, 0, 0, 0, 0, 0], [0.0] * 11, 0),  # at the end there is no neighbour
        ([0.5] * 11, [0.5] * 11, 1),
        ([math.nan] * 11, [math.nan] * 11, 0),
    ],
)
def test_a_threshold_for_others_is_the_middle_of_three_that_are_good(sections, rand, info, place):
    curves = {"v_rand": np.array(rand), "v_info": np.array(info)}
    assert replace(combine(sections), curves=curves).common_threshold == place


def test_the_rows_average_to_the_stack(sections):
    stack = combine(sections)
    for name in ("v_rand", "v_info", "voi_split", "voi_merge", "adapted_rand_error"):
        assert np.mean([row[name] for row in stack.sections]) == pytest.approx(getattr(stack, name)), name
    for name in ("warping_split_px", "warping_merge_px"):
        assert sum(row[name] for row in stack.sections) == getattr(stack, name)
    weights = [40**2, 30**2, 52**2]
    mismatch = np.average([row["pixel_mismatch"] for row in stack.sections], weights=weights)
    assert mismatch == pytest.approx(stack.pixel_mismatch)


def test_pixels_and_pairs_are_counted_over_the_stack_not_averaged(sections):
    """Sections side by side, a membrane between them, are one image with the same pixel counts."""
    images = [a_section(seed) for seed in (3, 4)]
    apart = combine([score_section(*image) for image in images])
    wall = np.zeros((40, 1))
    probability = np.hstack([images[0][0], wall, images[1][0]]).astype(np.float32)
    truth = np.hstack([images[0][1], wall, images[1][1]]).astype(bool)
    whole = combine([score_section(probability, truth)])
    assert apart.pixel_error == pytest.approx(whole.pixel_error, abs=1e-15)
    # No wrong pair is added, nor a right one, by looking at both sides of a wall at once.
    for name in ("rand_f", "rand_f_choose_2"):
        np.testing.assert_allclose(apart.curves[name], whole.curves[name], rtol=1e-13)


def test_the_order_changes_the_rows_only(sections):
    there, back = combine(sections), combine(sections[::-1])
    assert back.sections == tuple(
        {name: pytest.approx(value) for name, value in row.items()} for row in there.sections[::-1]
    )
    assert back.summary() == pytest.approx(there.summary(), rel=1e-12)


def test_a_section_given_twice_changes_no_mean(sections):
    once, twice = combine(sections), combine([*sections, *sections]).summary()
    expected = once.summary() | {
        "warping_split_px": 2 * once.warping_split_px,
        "warping_merge_px": 2 * once.warping_merge_px,
    }
    assert twice == pytest.approx(expected, rel=1e-12)


def test_without_warping_counts_there_is_no_warping_error(sections):
    quick = score_section(*a_section(0), warping=False)
    stack = combine([sections[1], quick])
    assert math.isnan(stack.warping_error)
    assert stack.summary()["warping_error"] is None
    assert "warping_error" not in stack.curves
    assert "warping_split_px" not in stack.sections[0]


def test_a_lost_section_is_counted_beside_the_warping_error():
    truth = np.ones((8, 8), bool)
    nothing = np.zeros((8, 8), np.float32)
    lost, rightly_empty = score_section(nothing, truth), score_section(nothing, ~truth)
    stack = combine([lost, rightly_empty, score_section(truth.astype(np.float32), truth)])
    assert (stack.warping_error, stack.warping_empty_sections) == (0, 1)


def test_cells_in_the_wrong_place_are_not_none():
    truth = np.zeros((8, 8), bool)
    truth[:, :3] = True
    displaced = score_section(truth[:, ::-1].astype(np.float32), truth)
    assert displaced.tp[0] == 0
    assert combine([displaced]).warping_empty_sections == 0


def test_dice_of_a_stack_without_membrane():
    cells = np.ones((8, 8), bool)
    assert combine([score_section(cells.astype(np.float32), cells)]).dice == 1
    assert combine([score_section(np.zeros((8, 8), np.float32), cells)]).dice == 0


def test_it_becomes_json(sections):
    blank = score_section(np.zeros((4, 4), np.float32), np.zeros((4, 4), bool))
    written = json.loads(json.dumps(combine([*sections, blank]).to_json(), allow_nan=False))
    assert written["v_rand"] == pytest.approx(combine(sections).v_rand, rel=1e-12)
    assert len(written["curves"]["thresholds"]) == len(written["curves"]["v_rand"]) == 11
    assert len(written["curves"]["warping_thresholds"]) == len(written["curves"]["warping_error"]) == 10
    assert written["sections"][3]["v_rand"] is None
    json.dumps(combine([blank]).to_json(), allow_nan=False)


def test_squares_of_many_large_sections_do_not_overflow(sections):
    """3e9 pixels is what one section may have; a stack of four such would pass 64 bits if summed so."""
    from dataclasses import replace

    large = np.full(11, 3_000_000_000**2)
    sums = replace(
        sections[0].unthinned,
        pixels=np.full(11, 3_000_000_000),
        membrane=np.zeros(11, np.int64),
        true_sq=large,
        predicted_sq=large,
        joint_sq=large,
    )
    section = replace(sections[0], unthinned=sums)
    assert combine([section] * 4).rand_error == 0


def test_no_section_is_our_own_mistake():
    with pytest.raises(ValueError, match="at least one section"):
        combine([])
