"""The keys that OME-NGFF 0.5 requires of a multiscale image."""

import pytest

from unet_ray.storage.ome_image import ome_image
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


def test_an_unknown_voxel_size_has_no_unit():
    ome = ome_image("x", [(1, 1, 1)], None)
    assert all("unit" not in axis for axis in ome["multiscales"][0]["axes"])
    assert find_level("x", {"ome": ome}).voxel_size_nm is None
