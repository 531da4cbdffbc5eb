"""Run directories that lost something: a sentence each, before anything is started."""

import json
from pathlib import Path

import pytest

from tests.engine.training import config, make_cache
from unet_ray.config.train import TrainConfig
from unet_ray.engine.train import train
from unet_ray.engine.train_request import made_with_of, require_network
from unet_ray.errors import ModelFileError, OutputMismatchError
from unet_ray.storage.patch_cache import PatchCache


@pytest.fixture
def finished(tmp_path: Path) -> TrainConfig:
    """Of a run directory as a complete training leaves it, but for the model."""
    asked = config(make_cache(str(tmp_path / "cache.zarr")), tmp_path / "run")
    cache = PatchCache(asked.cache)
    made_with = made_with_of(asked, require_network(asked, cache), cache)
    (tmp_path / "run").mkdir()
    decided = {"made_with": made_with, "precision": "float32", "threads": 1}
    (tmp_path / "run" / "run.json").write_text(json.dumps(decided))
    (tmp_path / "run" / "summary.json").write_text('{"status": "complete"}')
    return asked


def test_a_complete_run_whose_model_is_gone(finished: TrainConfig) -> None:
    with pytest.raises(ModelFileError, match=r"run was complete, but its model.safetensors is not there any more; put"):
        train(finished)
    (Path(finished.run) / "model.safetensors").write_bytes(b"whatever")
    assert "nothing to do" in train(finished)["note"]


@pytest.mark.parametrize("text", ["", '{"made_with": {', "[]", "null", "\xff"])
@pytest.mark.parametrize(("name", "remedy"), [("run.json", "--overwrite"), ("summary.json", "remove it")])
def test_a_file_that_was_cut_off(finished: TrainConfig, name: str, text: str, remedy: str) -> None:
    (Path(finished.run) / name).write_text(text, encoding="latin-1")
    with pytest.raises(
        OutputMismatchError, match=rf"{name} of run .*run is empty or damaged; copy it again, .*{remedy}"
    ):
        train(finished)
