"""What a training refuses, before anything of an earlier run is removed, and what --overwrite removes."""

import itertools
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.engine.training import config, losses, rows
from unet_ray.config.network import network_config
from unet_ray.errors import ConfigError, ModelFileError, OutputMismatchError, VolumeError
from unet_ray.storage.patch_cache import Patch, PatchCache


@pytest.mark.parametrize(
    ("changes", "error", "sentence"),
    [
        ({"preset": "paper"}, ConfigError, "margin of 0 px, but a paper network"),
        ({"depth": 7}, ConfigError, "patches of 32 px, which a network of depth 7 cannot make"),
        ({"cache": "/nowhere/cache.zarr"}, VolumeError, "there is no patch cache at /nowhere/cache.zarr"),
        ({"learning_rate": 0.5}, OutputMismatchError, "settings.learning_rate 0.002 .now 0.5."),
        ({"precision": "bfloat16"}, OutputMismatchError, "precision float32 .now bfloat16."),
        ({"initial_model": "/nowhere/m.safetensors"}, ModelFileError, "no model file at"),
    ],
)
def test_bad_settings(
    finished: tuple[Path, dict[str, Any]], cache: str, changes: dict[str, Any], error: type[Exception], sentence: str
) -> None:
    from unet_ray.engine.train import train

    given = config(cache, finished[0]).model_copy(update=changes)
    with pytest.raises(error, match=sentence):
        train(given)


@pytest.mark.parametrize("changes", [{"workers": 64}, {"threads": 512}, {"initial_model": "of the run itself"}])
def test_a_refused_overwrite_removes_nothing(
    finished: tuple[Path, dict[str, Any]], cache: str, tmp_path: Path, changes: dict[str, Any]
) -> None:
    from unet_ray.engine.train import train

    run = tmp_path / "run"
    shutil.copytree(finished[0], run)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    given = {**changes, "initial_model": str(run / "model.safetensors")} if "initial_model" in changes else changes
    sentence = (
        r"--overwrite would empty; copy it elsewhere"
        if "initial_model" in changes
        else "fit in the cluster at once|asks for 512 CPU"
    )
    with pytest.raises(ConfigError, match=sentence):
        train(config(cache, run, overwrite=True, **given))
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_overwriting_begins_anew(finished: tuple[Path, dict[str, Any]], cache: str, tmp_path: Path) -> None:
    from unet_ray.engine.train import train

    run, began = tmp_path / "run", time.time()
    shutil.copytree(finished[0], run)
    summary = train(config(cache, run, overwrite=True, seed=3))
    assert "note" not in summary
    assert all(row["ended"] > began for row in rows(run))
    assert losses(run) != losses(finished[0])


@pytest.mark.parametrize(
    ("name", "how"),
    [("image", "flipped"), *itertools.product(["label", "weight"], ["missing", "empty", "flipped"])],
)
def test_a_lost_validation_section_is_a_sentence(
    cache: str, tmp_path: Path, name: str, how: str, ray_cluster: None
) -> None:
    """Zarr would read it as zeros: as a section of one cell, or as one that nobody labelled.

    An image that is missing or empty is a section that is not done, which is refused before.
    """
    from unet_ray.engine.train import train

    shutil.copytree(cache, tmp_path / "cache.zarr")
    damaged = PatchCache(str(tmp_path / "cache.zarr"))
    shard = tmp_path / "cache.zarr" / damaged.shard_key("validation", name, 0)
    whole = bytearray(shard.read_bytes())
    whole[len(whole) // 2] ^= 1
    shard.unlink() if how == "missing" else shard.write_bytes(b"" if how == "empty" else bytes(whole))
    with pytest.raises(VolumeError, match=r"validation shard 0 of patch cache .* is damaged .*--verify$"):
        train(config(damaged.path, tmp_path / "run"))
    assert not (tmp_path / "run" / "run.json").exists()


@pytest.mark.parametrize(
    ("label", "weight", "best_by", "sentence"),
    [
        (
            1,
            1,
            "v_info",
            "--best-by v_info scores cells, but all that is labelled .* is membrane; choose --best-by loss",
        ),
        (0, 0, "loss", "no pixel of the validation sections of cache .* is labelled, so no model can be chosen"),
        (0, 0, "v_rand", "no pixel of the validation sections"),
    ],
)
def test_sections_that_tell_nothing_are_refused(
    cache: str, tmp_path: Path, label: int, weight: int, best_by: str, sentence: str
) -> None:
    from unet_ray.engine.train import train

    shutil.copytree(cache, tmp_path / "cache.zarr")
    blank = PatchCache(str(tmp_path / "cache.zarr"))
    for number in range(2):
        was = blank.read("validation", number)
        patch = Patch(was.image[None], np.full_like(was.label, label)[None], np.full_like(was.weight, weight)[None])
        blank.put(blank.plan(), "validation", number, patch)
    with pytest.raises(ConfigError, match=sentence):
        train(config(blank.path, tmp_path / "run", best_by=best_by))


@pytest.mark.parametrize(("preset", "normalised"), [("default", True), ("keras", False)])
def test_batch_norm_over_pieces_is_of_so_many_workers(
    cache: str, tmp_path: Path, preset: str, normalised: bool
) -> None:
    """Its statistics are of what all workers pass at once: without pieces the global batch, whoever computes it."""
    from unet_ray.engine.train_request import made_with_of

    network = network_config(preset, base_channels=2, depth=2)

    def decided(workers: int, micro_batch: int | None) -> Any:
        given = config(cache, tmp_path / "run", batch_size=4, workers=workers, micro_batch=micro_batch)
        return made_with_of(given, network, PatchCache(cache))["workers_x_passes"]

    assert decided(1, None) is decided(2, None) is decided(2, 2) is None
    assert (decided(1, 1) != decided(2, 1)) == normalised


def test_foreign_directory_is_refused(cache: str, tmp_path: Path) -> None:
    from unet_ray.engine.train import train

    (tmp_path / "thesis.txt").write_text("do not delete")
    for overwrite in (False, True):
        with pytest.raises(OutputMismatchError, match=r"it holds thesis\.txt"):
            train(config(cache, tmp_path, overwrite=overwrite))
    assert (tmp_path / "thesis.txt").exists()
