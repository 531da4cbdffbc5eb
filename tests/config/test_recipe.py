import pytest
from pydantic import ValidationError

from unet_ray.config.recipe import RECIPES, Recipe, recipe
from unet_ray.errors import ConfigError


def test_notebook_holds_the_notebooks_numbers():
    notebook = RECIPES["notebook"]
    assert notebook.elastic.alpha == (34, 34)
    assert notebook.elastic.sigma_px == (6, 12)
    assert notebook.crop.pad_px == (512 - 388) / 2
    assert notebook.brightness.shift == (-20, 20)
    assert notebook.gaussian_noise.sd == (0, 20)
    assert (notebook.uniform_noise.low, notebook.uniform_noise.high) == ((-20, 0), (0, 20))
    assert notebook.gaussian_noise.probability == notebook.uniform_noise.probability == 0.5


def test_paper_holds_the_papers_numbers():
    coarse = RECIPES["paper"].coarse_elastic
    assert (coarse.probability, coarse.nodes, coarse.sd_px) == (1, 3, (10, 10))


def test_empty_recipe_does_nothing():
    entries = Recipe().model_dump()
    assert all(value == 0 for entry in entries.values() for key, value in entry.items() if "probability" in key)
    assert entries["crop"] == {"pad_px": 0}


def test_overrides_replace_single_settings():
    changed = recipe("notebook", {"elastic": {"sigma_px": [8, 9]}})
    assert changed.elastic == RECIPES["notebook"].elastic.model_copy(update={"sigma_px": (8, 9)})
    assert changed.flip == RECIPES["notebook"].flip


def test_json_round_trip():
    for named in RECIPES.values():
        assert Recipe.model_validate_json(named.model_dump_json()) == named


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"elastic": {"sigma_px": (8, 4)}}, r"elastic\.sigma_px: the range 8 to 4 is empty"),
        ({"scale": {"factor": (0, 1)}}, r"scale\.factor: the range 0 to 1 must stay within 0\.1 to 10"),
        ({"gaussian_noise": {"sd": (-1, 3)}}, r"gaussian_noise\.sd: the range -1 to 3 must stay within 0 to 255"),
        ({"flip": {"y_probability": 1.5}}, r"flip\.y_probability: .* less than or equal to 1"),
        ({"uniform_noise": {"high": (-5, 20)}}, "uniform_noise: low may reach 0, above the least high, -5"),
        ({"gaussian_noise": {"probability": 0.75}}, "gaussian_noise and uniform_noise .* sum to 1.25; lower one"),
        ({"shot_noise": {"probability": 0.75}}, "shot_noise and uniform_noise .* sum to 1.25; lower one"),
        ({"shot_noise": {"gain": (-0.1, 0.1)}}, r"shot_noise\.gain: .* must stay within 0 to 100"),
        ({"stain": {"grey": (0, 256)}}, r"stain\.grey: .* must stay within 0 to 255"),
        ({"stain": {"count": (0, 1)}}, r"stain\.count: .* must stay within 1 to 100"),
        ({"missing_patch": {"side_px": (1.5, 4)}}, r"missing_patch\.side_px\.0: .*integer"),
        ({"elastic": {"sigma_px": (0.01, 4)}}, r"elastic\.sigma_px: .* must stay within 1 to 1000"),
        ({"elastc": {"alpha": (1, 2)}}, "has no elastc; the nearest is elastic"),
        ({"elastic": {"sigma": (1, 2)}}, r"has no elastic\.sigma; the nearest is elastic\.sigma_px"),
        ({"blur": {"sigma_px": (1, float("nan"))}}, r"blur\.sigma_px"),
    ],
)
def test_impossible_settings_are_named_by_their_key(overrides, said):
    with pytest.raises(ConfigError, match=said):
        recipe("notebook", overrides)


RANGES = [
    (entry, setting)
    for entry, settings in Recipe().model_dump().items()
    for setting, value in settings.items()
    if isinstance(value, tuple)
]


@pytest.mark.parametrize(("entry", "setting"), RANGES)
def test_every_empty_range_is_named_by_its_key(entry, setting):
    low, high = getattr(getattr(RECIPES["default"], entry), setting)
    with pytest.raises(ConfigError, match=rf"^recipe 'default', {entry}\.{setting}: .* is empty; give the lower"):
        recipe("default", {entry: {setting: (high + 1, low)}})


@pytest.mark.parametrize(("entry", "setting"), RANGES)
def test_every_range_has_limits_that_are_told(entry, setting):
    with pytest.raises(ConfigError, match=rf"^recipe 'default', {entry}\.{setting}: .* 1e\+09 must stay within"):
        recipe("default", {entry: {setting: (1, 10**9)}})


def test_shot_noise_and_gaussian_noise_go_together():
    recipe("default", {"shot_noise": {"probability": 1}, "gaussian_noise": {"probability": 1}})


def test_unknown_recipe():
    with pytest.raises(ConfigError, match="'keras' does not exist; take one of default, notebook, paper"):
        recipe("keras")


def test_unknown_keys_are_refused_by_the_model_itself():
    with pytest.raises(ValidationError):
        Recipe.model_validate({"shear": {}})
