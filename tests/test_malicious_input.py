"""Files that run a program where they are unpickled: each is refused in one sentence, and its program does not run."""

import io
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numcodecs.pickles
import numpy as np
import pytest
import torch
import zarr

from unet_ray.config.parse import parse
from unet_ray.config.pipeline import PipelineConfig
from unet_ray.config.segment import SegmentConfig
from unet_ray.engine.checkpoints import STATE
from unet_ray.engine.model_source import read_model_file
from unet_ray.engine.train_state import TrainState
from unet_ray.errors import ConfigError, ModelFileError, VolumeError
from unet_ray.network.model_file import decode
from unet_ray.storage.patch_cache import CachePlan, Patch, PatchCache
from unet_ray.storage.volume import open_volume


class Program:
    """Touches a file when it is unpickled."""

    def __init__(self, touched: Path) -> None:
        self.touched = touched

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.touched}",)


@pytest.fixture
def touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that exists when a program has run; the fixture shows that it would."""
    # A user may have set it for data of his own; older numcodecs always unpickle.
    monkeypatch.setattr(numcodecs.pickles, "ALLOW_UNSAFE_PICKLE_DECODE", True, raising=False)
    path = tmp_path / "touched"
    pickle.loads(pickle.dumps(Program(path)))
    path.unlink()
    return path


@pytest.mark.parametrize("kind", [SegmentConfig, PipelineConfig])
@pytest.mark.parametrize(
    "line",
    [
        "!!python/object/apply:os.system ['touch {}']",
        "!!python/object/new:subprocess.Popen [[touch, '{}']]",
        "x: !!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path ['{}']]",
    ],
)
def test_a_yaml_file(kind: Any, line: str, touched: Path, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(line.format(touched))
    with pytest.raises(ConfigError, match=r"run.yaml is not YAML \(could not determine a constructor") as caught:
        parse(kind, ["--config", str(tmp_path / "run.yaml")], "job")
    assert "\n" not in str(caught.value)
    assert not touched.exists()


def saved_by_torch(program: Program) -> bytes:
    data = io.BytesIO()
    torch.save({"network": program}, data)
    return data.getvalue()


@pytest.mark.parametrize("made", [pickle.dumps, saved_by_torch], ids=["pickle", "torch"])
def test_a_model_file(made: Callable[[Any], bytes], touched: Path, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(made(Program(touched)))
    path = str(tmp_path / "model.safetensors")
    with pytest.raises(ModelFileError, match=r"model.safetensors is .*safetensors"):
        decode(read_model_file(path), path)
    assert not touched.exists()


def test_a_checkpoint(touched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray.train

    (tmp_path / STATE).write_bytes(saved_by_torch(Program(touched)))
    monkeypatch.setattr(ray.train, "get_checkpoint", lambda: ray.train.Checkpoint.from_directory(tmp_path))
    nothing: Any = SimpleNamespace()
    state = TrainState(nothing, nothing, nothing, None, None, nothing)
    with pytest.raises(ModelFileError, match=rf"checkpoint {tmp_path} is damaged or not one of ours "):
        state.resume()
    assert not touched.exists()


PICKLE = {"id": "pickle", "protocol": 5}


def write_v2(folder: Path, chunk: str, data: bytes, **about: Any) -> None:
    """A zarr v2 array of one chunk."""
    folder.mkdir(parents=True)
    shape = about.pop("shape", [1, 4, 4])
    metadata = {"zarr_format": 2, "shape": shape, "chunks": shape, "fill_value": 0, "order": "C"}
    (folder / ".zarray").write_text(json.dumps({**metadata, "compressor": None, "filters": None, **about}))
    (folder / chunk).write_bytes(data)


@pytest.mark.parametrize("inside", ["", "group"])
@pytest.mark.parametrize(
    "about",
    [
        {"dtype": "|u1", "filters": [PICKLE]},
        {"dtype": "|u1", "compressor": PICKLE},
        {"dtype": "|O", "filters": [PICKLE]},
        {"dtype": "|O", "filters": [{"id": "vlen-utf8"}, PICKLE]},
    ],
    ids=["filter", "compressor", "objects", "text"],
)
def test_a_volume_of_zarr_v2(about: dict[str, Any], inside: str, touched: Path, tmp_path: Path) -> None:
    write_v2(tmp_path / "v.zarr" / inside, "0.0.0", pickle.dumps(Program(touched)), **about)
    array = None
    if inside:
        (tmp_path / "v.zarr" / ".zgroup").write_text('{"zarr_format": 2}')
        array = inside
    with pytest.raises(VolumeError, match=r"v\.zarr\S* is stored with pickle, which runs whatever program is in it"):
        open_volume(str(tmp_path / "v.zarr"), array=array)
    assert not touched.exists()


def test_a_volume_of_zarr_v3(touched: Path, tmp_path: Path) -> None:
    chunk = tmp_path / "v.zarr" / "c" / "0" / "0" / "0"
    chunk.parent.mkdir(parents=True)
    chunk.write_bytes(pickle.dumps(Program(touched)))
    metadata = {
        "zarr_format": 3, "node_type": "array", "shape": [1, 4, 4], "data_type": "uint8", "fill_value": 0,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1, 4, 4]}},
        "chunk_key_encoding": {"name": "default"},
        "codecs": [{"name": "bytes"}, {"name": "numcodecs.pickle", "configuration": {"protocol": 5}}],
    }  # fmt: skip
    (tmp_path / "v.zarr" / "zarr.json").write_text(json.dumps(metadata))
    with pytest.raises(VolumeError, match="is stored with pickle"):
        open_volume(str(tmp_path / "v.zarr"))
    assert not touched.exists()


def test_a_patch_cache_whose_array_is_exchanged(touched: Path, tmp_path: Path) -> None:
    cache = PatchCache(str(tmp_path / "cache"))
    plan = CachePlan(1, 4, 0, 1, 1, 0, (4, 4))
    cache.create_or_extend(plan, {})
    grey = np.zeros((1, 4, 4), np.uint8)
    cache.put(plan, "train", 0, Patch(grey[:, None], grey, grey.astype(np.float16)))
    (tmp_path / "cache" / "train" / "label" / "zarr.json").unlink()
    other = tmp_path / "cache" / "train" / "label"
    write_v2(other / "new", "0.0.0", pickle.dumps(Program(touched)), dtype="|O", filters=[{"id": "vlen-utf8"}, PICKLE])
    for file in list((other / "new").iterdir()):
        file.rename(other / file.name)
    with pytest.raises(VolumeError, match=r"train shard 0 of patch cache .* is damaged"):
        PatchCache(str(tmp_path / "cache")).find(0)
    assert not touched.exists()


def test_a_tiff_or_png_or_numpy_file(touched: Path, tmp_path: Path) -> None:
    objects = np.array([[Program(touched)]], object)
    np.save(tmp_path / "a.npy", objects, allow_pickle=True)
    data = (tmp_path / "a.npy").read_bytes()
    for name in ("a.npy", "a.tif", "a.png"):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(VolumeError, match=f"{name} is not an image that can be read"):
            open_volume(str(tmp_path / name))
    assert not touched.exists()


def test_an_attribute_may_speak_of_pickle(tmp_path: Path) -> None:
    path = str(tmp_path / "v.zarr")
    zarr.create_array(path, data=np.full((1, 4, 4), 7, np.uint8), attributes={"note": "a pickle of a specimen"})
    assert open_volume(path).shape == (1, 4, 4)
