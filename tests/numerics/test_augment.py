from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unet_ray.config.recipe import RECIPES, Recipe, WeightMap, recipe
from unet_ray.numerics.augment import apply, coordinate_field, whole_section
from unet_ray.numerics.draw import draw
from unet_ray.numerics.labels import SectionLabels, membrane_and_cells
from unet_ray.numerics.weight_map import weight_map

WEIGHTING = WeightMap(border_sigma_px=2.0)


def _section(seed=0, shape=(64, 80), channels=1):
    """Grey levels and labels of a section: stripes of cells, one or more pixels of membrane between them."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: shape[0], : shape[1]]
    interior = (((x + 3 * np.sin(y / 7)) % 11) > 3) & (y % 17 > 1)
    image = np.clip(interior * 120 + rng.normal(60, 12, (channels, *shape)), 0, 255).astype(np.uint8)
    return image, membrane_and_cells(interior, "interior")


def _draw(named, shape=(64, 80), patch_px=32, variant=0, **numbers):
    numbers = {"seed": 7, "stack": 0, "section": 3} | numbers
    return draw(named, variant=variant, section_shape=shape, patch_px=patch_px, **numbers)


def _same(one, other):
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ("image", "label", "weight"))


# The empty recipe, flips and quarter turns move whole pixels: they must equal NumPy exactly.


@settings(deadline=None, max_examples=60)
@given(
    height=st.integers(1, 40), width=st.integers(1, 40), patch_px=st.integers(1, 70),
    margin_px=st.integers(0, 30), pad_px=st.integers(0, 50), variant=st.integers(0, 99),
    flips=st.tuples(st.booleans(), st.booleans()), turns=st.integers(0, 3),
)  # fmt: skip
def test_whole_pixel_geometry_is_numpys(height, width, patch_px, margin_px, pad_px, variant, flips, turns):
    image, labels = _section(shape=(height, width), channels=2)
    empty = Recipe.model_validate({"crop": {"pad_px": pad_px}})
    drawn = _draw(empty, (height, width), patch_px, variant, margin_px=margin_px)
    drawn = drawn.model_copy(update={"flip": flips, "quarter_turns": turns})
    patch = apply(drawn, image, labels, weighting=WEIGHTING)

    def expected(array, margin):
        far = 200
        around = np.pad(array, far, mode="reflect")
        side = patch_px + 2 * margin
        y, x = (corner + far - margin for corner in drawn.corner)
        turned = np.rot90(around[y : y + side, x : x + side], turns)
        return np.flip(turned, [axis for axis in (0, 1) if flips[axis]])

    for channel in (0, 1):
        np.testing.assert_array_equal(patch.image[channel], expected(image[channel], margin_px))
    np.testing.assert_array_equal(patch.label, expected(labels.class_map, 0))
    np.testing.assert_array_equal(
        patch.weight, weight_map(expected(labels.cell_ids, 10), patch.label, weighting=WEIGHTING)
    )
    for corner, side in zip(drawn.corner, (height, width), strict=True):
        ends = sorted((-pad_px, side + pad_px - patch_px))
        assert ends[0] <= corner <= ends[1]


def test_a_patch_larger_than_the_section_holds_all_of_it():
    ids = np.arange(1, 13).reshape(3, 4)
    labels = SectionLabels(ids.astype(np.uint8), np.zeros((3, 4), np.int32))
    for variant in range(20):
        drawn = _draw(Recipe(), (3, 4), patch_px=9, variant=variant)
        patch = apply(
            drawn,
            ids.astype(np.uint8)[None],
            labels,
            weighting=WeightMap(border_weight=0),
            class_weights=np.ones(13),
        )
        np.testing.assert_array_equal(np.unique(patch.label), np.arange(1, 13))
    corners = np.array([_draw(Recipe(), (3, 4), patch_px=9, variant=variant).corner for variant in range(200)])
    assert set(corners[:, 0]) == set(range(-6, 1))
    assert set(corners[:, 1]) == set(range(-5, 1))


def test_free_rotation_agrees_with_quarter_turns():
    image, labels = _section()
    drawn = _draw(Recipe())
    turned = apply(drawn.model_copy(update={"quarter_turns": 1}), image, labels, weighting=WEIGHTING)
    rotated = apply(drawn.model_copy(update={"rotation_degrees": 90.0}), image, labels, weighting=WEIGHTING)
    np.testing.assert_allclose(turned.image.astype(int), rotated.image, atol=1)
    np.testing.assert_array_equal(turned.label, rotated.label)


def test_scale_above_one_magnifies():
    labels = membrane_and_cells(np.ones((64, 80)), "interior")
    image = np.zeros((1, 64, 80), np.uint8)
    image[0, 28:36, 36:44] = 255
    drawn = _draw(Recipe()).model_copy(update={"corner": (16, 24), "scale": 2.0})
    patch = apply(drawn, image, labels, weighting=WEIGHTING)
    assert (patch.image > 127).sum() == 16 * 16


def test_displacements_add_up_and_the_coarse_grid_spans_the_image():
    nodes = np.random.default_rng(0).normal(0, 3, (2, 3, 3))
    plain = _draw(Recipe(), patch_px=33, margin_px=9)

    def moved(**changes):
        places = coordinate_field(plain.model_copy(update=changes), 9).coordinates()
        return places - coordinate_field(plain, 9).coordinates()

    fine = {"elastic_alpha": 200.0, "elastic_sigma_px": 9.0, "elastic_key": 5}
    coarse = {"coarse_displacement": nodes.tolist()}
    np.testing.assert_allclose(moved(**coarse)[:, ::25, ::25], nodes, atol=1e-4)
    np.testing.assert_allclose(moved(**coarse, **fine), moved(**coarse) + moved(**fine), atol=1e-4)
    assert np.abs(moved(**fine)).max() > 1


# Intensity: the image only.


def test_grey_level_changes_leave_labels_alone():
    image, labels = _section()
    image_only = {
        name: getattr(RECIPES["default"], name)
        for name in ("gamma", "contrast", "brightness", "blur", "gaussian_noise")
    }
    certain = Recipe(**{name: entry.model_copy(update={"probability": 1.0}) for name, entry in image_only.items()})
    plain = apply(_draw(Recipe()), image, labels, weighting=WEIGHTING)
    changed = apply(_draw(certain), image, labels, weighting=WEIGHTING)
    np.testing.assert_array_equal(changed.label, plain.label)
    np.testing.assert_array_equal(changed.weight, plain.weight)
    assert (changed.image != plain.image).mean() > 0.5


@pytest.mark.parametrize(
    ("change", "black", "grey", "white"),
    [({"brightness": -20}, 0, 80, 235), ({"contrast": 1.2}, 0, 95, 255), ({"gamma": 0.5}, 0, 160, 255),
     ({"gamma": 2.0, "contrast": 0.5, "brightness": 10}, 74, 93, 201)],
)  # fmt: skip
def test_grey_levels(change, black, grey, white):
    image = np.array([[[0, 100, 255]]], np.uint8)
    labels = membrane_and_cells(np.ones((1, 3)), "interior")
    drawn = _draw(Recipe(), (1, 3), patch_px=3).model_copy(update={"corner": (0, 0)} | change)
    found = apply(drawn, image, labels, weighting=WEIGHTING).image[0, 0]
    np.testing.assert_array_equal(found, [black, grey, white])


def test_blur_sees_beyond_the_patch():
    image, labels = _section()
    drawn = _draw(Recipe()).model_copy(update={"corner": (10, 20), "blur_sigma_px": 1.5})
    small = apply(drawn, image, labels, weighting=WEIGHTING).image
    large = apply(drawn.model_copy(update={"margin_px": 9}), image, labels, weighting=WEIGHTING).image
    np.testing.assert_array_equal(large[:, 9:-9, 9:-9], small)


def test_context_sections_are_blurred_apart():
    image, labels = _section(channels=3)
    drawn = _draw(Recipe()).model_copy(update={"blur_sigma_px": 1.5})
    together = apply(drawn, image, labels, weighting=WEIGHTING).image
    alone = [apply(drawn, image[[channel]], labels, weighting=WEIGHTING).image[0] for channel in range(3)]
    np.testing.assert_array_equal(together, alone)


def test_context_sections_share_field_and_grey_levels_but_not_noise():
    image, labels = _section()
    drawn = _draw(RECIPES["default"]).model_copy(
        update={"noise": "none", "noise_sd": 0, "elastic_alpha": 200.0, "elastic_sigma_px": 9.0}
    )
    same = apply(drawn, np.repeat(image, 3, axis=0), labels, weighting=WEIGHTING).image
    np.testing.assert_array_equal(same[0], same[2])
    noisy = drawn.model_copy(update={"noise": "gaussian", "noise_sd": 9})
    same = apply(noisy, np.repeat(image, 3, axis=0), labels, weighting=WEIGHTING).image
    assert (same[0] != same[2]).mean() > 0.5


# Drawing.


@pytest.mark.parametrize("number", ["seed", "stack", "section", "variant"])
def test_every_number_counts(number):
    draws = [_draw(RECIPES["notebook"], **{number: value}) for value in range(50)]
    assert len({drawn.elastic_key for drawn in draws}) == 50
    assert len({drawn.noise_key for drawn in draws}) == 50
    assert all(drawn.elastic_key < 2**53 > drawn.noise_key for drawn in draws)  # whole in JSON


def test_transforms_are_drawn_independently():
    draws = [_draw(RECIPES["default"], variant=v) for v in range(400)]
    neutral = {"rotation_degrees": 0, "scale": 1, "gamma": 1, "contrast": 1, "noise": "none"}  # each at 0.5
    drawn = {name: np.array([getattr(one, name) != value for one in draws]) for name, value in neutral.items()}
    agreement = np.array([[np.mean(one == other) for one in drawn.values()] for other in drawn.values()])
    assert np.abs(agreement - 0.5 - np.eye(5) / 2).max() < 0.12


def test_notebook_draws_what_the_notebook_draws():
    draws = [_draw(RECIPES["notebook"], (512, 512), 512, variant=v) for v in range(2000)]
    flips = [drawn.flip for drawn in draws]
    for kind in ((False, False), (False, True), (True, False), (True, True)):
        assert abs(flips.count(kind) / 2000 - 0.25) < 0.04
    gaussian = [drawn for drawn in draws if drawn.noise == "gaussian"]
    uniform = [drawn for drawn in draws if drawn.noise == "uniform"]
    assert len(gaussian) + len(uniform) == 2000
    assert abs(len(gaussian) / 2000 - 0.5) < 0.05
    assert {drawn.noise_sd for drawn in gaussian} == set(range(21))
    assert {drawn.noise_bounds[0] for drawn in uniform} == set(range(-20, 1))
    assert {drawn.noise_bounds[1] for drawn in uniform} == set(range(21))
    assert {drawn.brightness for drawn in draws} == set(range(-20, 21))
    for axis in (0, 1):
        assert {drawn.corner[axis] for drawn in draws} == set(range(-62, 63))
    sigmas = [drawn.elastic_sigma_px for drawn in draws]
    assert 6 <= min(sigmas) < 6.1 < 11.9 < max(sigmas) <= 12
    assert {drawn.elastic_alpha for drawn in draws} == {34}
    nothing_else = {
        "quarter_turns": 0,
        "rotation_degrees": 0,
        "scale": 1,
        "gamma": 1,
        "contrast": 1,
        "blur_sigma_px": 0,
    }
    assert all(getattr(drawn, key) == value for drawn in draws for key, value in nothing_else.items())
    assert not any(drawn.marks or drawn.missing_patch or drawn.shot_noise_gain for drawn in draws)


def test_paper_displaces_nine_nodes_by_ten_pixels():
    nodes = np.array([_draw(RECIPES["paper"], variant=v).coarse_displacement for v in range(300)])
    assert nodes.shape == (300, 2, 3, 3)
    assert nodes.std() == pytest.approx(10, rel=0.04)


def test_a_range_is_drawn_from_end_to_end():
    certain = {
        "rotation": {"degrees": (-30, 60)}, "blur": {"sigma_px": (0.5, 1.5)},
        "elastic": {"alpha": (100, 250), "sigma_px": (12, 20)}, "quarter_turns": {},
    }  # fmt: skip
    every = {name: {"probability": 1} | values for name, values in certain.items()}
    named = recipe("default", every | {"flip": {"y_probability": 1, "x_probability": 0}})
    draws = [_draw(named, variant=v) for v in range(300)]
    ranges = {"rotation_degrees": (-30, 60), "blur_sigma_px": (0.5, 1.5), "elastic_alpha": (100, 250),
              "elastic_sigma_px": (12, 20)}  # fmt: skip
    for name, (low, high) in ranges.items():
        values, near = [getattr(drawn, name) for drawn in draws], (high - low) / 20
        assert low <= min(values) < low + near < high - near < max(values) <= high, name
    assert {drawn.quarter_turns for drawn in draws} == {1, 2, 3}
    assert {drawn.flip for drawn in draws} == {(True, False)}


def test_factors_are_even_in_their_logarithm():
    zoom = recipe("default", {"scale": {"probability": 1, "factor": (0.25, 4)}})
    factors = [_draw(zoom, variant=v).scale for v in range(500)]
    assert 0.25 <= min(factors) < 1 < max(factors) <= 4
    assert abs(np.mean(np.array(factors) > 1) - 0.5) < 0.1


# Weights.


def test_cells_keep_their_ids_through_a_membrane_that_the_warp_breaks():
    interior = np.ones((64, 80))
    interior[:, 40] = 0
    labels = membrane_and_cells(interior, "interior")
    image = np.zeros((1, 64, 80), np.uint8)
    # Twice as many pixels per step: with the corner at half pixels the one-pixel membrane shows in part.
    drawn = _draw(Recipe()).model_copy(update={"corner": (16, 24), "scale": 0.7, "rotation_degrees": 20.0})
    patch = apply(drawn, image, labels, weighting=WeightMap())
    membrane = patch.label == 1
    rows = membrane.any(axis=1)
    assert 0 < rows.sum() < rows.size  # it is broken
    assert patch.weight[membrane].min() > 5


def test_whole_section_is_the_plain_crop_of_it():
    image, labels = _section(shape=(40, 40))
    labels = replace(labels, ignore=np.random.default_rng(0).random((40, 40)) < 0.2)
    drawn = _draw(Recipe(), (40, 40), patch_px=40, margin_px=7)
    options = {"weighting": WEIGHTING, "class_weights": (0.7, 2.0)}
    whole = whole_section(image, labels, margin_px=7, **options)
    assert _same(whole, apply(drawn, image, labels, **options))
    np.testing.assert_array_equal(whole.weight == 0, labels.ignore)


def test_whole_section_of_one_pixel():
    labels = membrane_and_cells(np.ones((1, 1)), "interior")
    patch = whole_section(np.full((1, 1, 1), 9, np.uint8), labels, margin_px=3, weighting=WEIGHTING)
    np.testing.assert_array_equal(patch.image, np.full((1, 7, 7), 9))


@pytest.mark.parametrize("wrong", ["image", "labels", "dtype"])
def test_arrays_of_another_section_are_our_mistake(wrong):
    image, labels = _section()
    if wrong == "image":
        image = image[:, :, :64]
    elif wrong == "labels":
        labels = _section(shape=(64, 64))[1]
    else:
        image = image.astype(np.uint16)
    with pytest.raises(ValueError, match=r"do not belong to a section of \(64, 80\)"):
        apply(_draw(Recipe()), image, labels, weighting=WEIGHTING)
    with pytest.raises(ValueError, match="do not belong to a section of"):
        whole_section(image, labels, weighting=WEIGHTING)


@pytest.mark.real_data
def test_a_real_patch(shared_data):
    tifffile = pytest.importorskip("tifffile")
    folder = shared_data / "isbi2012"
    image, truth = (tifffile.imread(folder / f"train-{what}.tif", key=4) for what in ("volume", "labels"))
    drawn = _draw(RECIPES["default"], image.shape, patch_px=256)
    patch = apply(drawn, image[None], membrane_and_cells(truth, "interior"), weighting=WeightMap())
    membrane = patch.label == 1
    assert 0.15 < membrane.mean() < 0.35
    assert patch.image[0][membrane].mean() < patch.image[0][~membrane].mean() - 20
    assert patch.weight[membrane].astype(float).mean() > 2.5
