"""A segmentation as others see it: read by ome-zarr-py, and held against the OME-NGFF 0.5 models."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import ome_zarr_models
import pytest
import zarr
from ome_zarr.io import parse_url
from ome_zarr.reader import Label, Multiscales, Reader
from ome_zarr_models.v05.image import Image
from ome_zarr_models.v05.image_label import ImageLabel

from unet_ray.config.segment import SegmentConfig
from unet_ray.engine.segment import segment
from unet_ray.geometry.tiles import BlockGrid, TileGrid
from unet_ray.storage.probability import Dtype
from unet_ray.storage.segmentation import Segmentation
from unet_ray.storage.segmentation_layout import CLASSES, SegmentationLayout

SHAPE, VOXEL_SIZE = (3, 530, 400), (50.0, 4.0, 4.0)


@pytest.fixture(scope="module")
def output(
    ray_cluster: None,
    tmp_path_factory: pytest.TempPathFactory,
    write_model: Callable[..., str],
    write_zarr: Callable[..., str],
    phantom_image: Callable[..., npt.NDArray[np.uint8]],
) -> str:
    folder = tmp_path_factory.mktemp("independent")
    asked: dict[str, Any] = {
        "volume": write_zarr(folder / "volume.zarr", phantom_image(SHAPE, 2)),
        "model": write_model(folder / "model"),
        "output": str(folder / "out.zarr"), "tile_px": 128, "voxel_size_nm": VOXEL_SIZE, "workers": 1, "threads": 1,
    }  # fmt: skip
    summary = segment(SegmentConfig(**asked))
    assert (summary["status"], summary["pyramid_levels"]) == ("complete", 3)
    return str(asked["output"])


def test_ome_zarr_py_reads_image_label_and_every_level(output: str) -> None:
    image, labels, label = list(Reader(parse_url(output))())
    assert [type(spec) for spec in image.specs] == [Multiscales]
    assert [type(spec) for spec in label.specs] == [Label, Multiscales]
    assert [level.shape for level in image.data] == [SHAPE, (3, 265, 200), (3, 133, 100)]
    assert [level.shape for level in label.data] == [level.shape for level in image.data]
    for level, data in enumerate(image.data):
        ours = zarr.open_array(f"{output}/{level}", mode="r")[...]
        assert (np.asarray(data) == ours).all()
        assert (np.asarray(label.data[level]) == (ours > 127.5)).all()
        assert len(np.unique(ours)) > 2
    for node in (image, label):
        assert [(axis["name"], axis["unit"]) for axis in node.metadata["axes"]] == [(a, "nanometer") for a in "zyx"]
        scale, translation = node.metadata["coordinateTransformations"][2]
        assert scale["scale"] == [50.0, 16.0, 16.0]
        assert translation["translation"] == [0.0, 6.0, 6.0]
    assert label.metadata["color"] == {1: [230 / 255, 159 / 255, 0, 1]}
    assert not labels.data


def test_the_metadata_fit_the_models_of_ome_ngff(output: str) -> None:
    image = ome_zarr_models.open_ome_zarr(zarr.open_group(output, mode="r"))
    label = ome_zarr_models.open_ome_zarr(zarr.open_group(f"{output}/labels/membrane", mode="r"))
    assert isinstance(image, Image)
    assert isinstance(label, ImageLabel)
    assert [data.path for data in image.ome_attributes.multiscales[0].datasets] == ["0", "1", "2"]


def test_chunks_and_shards_keep_the_rules_of_neuroglancer(output: Path) -> None:
    # It reads zarr v3 with sharding_indexed, bytes, zstd and crc32c, and rank at most 5.
    for array in ("0", "1", "2", "labels/membrane/0", "labels/membrane/1", "labels/membrane/2"):
        document = zarr.open_array(f"{output}/{array}", mode="r").metadata.to_dict()
        assert document["chunk_key_encoding"] == {"name": "default", "configuration": {"separator": "/"}}
        (sharding,) = document["codecs"]
        assert sharding["name"] == "sharding_indexed"
        inner = sharding["configuration"]
        assert [codec["name"] for codec in inner["codecs"]] == ["bytes", "zstd", "crc32c"]
        assert [codec["name"] for codec in inner["index_codecs"]] == ["bytes", "crc32c"]
        outer = document["chunk_grid"]["configuration"]["chunk_shape"]
        assert all(side % chunk == 0 for side, chunk in zip(outer, inner["chunk_shape"], strict=True))
        assert np.prod(inner["chunk_shape"]) <= 2**20


@pytest.mark.parametrize("dtype", ["uint8", "float16"])
def test_several_classes_are_channels_to_others_too(dtype: Dtype, tmp_path: Path) -> None:
    blocks = BlockGrid(TileGrid((2, 40, 50), (1, 32, 32)), (2, 1, 1))
    layout = SegmentationLayout(blocks, (1, 16, 16), VOXEL_SIZE, ((1, 2, 2),), classes=3, dtype=dtype)
    written = Segmentation(str(tmp_path / "out.zarr"))
    written.create(layout, {})
    values = (np.random.default_rng(0).random((3, 2, 40, 50)) * (255 if dtype == "uint8" else 1)).astype(dtype)
    for block in range(blocks.num_blocks):
        inside = values[(slice(None), *blocks.write_box(block).slices)]
        written.put(written.encode(layout, block, inside, 0.5))
    image, _, label = list(Reader(parse_url(written.path))())
    assert [axis["name"] for axis in image.metadata["axes"]] == ["c", "z", "y", "x"]
    assert image.metadata["channel_names"] == ["class 0", "class 1", "class 2"]
    assert image.metadata["contrast_limits"] == [[0, 255 if dtype == "uint8" else 1]] * 3
    assert (np.asarray(image.data[0]) == values).all()
    assert (np.asarray(label.data[0]) == values.argmax(axis=0)).all()
    assert set(label.metadata["color"]) == {0, 1, 2}
    assert isinstance(ome_zarr_models.open_ome_zarr(zarr.open_group(written.path, mode="r")), Image)
    assert isinstance(ome_zarr_models.open_ome_zarr(zarr.open_group(f"{written.path}/{CLASSES}", mode="r")), ImageLabel)
