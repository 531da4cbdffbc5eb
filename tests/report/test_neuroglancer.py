"""The state behind neuroglancer's link."""

import json
from urllib.parse import unquote

from unet_ray.report.neuroglancer import LinkedLayer, link


def state(*layers, shape=(30, 1000, 2000), size=(50.0, 4.0, 4.0)):
    url = link("https://viewer.example/ng/", layers, shape, size)
    address, _, rest = url.partition("/#!")
    assert address == "https://viewer.example/ng"
    assert not set(rest) & set(' "<>\\^`{|}')
    return json.loads(unquote(rest))


def test_volume_position_and_scale():
    found = state(LinkedLayer("raw", "image", "http://127.0.0.1:1/raw.zarr"))
    assert found["dimensions"] == {"z": [5e-8, "m"], "y": [4e-9, "m"], "x": [4e-9, "m"]}
    assert list(found["dimensions"]) == ["z", "y", "x"]
    assert found["displayDimensions"] == ["x", "y", "z"]
    assert found["position"] == [15, 500, 1000]
    assert (found["layout"], found["crossSectionScale"]) == ("4panel", 4.0)


def test_an_unknown_voxel_size_has_no_unit():
    assert state(LinkedLayer("raw", "image", "u"), size=None)["dimensions"] == {axis: [1, ""] for axis in "zyx"}


def test_layers():
    raw, probability, mask = state(
        LinkedLayer("raw", "image", "http://a/raw.zarr", 2, (10, 200)),
        LinkedLayer("probability", "image", "http://a/s.zarr", colour=(86, 180, 233), channel=2, visible=False),
        LinkedLayer("membrane", "segmentation", "http://a/s.zarr/labels/membrane", segments={1: (230, 159, 0)}),
    )["layers"]
    assert (raw["type"], raw["name"], raw["source"]) == ("image", "raw", {"url": "zarr2://http://a/raw.zarr"})
    assert "range=[10, 200]" in raw["shader"]
    assert "emitGrayscale" in raw["shader"]
    assert probability["source"] == {"url": "zarr3://http://a/s.zarr"}
    assert "#56b4e9" in probability["shader"]
    assert (probability["localDimensions"], probability["localPosition"]) == ({"c'": [1, ""]}, [2])
    assert (probability["visible"], "visible" in raw) == (False, False)
    assert mask["type"] == "segmentation"
    assert (mask["segments"], mask["segmentColors"]) == (["1"], {"1": "#e69f00"})


def test_a_voxel_size_that_the_group_does_not_tell_goes_into_the_source():
    (layer,) = state(LinkedLayer("raw", "image", "u", voxel_size_nm=(40.0, 5.0, 5.0)))["layers"]
    size = {"z": [4e-8, "m"], "y": [5e-9, "m"], "x": [5e-9, "m"]}
    assert layer["source"]["transform"] == {"outputDimensions": size, "inputDimensions": size}


def test_the_voxel_size_of_an_image_with_channels_leaves_the_channels_alone():
    (layer,) = state(LinkedLayer("a", "image", "u", channel=1, voxel_size_nm=(40.0, 5.0, 5.0)))["layers"]
    transform = layer["source"]["transform"]
    assert list(transform["outputDimensions"].items())[:2] == [("c'", [1, ""]), ("z", [4e-8, "m"])]
    assert transform["inputDimensions"] == transform["outputDimensions"]
