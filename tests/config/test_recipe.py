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
        ({"scale": {"factor": (0, 1)}}, r"scale\.factor: .* must lie above 0"),
        ({"gaussian_noise": {"sd": (-1, 3)}}, r"gaussian_noise\.sd: .* must not go below 0"),
        ({"flip": {"y_probability": 1.5}}, r"flip\.y_probability: .* less than or equal to 1"),
        ({"uniform_noise": {"high": (-5, 20)}}, "uniform_noise: low may reach 0, above the least high, -5"),
        ({"gaussian_noise": {"probability": 0.75}}, "sum to 1.25; lower one"),
        ({"elastc": {"alpha": (1, 2)}}, "has no elastc; the nearest is elastic"),
        ({"elastic": {"sigma": (1, 2)}}, r"has no elastic\.sigma; the nearest is elastic\.sigma_px"),
        ({"blur": {"sigma_px": (1, float("nan"))}}, r"blur\.sigma_px"),
    ],
)
def test_impossible_settings_are_named_by_their_key(overrides, said):
    with pytest.raises(ConfigError, match=said):
        recipe("notebook", overrides)


def test_unknown_recipe():
    with pytest.raises(ConfigError, match="'keras' does not exist; take one of default, notebook, paper"):
        recipe("keras")


def test_unknown_keys_are_refused_by_the_model_itself():
    with pytest.raises(ValidationError):
        Recipe.model_validate({"shear": {}})
