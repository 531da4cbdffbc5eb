import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from unet_ray.config.recipe import Recipe, WeightMap
from unet_ray.numerics.augment import apply
from unet_ray.numerics.defects import Cloud, Line, Rectangle, Spot
from unet_ray.numerics.draw import Drawn, draw
from unet_ray.numerics.labels import membrane_and_cells

SIDE, START = 61, -30.0
WEIGHTING = WeightMap(border_sigma_px=2.0)
SEEN = ("scratch", "hole", "stain", "charging")
DEFECTS = (*SEEN, "missing_patch")


def _places():
    """y and x of the pixels of a picture whose middle is the label's centre."""
    return np.mgrid[START : START + SIDE, START : START + SIDE]


def _marked(mark, grey=100.0):
    picture = np.full((SIDE, SIDE), grey, np.float32)
    mark.onto(picture, START)
    return picture


def _recipe(*names, **others):
    """These defects for certain, where they show; and ``others`` as given."""
    sizes = {"hole": {"side_px": (8, 16)}, "missing_patch": {"side_px": (4, 12)}, "scratch": {"shift": (-90, -60)}}
    return Recipe.model_validate({name: {"probability": 1.0} | sizes.get(name, {}) for name in names} | others)


def _draw(recipe, variant=0, **numbers):
    numbers = {"section_shape": (64, 80), "patch_px": 40} | numbers
    return draw(recipe, seed=1, stack=0, section=0, variant=variant, **numbers)


def _apply(drawn, channels=1):
    rng = np.random.default_rng(0)
    interior = ndimage.gaussian_filter(rng.normal(size=(64, 80)), 3) > 0
    image = np.clip(interior * 100 + rng.normal(80, 10, (channels, 64, 80)), 0, 255).astype(np.uint8)
    return apply(drawn, image, membrane_and_cells(interior, "interior"), weighting=WEIGHTING)


# Each mark against its formula.


@pytest.mark.parametrize(("degrees", "offset_px"), [(0.0, 5.0), (90.0, -7.0), (30.0, 0.0), (135.0, 11.5)])
def test_a_line_has_its_place_direction_width_and_strength(degrees, offset_px):
    line = Line(depth=0, degrees=degrees, offset_px=offset_px, width_px=6.0, shift=-40)
    y, x = _places()
    angle = math.radians(degrees)
    across = math.cos(angle) * y + math.sin(angle) * x - offset_px
    found = _marked(line) - 100
    assert found.min() == pytest.approx(-40, abs=1)
    np.testing.assert_allclose(found[np.abs(across) < 0.05], -40, atol=0.5)
    assert (found[np.abs(across) < 2.95] < -20).all()
    assert (found[np.abs(across) > 3.05] > -20).all()
    assert (found[np.abs(across) > 6] == 0).all()


@settings(deadline=None, max_examples=40)
@given(
    centre=st.tuples(st.floats(-35, 35), st.floats(-35, 35)), sides=st.tuples(st.floats(1, 30), st.floats(1, 30)),
    degrees=st.floats(0, 180), edge_px=st.floats(1, 8),
    outline=st.lists(st.tuples(*[st.floats(-0.1, 0.1)] * 2), max_size=4),
)  # fmt: skip
def test_a_spot_is_bounded_by_its_waves(centre, sides, degrees, edge_px, outline):
    spot = Spot(
        depth=0, centre=centre, sides_px=sides, degrees=degrees, outline=tuple(outline), edge_px=edge_px, grey=20
    )
    y, x = (place - middle for place, middle in zip(_places(), centre, strict=True))
    turn = math.radians(degrees)
    along = (math.cos(turn) * y + math.sin(turn) * x) / (sides[0] / 2)
    beside = (math.cos(turn) * x - math.sin(turn) * y) / (sides[1] / 2)
    angle, radius = np.arctan2(along, beside), np.hypot(along, beside)
    border = 1 + sum(
        cosine * np.cos(waves * angle) + sine * np.sin(waves * angle)
        for waves, (cosine, sine) in enumerate(outline, start=2)
    )
    beyond = np.hypot(y, x) * (1 - border / np.maximum(radius, 1e-9))
    found = _marked(spot)
    assert (np.abs(found[beyond < -edge_px / 2 - 1e-3] - 20) < 1e-3).all()
    assert (found[beyond > edge_px / 2 + 1e-3] == 100).all()
    assert (found[beyond < -1e-3] < 60 + 1e-2).all()
    assert (found[beyond > 1e-3] > 60 - 1e-2).all()


def test_a_spots_middle_is_its_own_grey_level_even_between_all_directions():
    spot = Spot(depth=0, centre=(0, 0), sides_px=(9, 9), degrees=0, outline=((0.1, 0.1),), edge_px=1, grey=20)
    assert _marked(spot)[30, 30] == 20


def test_a_cloud_is_a_ramp_and_a_bump():
    ramp = Cloud(depth=0, slope=(0.5, -0.25), centre=(0, 0), bump_px=10, bump=0)
    y, x = _places()
    np.testing.assert_allclose(_marked(ramp), 100 + 0.5 * y - 0.25 * x, atol=1e-4)
    bump = Cloud(depth=0, slope=(0, 0), centre=(4, -8), bump_px=20, bump=-30)
    found, distance = _marked(bump) - 100, np.hypot(y - 4, x + 8)
    assert found[34, 22] == -30
    np.testing.assert_allclose(found[distance == 10], -15, atol=1e-3)
    assert (found[distance > 20] == 0).all()


@settings(deadline=None)
@given(
    corner=st.tuples(*[st.integers(-30, 30)] * 2), sides=st.tuples(*[st.integers(1, 30)] * 2), start=st.integers(-9, 9)
)
def test_a_rectangle_is_its_pixels(corner, sides, start):
    image = np.full((20, 20), 100, np.uint8)
    Rectangle(depth=0, corner=corner, sides_px=sides, grey=7).blank(image, start)
    y, x = np.mgrid[start : start + 20, start : start + 20]
    inside = (y >= corner[0]) & (y < corner[0] + sides[0]) & (x >= corner[1]) & (x < corner[1] + sides[1])
    np.testing.assert_array_equal(image, np.where(inside, 7, 100))


@settings(deadline=None, max_examples=60)
@given(variant=st.integers(0, 10**6), first=st.integers(0, 40))
def test_a_part_of_the_picture_is_marked_as_the_whole(variant, first):
    for mark in _draw(_recipe(*SEEN), variant).marks:
        part = np.full((21, 21), 100, np.float32)
        mark.onto(part, START + first)
        np.testing.assert_array_equal(part, _marked(mark)[first : first + 21, first : first + 21])


# In a patch.


@pytest.mark.parametrize("name", DEFECTS)
def test_a_defect_is_in_the_image_of_one_section_only(name):
    clean = _apply(_draw(Recipe()), channels=3)
    marked = set()
    for variant in range(30):
        drawn = _draw(_recipe(name), variant)
        found = _apply(drawn.model_copy(update={"corner": _draw(Recipe()).corner}), channels=3)
        np.testing.assert_array_equal(found.label, clean.label)
        np.testing.assert_array_equal(found.weight, clean.weight)
        changed = {channel for channel in range(3) if (found.image[channel] != clean.image[channel]).any()}
        assert len(changed) <= 1  # a faint one may change nothing
        marked |= changed
    assert marked == {0, 1, 2}


@pytest.mark.parametrize("name", DEFECTS)
def test_a_defect_of_the_label_shows_in_most_patches(name):
    changed = 0
    for variant in range(40):
        drawn = _draw(_recipe(name), variant)
        clean = drawn.model_copy(update=dict.fromkeys(DEFECTS, ()))
        changed += bool((_apply(drawn).image != _apply(clean).image).mean() > 0.002)
    assert changed >= 32


@pytest.mark.parametrize(("patch_px", "margin_px"), [(40, 0), (41, 0), (40, 7)])
def test_the_middle_of_the_label_is_where_defects_count_from(patch_px, margin_px):
    spot = Spot(depth=0, centre=(0, 0), sides_px=(20, 20), degrees=0, outline=(), edge_px=4, grey=255)
    drawn = _draw(Recipe(), patch_px=patch_px, margin_px=margin_px).model_copy(update={"stain": (spot,)})
    labels = membrane_and_cells(np.ones((64, 80)), "interior")
    image = apply(drawn, np.zeros((1, 64, 80), np.uint8), labels, weighting=WEIGHTING).image[0].astype(int)
    assert (image == 255).any()
    np.testing.assert_allclose(image, image[::-1, ::-1], atol=1)


def test_blur_softens_what_the_microscope_sees_and_noise_lies_on_it():
    drawn = _draw(
        _recipe("hole", hole={"probability": 1.0, "side_px": (20, 20), "edge_px": (1, 1), "grey": (250, 250)})
    )
    drawn = drawn.model_copy(update={"hole": (drawn.hole[0].model_copy(update={"centre": (0.0, 0.0)}),)})
    sharp = _apply(drawn).image[0].astype(float)
    soft = _apply(drawn.model_copy(update={"blur_sigma_px": 2.0})).image[0]
    wanted = ndimage.gaussian_filter(sharp, 2.0)
    assert np.abs(soft - wanted)[9:-9, 9:-9].max() < 1  # but for roundings
    assert (sharp[17:23, 17:23] == 250).all()
    noisy = _apply(drawn.model_copy(update={"noise": "gaussian", "noise_sd": 9})).image[0]
    assert noisy[17:23, 17:23].std() > 3


def test_a_missing_patch_is_flat_whatever_else_is_done():
    everything = {"blur": {"probability": 1.0}, "gaussian_noise": {"probability": 1.0, "sd": (20, 20)},
                  "gamma": {"probability": 1.0}, "shot_noise": {"probability": 1.0}}  # fmt: skip
    for variant in range(10):
        drawn = _draw(_recipe(*DEFECTS, **everything), variant, margin_px=5)
        (rectangle,) = drawn.missing_patch
        y, x = (
            slice(max(corner + 5, 0), corner + 5 + side)
            for corner, side in zip(rectangle.corner, rectangle.sides_px, strict=True)
        )
        values = _apply(drawn).image[0, y, x]
        assert values.size
        assert (values == rectangle.grey).all()


def test_order_of_the_marks_is_that_in_which_they_come_about():
    drawn = _draw(_recipe(*SEEN))
    assert drawn.marks == (*drawn.scratch, *drawn.hole, *drawn.stain, *drawn.charging)
    spot = drawn.stain[0].model_copy(update={"centre": (0.0, 0.0), "sides_px": (20.0, 20.0), "outline": ()})
    line = Line(depth=0, degrees=45, offset_px=0, width_px=4, shift=90)
    both = Drawn.model_validate(drawn.model_dump() | {"scratch": [line], "hole": [spot], "stain": [], "charging": []})
    assert _apply(both).image[0, 20, 20] == spot.grey  # a hole has no scratches


# Drawing.


def test_drawn_defects_keep_within_their_ranges():
    recipe = _recipe(
        *DEFECTS,
        scratch={"probability": 1, "count": (2, 4), "width_px": (2, 3), "shift": (-9, 9)},
        hole={"probability": 1, "side_px": (5, 6), "edge_px": (2, 3), "grey": (9, 19)},
        stain={"probability": 1, "count": (3, 5), "side_px": (2, 4), "edge_px": (1, 1.5), "grey": (4, 8)},
        charging={"probability": 1, "ramp": (10, 30), "bump": (-7, 7), "bump_px": (30, 40)},
        missing_patch={"probability": 1, "side_px": (3, 6), "grey": (2, 5)},
    )
    draws = [_draw(recipe, variant) for variant in range(300)]
    assert {len(one.scratch) for one in draws} == {2, 3, 4}
    assert {line.shift for one in draws for line in one.scratch} == set(range(-9, 10))
    assert all(len({(line.degrees, line.depth) for line in one.scratch}) == 1 for one in draws)
    degrees = [one.scratch[0].degrees for one in draws]
    assert 0 <= min(degrees) < 5 < 175 < max(degrees) <= 180
    widths = [line.width_px for one in draws for line in one.scratch]
    assert 2 <= min(widths) < 2.1 < 2.9 < max(widths) <= 3
    offsets = [line.offset_px for one in draws for line in one.scratch]
    assert -20 <= min(offsets) < -19 < 19 < max(offsets) <= 20
    assert {len(one.hole) for one in draws} == {1}
    assert {one.hole[0].grey for one in draws} == set(range(9, 20))
    assert {len(one.stain) for one in draws} == {3, 4, 5}
    assert {spot.grey for one in draws for spot in one.stain} == set(range(4, 9))
    for spots, low, high in (("hole", 5, 6), ("stain", 2, 4)):
        sides = [side for one in draws for spot in getattr(one, spots) for side in spot.sides_px]
        assert low <= min(sides) < low + 0.1 < high - 0.1 < max(sides) <= high
        assert all(spot.sides_px[0] != spot.sides_px[1] for one in draws for spot in getattr(one, spots))
        for axis in (0, 1):
            places = [spot.centre[axis] for one in draws for spot in getattr(one, spots)]
            assert -20 <= min(places) < -19 < 19 < max(places) <= 20
        degrees = [spot.degrees for one in draws for spot in getattr(one, spots)]
        assert 0 <= min(degrees) < 5 < 175 < max(degrees) <= 180
        waves = [wave for one in draws for spot in getattr(one, spots) for pair in spot.outline for wave in pair]
        assert -0.1 <= min(waves) < -0.09 < 0.09 < max(waves) <= 0.1
    slopes = [math.hypot(*cloud.slope) * 40 for one in draws for cloud in one.charging]
    assert 10 - 1e-9 <= min(slopes) < 11 < 29 < max(slopes) <= 30 + 1e-9
    assert {cloud.bump for one in draws for cloud in one.charging} == set(range(-7, 8))
    rectangles = [one.missing_patch[0] for one in draws]
    assert {side for rectangle in rectangles for side in rectangle.sides_px} == {3, 4, 5, 6}
    assert {rectangle.grey for rectangle in rectangles} == {2, 3, 4, 5}
    corners = {corner + side // 2 for r in rectangles for corner, side in zip(r.corner, r.sides_px, strict=True)}
    assert corners == set(range(40))
    depths = [one.hole[0].depth for one in draws]
    assert 0 <= min(depths) < 0.02 < 0.98 < max(depths) < 1


def test_defects_are_as_often_as_their_probability_and_apart_from_each_other():
    recipe = Recipe.model_validate({name: {"probability": 0.4} for name in DEFECTS})
    draws = [_draw(recipe, variant) for variant in range(1500)]
    has = np.array([[bool(getattr(one, name)) for name in DEFECTS] for one in draws])
    np.testing.assert_allclose(has.mean(axis=0), 0.4, atol=0.04)
    together = has.T.astype(float) @ has / len(draws)
    np.fill_diagonal(together, 0.16)
    np.testing.assert_allclose(together, 0.16, atol=0.035)


def test_drawn_defects_can_be_read_in_json():
    drawn = json.loads(_draw(_recipe("missing_patch", "scratch")).model_dump_json())
    assert set(drawn["missing_patch"][0]) == {"depth", "corner", "sides_px", "grey"}
    assert set(drawn["scratch"][0]) == {"depth", "degrees", "offset_px", "width_px", "shift"}


# Shot noise, which is of the image too.


def test_shot_noise_grows_with_the_grey_level_and_adds_to_gaussian_noise():
    image = np.full((1, 256, 512), 50, np.uint8)
    image[:, :, 256:] = 200
    labels = membrane_and_cells(np.ones((256, 512)), "interior")
    recipe = Recipe.model_validate({"shot_noise": {"probability": 1.0, "gain": (0.3, 0.3)}})
    for sd in (0, 6):
        drawn = draw(recipe, seed=0, stack=0, section=0, variant=0, section_shape=(256, 512), patch_px=256)
        drawn = drawn.model_copy(update={"corner": (0, 128), "noise_sd": sd})
        found = apply(drawn, image, labels, weighting=WEIGHTING).image[0].astype(float)
        for grey, part in ((50, found[:, :128]), (200, found[:, 128:])):
            assert part.mean() == pytest.approx(grey, abs=0.2)
            assert part.var() == pytest.approx(sd**2 + 0.3 * grey + 1 / 12, rel=0.04)  # 1/12: of rounding


def test_uniform_noise_excludes_the_others_and_each_is_as_often_as_it_says():
    recipe = Recipe.model_validate({
        "gaussian_noise": {"probability": 0.4}, "uniform_noise": {"probability": 0.3},
        "shot_noise": {"probability": 0.5, "gain": (0.1, 0.2)},
    })  # fmt: skip
    draws = [_draw(recipe, variant) for variant in range(3000)]
    kinds = np.array([one.noise for one in draws])
    gains = np.array([one.shot_noise_gain for one in draws])
    for shares, wanted in ((kinds == "gaussian", 0.4), (kinds == "uniform", 0.3), (gains > 0, 0.5)):
        assert shares.mean() == pytest.approx(wanted, abs=0.03)
    assert not gains[kinds == "uniform"].any()
    both = (kinds == "gaussian") & (gains > 0)
    assert both.mean() == pytest.approx(0.4 * 0.5 / 0.7, abs=0.03)  # independent among the others
    assert 0.1 <= gains[gains > 0].min() < 0.11 < 0.19 < gains.max() <= 0.2
