"""Intervals equal those of a plain loop that joins every resample anew."""

import numpy as np
import pytest
from scipy import ndimage

from unet_ray.numerics.bootstrap import bootstrap, percentile_interval, resample_weights
from unet_ray.numerics.metrics import score_section
from unet_ray.numerics.stack_scores import combine

SCORES = [
    *("v_rand", "v_info", "v_rand_unthinned", "v_info_unthinned", "rand_error", "rand_error_choose_2"),
    *("pixel_error", "pixel_mismatch", "adapted_rand_error", "dice", "voi", "warping_error"),
]


def a_section(seed, side=40, *, warping=True):
    """Cells between wavy membranes and a noisy prediction of them, worse in every section."""
    rng = np.random.default_rng(seed)
    height = ndimage.gaussian_filter(rng.normal(size=(side, side)), 2)
    truth = np.abs(height) > 0.5 * height.std()
    noise = ndimage.gaussian_filter(rng.normal(size=truth.shape), 1)
    grey = ndimage.gaussian_filter(truth.astype(float), 1) + (0.1 + 0.1 * seed) / 0.28 * noise
    return score_section(np.clip(grey, 0, 1).astype(np.float32), truth, warping=warping)


@pytest.fixture(scope="module")
def sections():
    return [a_section(seed, side) for seed, side in enumerate((40, 30, 52, 36))]


BLANK = score_section(np.zeros((8, 8), np.float32), np.zeros((8, 8), bool))


def resampled(sections, resamples, seed):
    """The stacks that were drawn, joined anew."""
    weights = np.concatenate(list(resample_weights(len(sections), resamples, seed))).astype(int)
    return [combine([sections[i] for i in np.repeat(np.arange(len(sections)), row)]) for row in weights]


def brute_force(sections, resamples, seed, fixed):
    stacks = resampled(sections, resamples, seed)
    values = {name: [getattr(stack, name) for stack in stacks] for name in SCORES}
    for name in ("v_rand", "v_info", "pixel_mismatch"):
        values[f"{name}_at_fixed_threshold"] = [stack.at_threshold(fixed)[name] for stack in stacks]
    # float turns the None of an undefined score into NaN.
    return {name: tuple(np.nanpercentile(np.array(found, np.float64), [2.5, 97.5])) for name, found in values.items()}


@pytest.mark.parametrize("blank", [False, True], ids=["all have cells", "one has none"])
def test_it_equals_a_loop_over_resamples(sections, blank):
    # 150 are not a whole number of what is scored together.
    given = [*sections, BLANK] if blank else sections
    found = bootstrap(given, resamples=150, seed=3, fixed=4)
    expected = brute_force(given, 150, 3, 4)
    assert found.keys() == expected.keys()
    for name, interval in expected.items():
        assert found[name] == pytest.approx(interval, rel=1e-9, abs=1e-12), name
        assert interval[0] < interval[1], name  # not trivial


def test_stacks_without_the_score_are_left_out():
    values = np.random.default_rng(0).random(99)
    expected = tuple(np.percentile(values, [2.5, 97.5]))
    assert percentile_interval(np.insert(values, [0, 50, 70], np.nan)) == pytest.approx(expected)
    assert percentile_interval(np.full(3, np.nan)) is None


def test_sections_are_drawn_with_replacement():
    drawn = np.concatenate(list(resample_weights(5, 2000)))
    assert drawn.shape == (2000, 5)
    assert (drawn.sum(axis=1) == 5).all()
    # Each section once in a stack of five on average, and missing from (4/5)^5 of them.
    assert drawn.mean(axis=0) == pytest.approx(np.ones(5), abs=0.1)
    assert (drawn == 0).mean() == pytest.approx(0.8**5, abs=0.02)


def test_thresholds_are_chosen_in_each_resample(sections):
    chosen = {stack.v_rand_threshold for stack in resampled(sections, 150, 3)}
    assert len(chosen) > 1
    # At one threshold the best cannot be better.
    found = bootstrap(sections, resamples=150, seed=3, fixed=4)
    assert found["v_rand"][0] > found["v_rand_at_fixed_threshold"][0]


def test_the_stack_lies_inside(sections):
    stack, found = combine(sections), bootstrap(sections)
    assert set(found) == set(SCORES)
    for name, (low, high) in found.items():
        assert low <= getattr(stack, name) <= high, name


def test_seed_and_order(sections):
    assert bootstrap(sections) == bootstrap(sections)
    assert bootstrap(sections, seed=1) != bootstrap(sections)
    assert bootstrap(sections, resamples=10) != bootstrap(sections)


def test_one_section_has_no_interval(sections):
    assert bootstrap(sections[:1], fixed=2) == dict.fromkeys(bootstrap(sections, fixed=2))


def test_sections_without_cells_count_for_pixels_alone(sections):
    found = bootstrap([sections[0], BLANK], fixed=4)
    undefined = {name for name, interval in found.items() if interval is None}
    at_fixed = {f"{name}_at_fixed_threshold" for name in ("v_rand", "v_info")}
    assert undefined == {*SCORES} - {"pixel_error", "pixel_mismatch", "dice", "warping_error"} | at_fixed
    assert bootstrap([BLANK, BLANK])["v_rand"] is None
    assert bootstrap([BLANK, BLANK])["pixel_mismatch"] == (0, 0)


def test_what_was_not_asked_for_has_none(sections):
    assert "warping_error" not in bootstrap([a_section(0, warping=False), sections[1]])


def test_nothing_to_draw_is_our_own_mistake(sections):
    with pytest.raises(ValueError, match="0 sections"):
        bootstrap([])
    with pytest.raises(ValueError, match="0 resamples"):
        bootstrap(sections, resamples=0)
