"""Every metric against the ISBI 2012 challenge's own code; origin of the values: tests/golden/README.md."""

import functools
import json
from pathlib import Path

import numpy as np
import pytest
import tifffile

from unet_ray.numerics.border_thinning import thin_borders
from unet_ray.numerics.contingency import OverlapSums, label_cells
from unet_ray.numerics.metrics import score_section
from unet_ray.numerics.partition_scores import (
    adapted_rand_error,
    f_score,
    precision_recall,
    rand_pairs,
    split_merge_entropy,
)
from unet_ray.numerics.stack_scores import combine
from unet_ray.numerics.thresholds import HALF, THRESHOLDS, WARPING_THRESHOLDS, cell_probability
from unet_ray.numerics.warping import KINDS, warp, warping_px

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = json.loads((GOLDEN / "golden.json").read_text())
DEGENERATE = ("one_cell_identical", "one_cell_split", "no_cell_gt")
SYNTHETIC = sorted(set(CASES["cases"]) - set(DEGENERATE))
ISBI = ("isbi_crop_topology", "isbi_crop_blurnoise", "isbi_full_blurnoise")


def read(folder, name):
    image = tifffile.imread(folder / name)
    return image[None] if image.ndim == 2 else image


@functools.cache
def load(folder, name):
    case = json.loads((folder / "golden.json").read_text())["cases"][name]
    truth = read(folder, case["ground_truth"]) > 0
    return case, truth, cell_probability(read(folder, case["proposal"]), "interior")


@functools.cache
def scored(folder, name):
    case, truth, probability = load(folder, name)
    return case, [score_section(p, t) for p, t in zip(probability, truth, strict=True)]


@pytest.fixture(params=[*SYNTHETIC, *(pytest.param(n, marks=pytest.mark.real_data) for n in ISBI)])
def folder_and_name(request):
    """One golden case; those derived from the ISBI data lie outside the repository."""
    folder = request.getfixturevalue("shared_golden") if request.param in ISBI else GOLDEN
    return folder, request.param


def near(expected):
    return pytest.approx(expected, rel=0, abs=1e-9)


def test_the_set_is_complete():
    assert len(SYNTHETIC) == 18
    assert CASES["thresholds"] == THRESHOLDS.tolist()
    assert CASES["warping_thresholds"] == WARPING_THRESHOLDS.tolist()


def test_pixel_counts(folder_and_name):
    case, sections = scored(*folder_and_name)
    details = case["java_details"]
    for name in ("tp", "fp", "fn", "tn"):
        assert np.sum([getattr(s, name) for s in sections], axis=0).tolist() == details[f"pixel.{name}"]
    stack = combine(sections)
    assert stack.curves["pixel_f"] == near(details["pixel.f_per_threshold"])
    assert stack.curves["pixel_mismatch"] == near(details["pixel.mismatch_fraction_per_threshold"])
    assert stack.pixel_error == near(case["java"]["pixel_error_isbi2012"])
    assert stack.pixel_mismatch == near(case["java"]["pixel_mismatch_fraction_at_0.5"])
    tn, wrong = details["pixel.tn"][HALF], details["pixel.fp"][HALF] + details["pixel.fn"][HALF]
    assert stack.dice == near(2 * tn / (2 * tn + wrong) if wrong else 1.0)


def summed_pairs(sums):
    return [pairs.sum(axis=0) for pairs in rand_pairs(OverlapSums.stacked(sums))]


def test_rand(folder_and_name):
    case, sections = scored(*folder_and_name)
    details, java, stack = case["java_details"], case["java"], combine(sections)
    tp, fp, fn = summed_pairs([s.unthinned for s in sections])
    precision, recall = precision_recall(tp, fp, fn)
    assert precision == near(details["rand_fg.precision"])
    assert recall == near(details["rand_fg.recall"])
    indices = [1 - sum(rand_pairs(s.unthinned)[1:]) / s.unthinned.pixels**2 for s in sections]
    assert np.mean(indices, axis=0) == near(details["rand_fg.rand_index"])
    assert stack.curves["rand_f"] == near(details["rand_fg.f_per_threshold"])
    assert stack.curves["rand_f_choose_2"] == near(details["rand_fg_2012_choose2.f_per_threshold"])
    assert stack.rand_error == near(java["rand_error_fg_isbi2012"])
    assert stack.rand_error_choose_2 == near(java["rand_error_fg_2012_choose2"])


def test_v_rand_after_thinning(folder_and_name):
    case, sections = scored(*folder_and_name)
    details, java, stack = case["java_details"], case["java"], combine(sections)
    tp, fp, fn = summed_pairs([s.thinned for s in sections])
    precision, recall = precision_recall(tp, fp, fn)
    assert precision == near(details["v_rand_thin.precision_micro"])
    assert recall == near(details["v_rand_thin.recall_micro"])
    assert f_score(tp, fp, fn) == near(details["v_rand_thin.f_per_threshold_micro"])
    assert f_score(tp, fp, fn).max() == near(java["v_rand_thin_max_micro"])
    assert stack.curves["v_rand"] == near(details["v_rand_thin.f_per_threshold_macro"])
    assert stack.v_rand == near(java["v_rand_thin_max"])
    # Of thresholds that are equally good to the last digit either may be called the best.
    assert stack.curves["v_rand"][details["v_rand_thin.best_threshold_index"]] == near(stack.v_rand)
    assert stack.curves["v_rand"][THRESHOLDS.tolist().index(stack.v_rand_threshold)] == stack.v_rand


def test_information(folder_and_name):
    case, sections = scored(*folder_and_name)
    details, java, stack = case["java_details"], case["java"], combine(sections)
    assert stack.curves["voi"] == near(details["vi_fg.per_threshold"])
    assert stack.curves["voi_split"] == near(details["vi_fg.split_H_S_given_T_nats"])
    assert stack.curves["voi_merge"] == near(details["vi_fg.merge_H_T_given_S_nats"])
    assert stack.voi == near(java["vi_fg_min"])
    assert stack.curves["v_info_unthinned"] == near(details["v_info_fg.f_per_threshold"])
    assert stack.v_info_unthinned == near(java["v_info_fg_max"])
    assert stack.curves["v_info"] == near(details["v_info_thin.f_per_threshold"])
    assert stack.v_info == near(java["v_info_thin_max"])


def test_warping(folder_and_name):
    case, sections = scored(*folder_and_name)
    details, stack = case["java_details"], combine(sections)
    counts = np.sum([s.warping for s in sections], axis=0)
    for k, kind in enumerate(KINDS):
        assert counts[:, k].tolist() == details[f"warping.radius20.{kind}_pixels"], kind
    assert stack.curves["warping_error"] == near(details["warping.radius20.split_merge_error"])
    assert stack.warping_error == near(case["java"]["warping_error_isbi2012"])
    pixels = sum(s.shape[0] * s.shape[1] for s in sections)
    assert counts.sum(axis=1) / pixels == near(details["warping_classic.per_threshold"])
    assert counts.sum(axis=1).min() / pixels == near(case["java"]["warping_classic_min"])


@pytest.mark.parametrize("name", SYNTHETIC)
def test_warping_classified_in_the_whole_section(name):
    case, truth, probability = load(GOLDEN, name)
    counts = sum(warping_px(p, t, radius=0) for p, t in zip(probability, truth, strict=True))
    for k, kind in enumerate(KINDS):
        assert counts[:, k].tolist() == case["java_details"][f"warping.radius_whole.{kind}_pixels"], kind
    changed = counts[:, KINDS.index("split")] + counts[:, KINDS.index("merge")]
    assert changed / truth.size == near(case["java_details"]["warping.radius_whole.split_merge_error"])


def test_adapted_rand_error(folder_and_name):
    case, sections = scored(*folder_and_name)
    expected = case.get("scikit_image_at_0.5_per_slice")
    if not expected:
        pytest.skip("no scikit-image values are stored for this case")
    ours = [adapted_rand_error(s.unthinned)[HALF] for s in sections]
    assert ours == near([row["adapted_rand_error"] for row in expected])
    assert combine(sections).adapted_rand_error == near(np.mean(ours))


@pytest.mark.parametrize("name", CASES["intermediate_images_at_0.5"]["files"])
def test_images_pixel_by_pixel(name):
    files = CASES["intermediate_images_at_0.5"]["files"][name]
    _, truth, probability = load(GOLDEN, name)
    thinned, warped = read(GOLDEN, files["thinned"]), read(GOLDEN, files["warped_gt"])
    for z, (cell, p) in enumerate(zip(truth, probability, strict=True)):
        np.testing.assert_array_equal(thin_borders(label_cells(p > 0.5)) > 0, thinned[z] > 0)
        np.testing.assert_array_equal(warp(cell, p, 0.5), warped[z] > 0)


# Degenerate cases: the reference gives 0, NaN or an artefact; these are our own rules.


def test_a_perfect_single_cell_has_full_scores():
    _, sections = scored(GOLDEN, "one_cell_identical")
    stack = combine(sections)
    assert (stack.v_rand, stack.v_info, stack.v_info_unthinned) == (1, 1, 1)
    assert (stack.rand_error, stack.voi, stack.pixel_error, stack.warping_error) == (0, 0, 0, 0)


def test_a_single_cell_split_in_two_has_no_information_score_and_one_split():
    case, sections = scored(GOLDEN, "one_cell_split")
    stack = combine(sections)
    assert stack.v_info == 0
    assert stack.v_rand == near(case["java"]["v_rand_thin_max"])
    assert stack.rand_error == near(case["java"]["rand_error_fg_isbi2012"])
    split, _ = split_merge_entropy(sections[0].unthinned)
    assert split == near(case["java_details"]["vi_fg.split_H_S_given_T_nats"])
    # The reference calls the pixel an object addition, its display range of a constant image being wrong.
    assert (stack.warping_split_px, stack.warping_merge_px) == (1, 0)


def test_without_a_true_cell_there_is_nothing_to_compare():
    _, empty = scored(GOLDEN, "no_cell_gt")
    stack = combine(empty)
    for name in ("v_rand", "v_info", "v_rand_threshold", "voi", "rand_error", "adapted_rand_error"):
        assert np.isnan(getattr(stack, name)), name
        assert stack.summary()[name] is None
    assert stack.pixel_error == 1
    assert stack.pixel_mismatch == near(0.849365234375)
    # Beside a section with cells it changes nothing but what is counted in pixels.
    _, good = scored(GOLDEN, "D_pinhole")
    alone, both = combine(good), combine([*empty, *good])
    assert (both.v_rand, both.v_info, both.rand_error) == (alone.v_rand, alone.v_info, alone.rand_error)
    assert both.sections[0]["v_rand"] != both.sections[0]["v_rand"]  # NaN
    assert both.pixel_mismatch > alone.pixel_mismatch


def test_a_prediction_of_membrane_everywhere_is_reported_beside_its_warping_error():
    _, sections = scored(GOLDEN, "A_all_membrane")
    stack = combine(sections)
    assert (stack.warping_error, stack.warping_empty_sections) == (0, 1)
    _, sections = scored(GOLDEN, "A_shift1")
    assert combine(sections).warping_empty_sections == 0
