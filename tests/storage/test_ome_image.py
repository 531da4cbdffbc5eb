"""The keys that OME-NGFF 0.5 requires of a multiscale image."""

import re

import pytest

from unet_ray.storage.ome_image import label_colours, ome_image
from unet_ray.storage.ome_metadata import find_level


def test_required_keys_of_a_multiscale():
    ome = ome_image("neurons", [(1, 1, 1), (1, 2, 2), (2, 4, 4)], (50.0, 4.0, 5.0))
    assert ome["version"] == "0.5"
    (multiscale,) = ome["multiscales"]
    assert multiscale["name"] == "neurons"
    assert multiscale["axes"] == [{"name": axis, "type": "space", "unit": "nanometer"} for axis in "zyx"]
    assert [dataset["path"] for dataset in multiscale["datasets"]] == ["0", "1", "2"]
    scales = [dataset["coordinateTransformations"] for dataset in multiscale["datasets"]]
    assert scales == [
        [{"type": "scale", "scale": [50.0, 4.0, 5.0]}],
        # The middle of a box of voxels, whose first one's middle is 0.
        [{"type": "scale", "scale": [50.0, 8.0, 10.0]}, {"type": "translation", "translation": [0.0, 2.0, 2.5]}],
        [{"type": "scale", "scale": [100.0, 16.0, 20.0]}, {"type": "translation", "translation": [25.0, 6.0, 7.5]}],
    ]


@pytest.mark.parametrize("size", [(50.0, 4.0, 5.0), (0.5, 0.25, 0.125)])
def test_our_reader_finds_the_voxel_size(size):
    level = find_level("x", {"ome": ome_image("x", [(1, 1, 1)], size)})
    assert (level.array, level.voxel_size_nm) == ("0", size)


@pytest.mark.parametrize(("dtype", "full"), [("uint8", 255), ("float16", 1)])
def test_several_classes_are_channels_before_space(dtype, full):
    """Required of omero: color and window of every channel; of axes: a channel before space, and scales of all axes."""
    ome = ome_image("classes", [(1, 1, 1), (1, 2, 2)], (50.0, 4.0, 5.0), 3, dtype)
    (multiscale,) = ome["multiscales"]
    assert multiscale["axes"][0] == {"name": "c", "type": "channel"}
    assert [axis["name"] for axis in multiscale["axes"]] == ["c", "z", "y", "x"]
    assert [dataset["coordinateTransformations"] for dataset in multiscale["datasets"]] == [
        [{"type": "scale", "scale": [1.0, 50.0, 4.0, 5.0]}],
        [
            {"type": "scale", "scale": [1.0, 50.0, 8.0, 10.0]},
            {"type": "translation", "translation": [0.0, 0.0, 2.0, 2.5]},
        ],
    ]
    channels = ome["omero"]["channels"]
    assert [channel["label"] for channel in channels] == ["class 0", "class 1", "class 2"]
    for channel in channels:
        assert re.fullmatch("[0-9A-F]{6}", channel["color"])
        assert channel["window"] == {"min": 0, "max": full, "start": 0, "end": full}
    assert find_level("x", {"ome": ome}).axes == ("c", "z", "y", "x")
    assert "omero" not in ome_image("membrane", [(1, 1, 1)], None)


def test_every_class_has_a_colour_of_its_own():
    assert label_colours(1) == [{"label-value": 1, "rgba": [230, 159, 0, 255]}]
    found = label_colours(256)
    assert [colour["label-value"] for colour in found] == list(range(256))
    assert len({tuple(colour["rgba"]) for colour in found}) == 256
    assert all(0 <= part <= 255 for colour in found for part in colour["rgba"])


def test_an_unknown_voxel_size_has_no_unit():
    ome = ome_image("x", [(1, 1, 1)], None)
    assert all("unit" not in axis for axis in ome["multiscales"][0]["axes"])
    assert find_level("x", {"ome": ome}).voxel_size_nm is None
