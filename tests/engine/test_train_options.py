"""What a training may be given beside the plain: context sections, a first model, other losses, classes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.engine.training import MADE_WITH, config, make_cache, rows, validations
from unet_ray.errors import ConfigError
from unet_ray.network.model_file import TrainingSection, decode
from unet_ray.storage.patch_cache import CachePlan, Patch, PatchCache

SEEN = [("aa", "train"), ("cc", "train"), ("ee", "train"), ("ff", "validation")]


@pytest.fixture(scope="module")
def tuned(
    ray_cluster: None, tmp_path_factory: pytest.TempPathFactory, write_model: Callable[..., str]
) -> tuple[Path, dict[str, Any]]:
    """A run of two members, with context sections, a first model, accumulation, averaging, clipping, Dice, descriptors.

    Its rate is so high that later epochs are worse.
    """
    from unet_ray.engine.train import train

    folder = tmp_path_factory.mktemp("tuned")
    seen = [TrainingSection(fingerprint=f, stack=0, section=z, role=r) for z, (f, r) in enumerate(SEEN)]
    first = write_model(folder / "first", depth=2, in_channels=3, members=2, seed=5, training_sections=seen)
    settings = {
        "best_by": "dice", "epochs": 4, "learning_rate": 0.1, "schedule": "constant", "micro_batch": 1,
        "ema_decay": 0.5, "members": 2, "max_gradient_norm": 1.0, "dice_weight": 1.0, "initial_model": first,
        "descriptor_weight": 2.0,
    }  # fmt: skip
    cache = make_cache(f"{folder}/cache.zarr", context=1)
    return folder / "run", train(config(cache, folder / "run", **settings))


def test_the_best_model_is_chosen_by_the_score_asked_for(tuned: tuple[Path, dict[str, Any]]) -> None:
    run, summary = tuned
    found = [row["dice"] for row in validations(run)]
    assert len(set(found)) > 1
    assert summary["best_epoch"] == int(np.argmax(found))
    kept = decode((run / "model.safetensors").read_bytes())[2].training
    assert kept["epoch"] == summary["best_epoch"]
    assert kept["validation"] == summary["validation"]
    told = rows(run)[0]
    named = [told["loss_cross_entropy"], told["loss_dice"], 2 * told["loss_descriptors"]]
    assert told["loss"] == pytest.approx(sum(named), rel=1e-6)
    assert min(named) > 0


def test_the_model_of_a_run_with_descriptors_tells_the_membrane_alone(tuned: tuple[Path, dict[str, Any]]) -> None:
    network, state, _ = decode((tuned[0] / "model.safetensors").read_bytes())
    assert [state[f"members.{member}.out.weight"].shape[0] for member in range(network.members)] == [1, 1]
    assert [state[f"members.{member}.out.bias"].shape[0] for member in range(network.members)] == [1, 1]


def test_context_sections_reach_the_model(tuned: tuple[Path, dict[str, Any]]) -> None:
    network, state, metadata = decode((tuned[0] / "model.safetensors").read_bytes())
    assert (network.in_channels, metadata.context_sections) == (3, 1)
    assert [state[f"members.{member}.down.0.0.weight"].shape[1] for member in range(network.members)] == [3, 3]


def test_fine_tuning_does_not_forget_what_the_model_has_seen(tuned: tuple[Path, dict[str, Any]]) -> None:
    after = decode((tuned[0] / "model.safetensors").read_bytes())[2].training_sections
    assert [(s.fingerprint, s.role) for s in after] == [("aa", "train"), ("cc", "validation"), *SEEN[1:]]


@pytest.mark.slow
def test_several_classes(ray_cluster: None, tmp_path: Path) -> None:
    """Three classes that their grey levels tell apart are learned; what scores membrane alone is not offered."""
    from unet_ray.engine.train import train

    path = str(tmp_path / "cache.zarr")
    made = PatchCache(path)
    plan = made.create_or_extend(CachePlan(4, 32, 0, 1, 4, 1, (32, 32)), MADE_WITH | {"classes": 3})
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("validation", 1)):
        label = np.kron(rng.integers(0, 3, (count, 4, 4)), np.ones((8, 8))).astype(np.uint8)
        made.put(plan, split, 0, Patch((label * 100)[:, None], label, np.ones(label.shape, np.float16)))
    with pytest.raises(ConfigError, match=r"--best-by v_rand scores cells between membranes.* 3 classes"):
        train(config(path, tmp_path / "run", best_by="v_rand"))
    # An epoch is one step here: the running statistics of batch normalisation are behind in the first ones.
    settings = {"epochs": 40, "early_stop_epochs": 40, "batch_size": 4, "learning_rate": 0.01, "base_channels": 8}
    summary = train(config(path, tmp_path / "run", **settings))
    assert summary["validation"]["pixel_mismatch"] < 0.05  # by chance 0.67
    assert summary["validation"]["v_rand"] is None
    assert decode((tmp_path / "run" / "model.safetensors").read_bytes())[0].classes == 3


def test_a_depth_that_no_cache_fits_is_to_be_left_out() -> None:
    """Another cache of the preset has the same margin."""
    from unet_ray.config.train import TrainSettings
    from unet_ray.engine.train_request import fitting_network

    made = {"margin": 92, "patch_px": 388, "channels": 1, "classes": 2}
    assert fitting_network(TrainSettings(preset="paper"), "cache c", **made).depth == 5
    with pytest.raises(ConfigError, match=r"cache c has images with a margin of 92 px.* needs 44; leave --depth out"):
        fitting_network(TrainSettings(preset="paper", depth=4), "cache c", **made)
    with pytest.raises(ConfigError, match=r"make a cache with .* --for-preset paper"):
        fitting_network(TrainSettings(preset="paper"), "cache c", **made | {"margin": 0})


def test_descriptors_of_classes_are_refused() -> None:
    from unet_ray.engine.train_request import fitting_network

    settings = config("cache", Path("run"), descriptor_weight=2.0)
    with pytest.raises(ConfigError, match=r"^--descriptor-weight 2 describes .* cache C has 3 classes; leave it out$"):
        fitting_network(settings, "cache C", margin=0, patch_px=32, channels=1, classes=3)
    assert fitting_network(settings, "cache C", margin=0, patch_px=32, channels=1, classes=2).classes == 1
