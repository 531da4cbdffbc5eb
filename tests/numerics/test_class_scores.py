"""Scores of classes equal those counted pixel by pixel, and their intervals those of a plain loop."""

import numpy as np
import pytest

from unet_ray.errors import VolumeError
from unet_ray.numerics.bootstrap import resample_weights
from unet_ray.numerics.class_scores import bootstrap_classes, class_scores, confusion

K = 4


@pytest.fixture(scope="module")
def pairs():
    """Truth and prediction of five sections; class 3 is in the last two alone, in the prediction of the last only."""
    rng = np.random.default_rng(2)
    found = []
    for z in range(5):
        truth = rng.integers(0, 4 if z == 3 else 3, (20, 24), dtype=np.uint8)
        predicted = np.where(rng.random(truth.shape) < 0.1 * (z + 1), rng.integers(0, 3, truth.shape), truth)
        found.append((predicted, truth))
    found[4][0][:2] = 3
    return found


@pytest.fixture(scope="module")
def counts(pairs):
    return np.stack([confusion(*pair)[:K, :K] for pair in pairs])


def plainly(predicted, truth):
    scores = {"pixel_mismatch": np.mean(predicted != truth)}
    for c in range(K):
        both, a, b = np.sum((predicted == c) & (truth == c)), np.sum(predicted == c), np.sum(truth == c)
        scores[f"dice_{c}"] = 2 * both / (a + b) if a + b else np.nan
        scores[f"iou_{c}"] = both / (a + b - both) if a + b else np.nan
    for name in ("dice", "iou"):
        scores[f"mean_{name}"] = np.nanmean([scores[f"{name}_{c}"] for c in range(K)])
    return scores


def test_pixel_by_pixel(pairs, counts):
    of_sections = class_scores(counts)
    for z, pair in enumerate(pairs):
        expected = plainly(*pair)
        assert {name: values[z] for name, values in of_sections.items()} == pytest.approx(expected, nan_ok=True)
    whole = plainly(np.stack([p for p, _ in pairs]), np.stack([t for _, t in pairs]))
    assert class_scores(counts.sum(axis=0)) == pytest.approx(whole)
    assert 0 < whole["dice_3"] < 0.9
    assert np.isnan(of_sections["dice_3"][0])


def test_ignored_pixels_are_not_counted(pairs):
    predicted, truth = pairs[0]
    ignore = np.zeros(truth.shape, bool)
    ignore[:, 3:9] = True
    expected = confusion(predicted[:, ~ignore[0]], truth[:, ~ignore[0]])
    assert np.array_equal(confusion(predicted, truth, ignore), expected)


def test_intervals_equal_a_loop_over_resamples(pairs, counts):
    found = bootstrap_classes(counts, resamples=100, seed=1)
    stacks = []
    for row in np.concatenate(list(resample_weights(5, 100, 1))).astype(int):
        drawn = np.repeat(np.arange(5), row)
        stacks.append(plainly(np.stack([pairs[i][0] for i in drawn]), np.stack([pairs[i][1] for i in drawn])))
    assert found.keys() == stacks[0].keys()
    for name, interval in found.items():
        expected = np.nanpercentile([stack[name] for stack in stacks], [2.5, 97.5])
        assert interval == pytest.approx(tuple(expected)), name
        assert interval[0] < interval[1]
    # Only one of these has class 3.
    assert bootstrap_classes(counts[:4], resamples=100)["dice_3"] is None
    assert set(bootstrap_classes(counts[:1], resamples=100).values()) == {None}


@pytest.mark.parametrize("values", [np.array([[0.5]]), np.array([[32]]), np.array([[-1]])])
def test_what_are_no_indices(values):
    with pytest.raises(VolumeError, match=r"whole numbers from 0 to 31, but this one has (float|int)64 values"):
        confusion(values, np.zeros((1, 1), np.uint8))
