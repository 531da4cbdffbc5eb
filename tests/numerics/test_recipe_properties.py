"""What holds under any recipe: the named ones, and two that do all there is at once."""

import json

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from unet_ray.config.recipe import RECIPES, Recipe, WeightMap
from unet_ray.numerics import warp
from unet_ray.numerics.augment import apply, coordinate_field
from unet_ray.numerics.draw import Drawn, draw
from unet_ray.numerics.labels import membrane_and_cells

WEIGHTING = WeightMap(border_sigma_px=2.0)
GEOMETRY = {
    "flip", "quarter_turns", "rotation_degrees", "scale", "corner", "elastic_alpha", "elastic_sigma_px",
    "elastic_key", "coarse_displacement",
}  # fmt: skip


def _everything(**noise):
    """Every transform for certain, but for the kinds of noise, which exclude each other."""
    certain = {
        name: {key: 1.0 for key in field.annotation.model_fields if "probability" in key}
        for name, field in Recipe.model_fields.items()
        if "noise" not in name and name != "crop"
    }
    return Recipe.model_validate(certain | {name: {"probability": 1.0} for name in noise} | {"crop": {"pad_px": 9}})


ALL = {
    **RECIPES,
    "all with Gaussian and shot noise": _everything(gaussian_noise=1, shot_noise=1),
    "all with uniform noise": _everything(uniform_noise=1),
}
NAMES = st.sampled_from(sorted(ALL))
VARIANTS = st.integers(0, 10**6)


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


def _geometry_alone(drawn):
    """The same patch with its grey levels as they are in the section."""
    unchanged = _draw(Recipe())
    grey = Drawn.model_fields.keys() - GEOMETRY - {"seed", "stack", "section", "variant", "section_shape"}
    grey -= {"patch_px", "margin_px"}
    return drawn.model_copy(update={key: getattr(unchanged, key) for key in grey})


def _same(one, other):
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ("image", "label", "weight"))


def test_everything_is_everything():
    drawn = _draw(ALL["all with Gaussian and shot noise"], variant=1)
    neutral = Drawn(seed=0, stack=0, section=0, variant=0, section_shape=(1, 1), patch_px=1, margin_px=0, corner=(0, 0))
    apart = {"margin_px", "noise_bounds", "stack"}
    assert {key for key in Drawn.model_fields if getattr(drawn, key) == getattr(neutral, key)} <= apart
    assert _draw(ALL["all with uniform noise"]).noise == "uniform"


# Pairing: image and labels move together.


@settings(deadline=None, max_examples=60)
@given(name=NAMES, variant=VARIANTS, margin_px=st.integers(0, 12))
def test_an_image_that_is_its_label_stays_so(name, variant, margin_px):
    _, labels = _section()
    drawn = _geometry_alone(_draw(ALL[name], variant=variant, margin_px=margin_px))
    patch = apply(drawn, labels.class_map[None] * np.uint8(255), labels, weighting=WEIGHTING)
    image = patch.image[0, margin_px : margin_px + 32, margin_px : margin_px + 32]
    pure = (image == 0) | (image == 255)
    assert pure.mean() > 0.2
    np.testing.assert_array_equal(image[pure] == 255, patch.label[pure] == 1)
    # Where all four neighbours count, the nearest has at least a quarter of the weight.
    assert (image[patch.label == 1] >= 63).all()
    assert (image[patch.label == 0] <= 192).all()


@settings(deadline=None, max_examples=40)
@given(name=NAMES, variant=VARIANTS)
def test_an_image_of_the_cells_keeps_to_its_instances(name, variant):
    y, x = np.mgrid[:64, :80]
    ids = (1 + x // 13 + 7 * (y // 11)).astype(np.int32) * 40_000_000  # up to 1.68e9
    shown = (ids // 40_000_000).astype(np.uint8) * 6
    labels = membrane_and_cells(ids, "instances")
    drawn = _geometry_alone(_draw(ALL[name], variant=variant))
    image = apply(drawn, shown[None], labels, weighting=WEIGHTING).image[0]
    field = coordinate_field(drawn, 0)
    warped = warp.sample_nearest(ids, field)
    assert warped.dtype == np.int32
    assert set(np.unique(warped)) <= set(np.unique(ids))
    inside = warp.sample_nearest(labels.class_map, field) == 0  # no neighbour has another id
    assert inside.any()
    np.testing.assert_array_equal(image[inside], warped[inside] // 40_000_000 * 6)
    cells = warp.sample_nearest(labels.cell_ids, field)
    assert set(np.unique(cells)) <= set(np.unique(labels.cell_ids))
    # One id, one cell: blocks of one id touch no other block of it.
    pairs = np.unique(np.stack([cells, warped])[:, cells > 0], axis=1)
    assert len(np.unique(pairs[0])) == len(np.unique(pairs[1])) == pairs.shape[1]


@settings(deadline=None, max_examples=40)
@given(name=NAMES, variant=VARIANTS)
def test_a_point_of_the_image_lies_where_the_field_says(name, variant):
    y, x = np.mgrid[:200, :200].astype(np.uint8)
    labels = membrane_and_cells(np.ones((200, 200)), "interior")
    drawn = _geometry_alone(_draw(ALL[name], (200, 200), variant=variant))
    patch = apply(drawn, np.stack([y, x]), labels, weighting=WEIGHTING)
    places = coordinate_field(drawn, 0).coordinates()
    inside = ((places >= 0) & (places <= 199)).all(axis=0)
    assume(inside.any())  # the notebook may take a patch from the mirrored padding alone
    assert np.abs(patch.image - places)[:, inside].max() <= 0.5 + 1e-3


@settings(deadline=None, max_examples=40)
@given(name=NAMES, variant=VARIANTS)
def test_labels_hold_only_what_occurred(name, variant):
    image, _ = _section()
    classes = np.random.default_rng(0).choice([0, 3, 9], (64, 80))
    labels = membrane_and_cells(classes, "classes", ignore_label=9)
    drawn = _draw(ALL[name], variant=variant)
    patch = apply(drawn, image, labels, weighting=WEIGHTING, class_weights=(1, 2, 3, 4))
    assert set(np.unique(patch.label)) <= {0, 3}
    assert set(np.unique(patch.weight)) <= {0, 1, 4}
    assert (patch.weight == 0).any()
    np.testing.assert_array_equal(patch.label[patch.weight == 4], 3)


@settings(deadline=None, max_examples=40)
@given(name=NAMES, variant=VARIANTS, channels=st.integers(1, 3))
def test_grey_levels_defects_and_noise_leave_label_and_weight_alone(name, variant, channels):
    image, labels = _section(channels=channels)
    drawn = _draw(ALL[name], variant=variant)
    full = apply(drawn, image, labels, weighting=WEIGHTING)
    plain = apply(_geometry_alone(drawn), image, labels, weighting=WEIGHTING)
    np.testing.assert_array_equal(full.label, plain.label)
    np.testing.assert_array_equal(full.weight, plain.weight)


@settings(deadline=None, max_examples=60)
@given(name=NAMES.filter(lambda name: name != "paper"), variant=VARIANTS, margin_px=st.integers(1, 20))
def test_a_margin_only_adds(name, variant, margin_px):
    # But for the coarse grid, which spans the patch's image, its margin included.
    recipe = ALL[name].model_copy(update={"coarse_elastic": Recipe().coarse_elastic})
    image, labels = _section(channels=2)
    bare = apply(_draw(recipe, variant=variant), image, labels, weighting=WEIGHTING)
    framed = apply(_draw(recipe, variant=variant, margin_px=margin_px), image, labels, weighting=WEIGHTING)
    assert framed.image.shape == (2, 32 + 2 * margin_px, 32 + 2 * margin_px)
    inside = slice(margin_px, margin_px + 32)
    np.testing.assert_array_equal(framed.image[:, inside, inside], bare.image)
    np.testing.assert_array_equal(framed.label, bare.label)
    np.testing.assert_array_equal(framed.weight, bare.weight)


# Drawing.


@settings(deadline=None)
@given(name=NAMES, variant=VARIANTS, seed=st.integers(0, 2**40))
def test_drawn_survives_json(name, variant, seed):
    drawn = _draw(ALL[name], variant=variant, seed=seed)
    text = drawn.model_dump_json()
    assert Drawn.model_validate_json(text) == drawn
    assert Drawn.model_validate(json.loads(json.dumps(json.loads(text)))) == drawn


@pytest.mark.parametrize("name", sorted(ALL))
def test_same_bytes_in_any_order_and_from_json(name):
    image, labels = _section(channels=3)
    first = {v: apply(_draw(ALL[name], variant=v), image, labels, weighting=WEIGHTING) for v in range(6)}
    for variant in (5, 0, 3, 1, 4, 2):
        stored = _draw(ALL[name], variant=variant).model_dump_json()
        again = apply(Drawn.model_validate_json(stored), image, labels, weighting=WEIGHTING)
        assert _same(first[variant], again)


OWN_FIELDS = {
    "rotation": ["rotation_degrees"], "elastic": ["elastic_alpha", "elastic_sigma_px", "elastic_key"],
    "coarse_elastic": ["coarse_displacement"], "blur": ["blur_sigma_px"], "crop": ["corner"],
    "gaussian_noise": ["noise", "noise_sd", "noise_key"], "shot_noise": ["shot_noise_gain"],
}  # fmt: skip


@pytest.mark.parametrize("name", sorted({*Recipe.model_fields} - {"crop", "uniform_noise"}))
def test_one_transform_does_not_change_anothers_draws(name):
    everything = ALL["all with Gaussian and shot noise"]
    entry = getattr(everything, name)
    off = {key: 0.0 for key in type(entry).model_fields if "probability" in key}
    without = everything.model_copy(update={name: entry.model_copy(update=off)})
    for variant in range(10):
        full, less = _draw(everything, variant=variant), _draw(without, variant=variant)
        own = OWN_FIELDS.get(name, [name])
        assert any(getattr(full, key) != getattr(less, key) for key in own)
        others = [key for key in Drawn.model_fields if key not in own]
        assert all(getattr(full, key) == getattr(less, key) for key in others)


def test_streams_share_no_numbers():
    # The depth is the second number of each of these streams.
    depths = [
        getattr(_draw(ALL["all with uniform noise"], variant=variant), name)[0].depth
        for variant in range(50)
        for name in ("scratch", "hole", "stain", "charging", "missing_patch")
    ]
    assert len({*depths}) == len(depths)
    assert abs(np.corrcoef(np.reshape(depths, (50, 5)).T) - np.eye(5)).max() < 0.5


def test_streams_keep_their_places():
    """A cache that an earlier version began goes on with the same draws: streams are numbered, new ones at the end."""
    everything = ALL["all with Gaussian and shot noise"]
    drawn = _draw(everything, variant=5)
    # The second number of a stream says how far along its range a value is; of some, along its logarithm.
    evenly = {
        2: (drawn.rotation_degrees, everything.rotation.degrees), 10: (drawn.blur_sigma_px, everything.blur.sigma_px),
        12: (drawn.shot_noise_gain, everything.shot_noise.gain),
        3: np.log((drawn.scale, *everything.scale.factor)), 7: np.log((drawn.gamma, *everything.gamma.exponent)),
        8: np.log((drawn.contrast, *everything.contrast.factor)),
    }  # fmt: skip
    found = {}
    for place, (value, *ends) in evenly.items():
        low, high = np.ravel(ends)
        found[place] = (value - low) / (high - low)
    for place, name in enumerate(("scratch", "hole", "stain", "charging", "missing_patch"), start=13):
        found[place] = getattr(drawn, name)[0].depth
    for place, number in found.items():
        bits = np.random.Philox(np.random.SeedSequence((7, 0, 3, 5))).advance(place << 64)
        assert number == pytest.approx(np.random.Generator(bits).random(2)[1], abs=1e-12), place
