"""What the viewer shows: tiles of every resolution, grey levels, several classes, and what cannot be shown together."""

import io
import json
from urllib.parse import unquote

import numpy as np
import pytest
import tifffile
import zarr
from PIL import Image

from tests.scenes import SHAPE, VOXEL_SIZE_NM, probabilities, raw_values, write_segmentation
from unet_ray.config.view import ViewConfig
from unet_ray.engine.view_layers import TILE_PX, ViewLayer, grey_range
from unet_ray.engine.view_scene import open_scene
from unet_ray.errors import ConfigError, InputError, VolumeError
from unet_ray.report.neuroglancer import link
from unet_ray.report.tile_png import grey, numbered
from unet_ray.storage.image_levels import open_levels


def decoded(png, mode="RGBA"):
    return np.asarray(Image.open(io.BytesIO(png)).convert(mode))


def write_stack(path, values):
    tifffile.imwrite(path, values, photometric="minisblack")
    return str(path)


def layer_of(path, kind="grey", value_range=(0, 255)):
    colours = numbered({1: (230, 159, 0)}) if kind == "label" else grey()
    return ViewLayer("raw", kind, open_levels(path), colours, value_range, 1.0, "red")


def scene(**settings):
    return open_scene(ViewConfig.model_validate(settings))


def test_tiles_of_full_resolution_cover_the_section(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (2, TILE_PX + 30, 2 * TILE_PX + 7), dtype=np.uint8)
    layer = layer_of(write_stack(tmp_path / "a.tif", values))
    rows = [np.hstack([decoded(layer.tile(0, 1, row, column), "L") for column in range(3)]) for row in range(2)]
    np.testing.assert_array_equal(np.vstack(rows), values[1])
    assert layer.tile(0, 1, 2, 0) is None
    assert layer.tile(0, 1, 0, 3) is None


@pytest.mark.parametrize("band_bytes", [1, 40_000, 1 << 30])
def test_coarse_tiles_are_means_read_in_bands(tmp_path, monkeypatch, band_bytes):
    monkeypatch.setattr("unet_ray.engine.view_layers._BAND_BYTES", band_bytes)
    values = np.random.default_rng(0).integers(0, 256, (1, 600, 2 * TILE_PX + 2), dtype=np.uint8)
    layer = layer_of(write_stack(tmp_path / "a.tif", values))
    assert [(level.shape, level.scale) for level in layer.levels] == [
        ((1, 600, 1026), (1, 1, 1)), ((1, 300, 513), (1, 2, 2)), ((1, 150, 257), (1, 4, 4))
    ]  # fmt: skip
    shown = decoded(layer.tile(2, 0, 0, 0), "L")
    assert shown.shape == (150, 257)
    means = values[0, :, :1024].reshape(150, 4, 256, 4).mean(axis=(1, 3))
    assert np.abs(shown[:, :256] - means).max() <= 0.5
    assert abs(float(shown[3, 256]) - values[0, 12:16, 1024:].mean()) <= 0.5


def test_no_read_is_larger_than_a_band(tmp_path, monkeypatch):
    values = np.zeros((1, 3000, 5000), np.uint8)
    layer = layer_of(write_stack(tmp_path / "a.tif", values))
    volume, boxes = layer.image.volumes[0], []
    read = type(volume).read
    monkeypatch.setattr(type(volume), "read", lambda self, box: boxes.append(box) or read(self, box))
    monkeypatch.setattr("unet_ray.engine.view_layers._BAND_BYTES", 1 << 20)
    assert decoded(layer.tile(len(layer.levels) - 1, 0, 0, 0)).shape == (188, 313, 4)
    assert len(boxes) > 10
    assert max(box.voxels for box in boxes) <= 1 << 20


def test_sections_of_a_level_that_is_coarser_in_z(tmp_path):
    group = zarr.create_group(str(tmp_path / "a.zarr"))
    for level, depth in enumerate((5, 3)):
        array = group.create_array(str(level), shape=(depth, 8, 8), dtype="u1", chunks=(1, 8, 8))
        array[...] = np.arange(depth, dtype=np.uint8).reshape(-1, 1, 1) + 100 * level
    scales = [[50.0, 4.0, 4.0], [100.0, 8.0, 8.0]]
    datasets = [
        {"path": str(k), "coordinateTransformations": [{"type": "scale", "scale": scale}]}
        for k, scale in enumerate(scales)
    ]
    axes = [{"name": a, "type": "space", "unit": "nanometer"} for a in "zyx"]
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": datasets}]}
    layer = layer_of(str(tmp_path / "a.zarr"))
    assert [int(decoded(layer.tile(1, z, 0, 0), "L")[0, 0]) for z in range(5)] == [100, 100, 101, 101, 102]
    assert layer.tile(1, 5, 0, 0) is None


def test_labels_are_thinned_out_not_averaged(tmp_path):
    values = np.tile(np.array([[1, 0], [0, 0]], np.uint8), (600, 600))[None]
    layer = layer_of(write_stack(tmp_path / "a.tif", values), "label")
    assert decoded(layer.tile(2, 0, 0, 0))[0, 0].tolist() == [230, 159, 0, 255]
    assert decoded(layer.tile(0, 0, 0, 0))[0, :2, 3].tolist() == [255, 0]


@pytest.mark.parametrize("dtype", ["uint16", "int16", "float32"])
def test_grey_levels_go_from_black_to_white(tmp_path, dtype):
    ramp = np.tile(np.linspace(-300 if dtype != "uint16" else 700, 3000, 400), (3, 300, 1)).astype(dtype)
    path = write_stack(tmp_path / "a.tif", ramp)
    low, high = grey_range(open_levels(path))
    assert ramp.min() < low < ramp.min() + 40
    assert ramp.max() - 40 < high < ramp.max()
    layer = layer_of(path, value_range=(low, high))
    shown = decoded(layer.tile(0, 1, 0, 0), "L")
    assert (shown[0, 0], shown[0, -1]) == (0, 255)
    assert abs(int(shown[0, 200]) - 127) <= 2
    assert layer.value(1, 2, 3) == ramp[1, 2, 3]


def test_a_volume_of_one_grey_value_has_a_range(tmp_path):
    low, high = grey_range(open_levels(write_stack(tmp_path / "a.tif", np.full((1, 20, 20), 7, np.uint8))))
    assert high > low


def test_a_segmentation_is_probability_and_mask(tmp_path):
    write_segmentation(tmp_path / "s.zarr")
    found = scene(segmentation=str(tmp_path / "s.zarr"))
    assert (found.voxel_size_nm, found.remarks, list(found.groups)) == (VOXEL_SIZE_NM, [], ["segmentation.zarr"])
    probability, mask = found.layers
    np.testing.assert_array_equal(decoded(probability.tile(0, 3, 0, 0))[..., 3], probabilities()[3])
    np.testing.assert_array_equal(decoded(mask.tile(0, 3, 0, 0))[..., 3], 255 * (probabilities()[3] > 127))
    z, y, x = np.unravel_index(np.abs(probabilities().astype(int) - 100).argmin(), SHAPE)
    assert probability.value(z, y, x) == round(probabilities()[z, y, x] / 255, 4)
    assert mask.value(z, y, x) == 0
    assert [(layer.name, layer.kind, layer.url) for layer in found.linked] == [
        ("probability", "image", "segmentation.zarr"),
        ("membrane", "segmentation", "segmentation.zarr/labels/membrane"),
    ]
    assert [layer.voxel_size_nm for layer in found.linked] == [None, None]
    assert [layer.shown for layer in found.layers] == [layer.visible for layer in found.linked] == [True, False]


def test_several_classes_have_a_layer_each(tmp_path):
    write_segmentation(tmp_path / "s.zarr", classes=3)
    found = scene(segmentation=str(tmp_path / "s.zarr"))
    assert [layer.name for layer in found.layers] == [*(f"probability of class {k}" for k in range(3)), "classes"]
    for k, layer in enumerate(found.layers[:3]):
        np.testing.assert_array_equal(decoded(layer.tile(0, 2, 0, 0))[..., 3], probabilities(3)[k, 2])
    assert {tuple(c) for c in decoded(found.layers[3].tile(0, 2, 0, 0)).reshape(-1, 4)} > {(153, 153, 153, 255)}
    assert [layer.channel for layer in found.linked] == [0, 1, 2, None]
    assert [layer.shown for layer in found.layers] == [False, False, False, True]
    assert found.linked[-1].url == "segmentation.zarr/labels/classes"
    assert list(found.linked[-1].segments) == [0, 1, 2]


def test_half_precision_is_shown_here_and_left_out_of_neuroglancer(tmp_path):
    write_segmentation(tmp_path / "s.zarr", dtype="float16")
    found = scene(segmentation=str(tmp_path / "s.zarr"))
    np.testing.assert_array_equal(decoded(found.layers[0].tile(0, 3, 0, 0))[..., 3], probabilities()[3])
    assert [(layer.name, layer.visible) for layer in found.linked] == [("membrane", True)]
    assert "neuroglancer does not show float16" in found.remarks[0]


def test_a_voxel_size_that_is_given_is_that_of_every_layer(tmp_path):
    write_segmentation(tmp_path / "s.zarr", voxel_size_nm=None)
    raw = write_stack(tmp_path / "raw.tif", raw_values())
    unknown = scene(volume=raw, segmentation=str(tmp_path / "s.zarr"))
    assert unknown.voxel_size_nm is None
    assert "--voxel-size-nm" in unknown.remarks[0]
    given = scene(volume=raw, segmentation=str(tmp_path / "s.zarr"), voxel_size_nm=(40, 5, 5))
    assert given.remarks == []
    assert [layer.voxel_size_nm for layer in given.linked] == [None, (40, 5, 5), (40, 5, 5)]
    assert [layer.visible for layer in given.linked] == [layer.shown for layer in given.layers] == [True, False, True]
    raw_image = json.loads(given.groups["raw.zarr"].get_part("zarr.json", 0, 1 << 20))["attributes"]["ome"]
    datasets = raw_image["multiscales"][0]["datasets"]
    assert datasets[0]["coordinateTransformations"][0]["scale"] == [40, 5, 5]
    state = json.loads(unquote(link("https://ng", given.linked, SHAPE, given.voxel_size_nm).partition("#!")[2]))
    assert state["dimensions"]["z"] == [4e-8, "m"]


def test_a_voxel_size_that_neuroglancer_cannot_be_told_is_remarked(tmp_path):
    group = zarr.create_group(str(tmp_path / "raw.zarr"))
    group.create_array("0", shape=(1, *SHAPE), dtype="u1", chunks=(1, 1, 64, 64))
    axes = [{"name": "t", "type": "time"}, *({"name": a, "type": "space", "unit": "nanometer"} for a in "zyx")]
    scale = [{"type": "scale", "scale": [1.0, 50.0, 4.0, 4.0]}]
    multiscales = [{"axes": axes, "datasets": [{"path": "0", "coordinateTransformations": scale}]}]
    group.attrs["ome"] = {"version": "0.5", "multiscales": multiscales}
    assert scene(volume=str(tmp_path / "raw.zarr")).remarks == []
    given = scene(volume=str(tmp_path / "raw.zarr"), voxel_size_nm=(40, 4, 4))
    assert (given.linked[0].voxel_size_nm, len(given.remarks)) == (None, 1)
    assert given.remarks[0].endswith("in the voxel size of its own metadata, whose axes are t z y x")


@pytest.mark.parametrize("version", [2, 3])
def test_an_ome_zarr_volume_is_served_as_it_is_and_an_array_as_a_volume(tmp_path, version):
    group = zarr.create_group(str(tmp_path / "raw.zarr"), zarr_format=version)
    array = group.create_array("0", shape=SHAPE, dtype="u1", chunks=(1, 64, 64))
    array[...] = raw_values()
    axes = [{"name": a, "type": "space", "unit": "nanometer"} for a in "zyx"]
    scale = [{"type": "scale", "scale": [50.0, 4.0, 4.0]}]
    multiscales = [{"version": "0.4", "axes": axes, "datasets": [{"path": "0", "coordinateTransformations": scale}]}]
    group.attrs.update({"multiscales": multiscales} if version == 2 else {"ome": {"multiscales": multiscales}})
    stored = scene(volume=str(tmp_path / "raw.zarr"))
    assert (stored.linked[0].zarr_format, stored.voxel_size_nm) == (version, VOXEL_SIZE_NM)
    chunk = tmp_path / "raw.zarr" / "0" / ("0.0.0" if version == 2 else "c/0/0/0")
    key = chunk.relative_to(tmp_path / "raw.zarr").as_posix()
    assert stored.groups["raw.zarr"].get_part(key, 0, 1 << 20) == chunk.read_bytes()
    plain = scene(volume=str(tmp_path / "raw.zarr" / "0"))
    assert plain.linked[0].zarr_format == 3
    assert plain.groups["raw.zarr"].get_part("0/c/0/0/0", 0, 1 << 20) == raw_values()[0].tobytes()


def test_what_cannot_be_shown(tmp_path):
    raw = write_stack(tmp_path / "raw.tif", raw_values())
    small = write_stack(tmp_path / "small.tif", raw_values()[:2])
    segmentation = str(write_segmentation(tmp_path / "s.zarr"))
    with pytest.raises(ConfigError, match="neither --volume nor --segmentation"):
        scene()
    with pytest.raises(VolumeError, match=r"small.tif has shape \(2, 150, 200\) but --segmentation"):
        scene(volume=small, segmentation=segmentation)
    with pytest.raises(VolumeError, match="cannot find a segmentation at"):
        scene(segmentation=str(tmp_path / "nothing.zarr"))
    with pytest.raises(InputError, match="not a segmentation"):
        scene(segmentation=f"{segmentation}/labels/membrane")
    with pytest.raises(InputError, match="cannot find a segmentation at"):
        scene(segmentation=raw)
    with pytest.raises(VolumeError, match="cannot find"):
        scene(volume=str(tmp_path / "nothing.tif"))
