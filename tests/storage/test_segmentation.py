"""The segmentation's files: made, interrupted, damaged, with another threshold, and as others read them."""

import itertools
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr

from tests.shipped import shipped
from unet_ray.errors import OutputMismatchError, TargetError, VolumeError
from unet_ray.geometry.box import Box
from unet_ray.geometry.tiles import BlockGrid, TileGrid
from unet_ray.storage.probability import mask_of
from unet_ray.storage.segmentation import LEVEL, Segmentation
from unet_ray.storage.segmentation_layout import MASK, SegmentationLayout
from unet_ray.storage.volume import open_volume

ROOT = Path(__file__).resolve().parents[2]
LAYOUT = SegmentationLayout(BlockGrid(TileGrid((5, 40, 50), (1, 16, 16)), (2, 2, 2)), (1, 8, 8), (50.0, 4.0, 4.0))
BLOCKS = LAYOUT.blocks
ATTRIBUTES = {"made_with": {"model": "abc", "tile_px": 16, "volume": {"size": 7}}, "threshold": 0.5}
PROBABILITY = (np.arange(5 * 40 * 50).reshape(5, 40, 50) % 256).astype(np.uint8)


def put(output, block, threshold=0.5):
    output.put(output.encode(LAYOUT, block, PROBABILITY[BLOCKS.write_box(block).slices], threshold))


@pytest.fixture(params=["local", "s3"])
def url(request, tmp_path):
    return str(tmp_path / "out.zarr") if request.param == "local" else request.getfixturevalue("s3")


@pytest.fixture
def output(tmp_path):
    made = Segmentation(str(tmp_path / "out.zarr"))
    made.create(LAYOUT, ATTRIBUTES)
    for block in range(BLOCKS.num_blocks):
        put(made, block)
    return made


def files(output):
    return {info.key: output.objects.get(info.key) for info in output.objects.list()}


def read(path, array=None):
    volume = open_volume(path, array=array)
    return volume.read(Box.of_shape(volume.shape))


def test_a_new_voxel_size_shows_when_all_of_it_is_there(output, monkeypatch):
    """A run that is killed in between leaves the old one in the root, by which the next finds what is to be changed."""
    new, put_one = replace(LAYOUT, voxel_size_nm=(45.0, 5.0, 5.0)), output.objects.put

    def dies_after(puts):
        left = iter(range(puts))

        def mortal(key, data):
            if next(left, None) is None:
                raise KeyboardInterrupt
            put_one(key, data)

        return mortal

    for puts in itertools.count():
        monkeypatch.setattr(output.objects, "put", dies_after(puts))
        try:
            output.create(new, ATTRIBUTES)
        except KeyboardInterrupt:
            assert Segmentation(output.path).voxel_size_nm() == (50, 4, 4)
        else:
            break
    assert puts > 3
    assert open_volume(output.path).voxel_size_nm == open_volume(f"{output.path}/{MASK}").voxel_size_nm == (45, 5, 5)
    assert Segmentation(output.path).voxel_size_nm() == (45, 5, 5)


def test_made_block_by_block(url):
    output = Segmentation(url)
    assert output.attributes() is None
    output.create(LAYOUT, ATTRIBUTES)
    assert output.attributes() == ATTRIBUTES
    for count, block in enumerate(reversed(range(BLOCKS.num_blocks))):
        assert not output.is_done(LAYOUT, block)
        assert len(output.done(BLOCKS)) == count
        put(shipped(output), block)
        assert output.is_done(LAYOUT, block)
        np.testing.assert_array_equal(output.read_block(LAYOUT, block), PROBABILITY[BLOCKS.write_box(block).slices])
    assert len(output.done(BLOCKS)) == len(output.done(BLOCKS, f"{MASK}/{LEVEL}")) == BLOCKS.num_blocks == 12
    np.testing.assert_array_equal(read(url), PROBABILITY)
    np.testing.assert_array_equal(read(f"{url}/{MASK}"), PROBABILITY >= 128)


def test_the_metadata_that_ome_zarr_requires(output):
    """OME-NGFF 0.5: image, labels and image-label, by the keys that the specification calls required."""
    group = zarr.open_group(output.path, mode="r")
    assert group.metadata.zarr_format == 3
    assert group.attrs["ome"]["version"] == "0.5"
    assert group["labels"].attrs["ome"] == {"version": "0.5", "labels": ["membrane"]}
    label = group[MASK].attrs["ome"]
    assert label["image-label"]["source"] == {"image": "../../"}
    assert label["image-label"]["colors"][0]["label-value"] == 1
    for multiscale in (group.attrs["ome"]["multiscales"][0], label["multiscales"][0]):
        assert [axis["name"] for axis in multiscale["axes"]] == ["z", "y", "x"]
        assert [dataset["path"] for dataset in multiscale["datasets"]] == [LEVEL]
    for array in (group[LEVEL], group[f"{MASK}/{LEVEL}"]):
        assert (array.shape, array.shards, array.chunks, array.dtype) == ((5, 40, 50), (2, 32, 32), (1, 8, 8), "u1")
        assert array.metadata.dimension_names == ("z", "y", "x")
    assert open_volume(output.path).voxel_size_nm == open_volume(f"{output.path}/{MASK}").voxel_size_nm == (50, 4, 4)
    np.testing.assert_array_equal(group[LEVEL][...], PROBABILITY)


def test_creating_again_keeps_the_shards(output):
    before = files(output)
    output.create(LAYOUT, ATTRIBUTES)
    assert files(output) == before


def test_one_job_alone_claims_an_output(url, tmp_path):
    first, created = Segmentation(url), Segmentation(str(tmp_path / "created.zarr"))
    first.claim(LAYOUT, ATTRIBUTES)
    created.create(LAYOUT, ATTRIBUTES)
    before = files(first)
    assert before == files(created)
    with pytest.raises(OutputMismatchError, match=f"another job has just started output {url}; run the same command"):
        Segmentation(url).claim(replace(LAYOUT, voxel_size_nm=None), {"made_with": {"model": "d"}})
    assert files(first) == before


@pytest.mark.parametrize(("threshold", "least"), [(0.5, 128), (0.1, 26), (0.9, 230), (0.002, 1), (0.999, 255)])
def test_the_mask_is_above_the_threshold(threshold, least):
    assert np.flatnonzero(mask_of(np.arange(256, dtype=np.uint8), threshold))[0] == least


def test_another_threshold_rewrites_the_mask_alone(output, tmp_path):
    probability = {key: data for key, data in files(output).items() if key.startswith(f"{LEVEL}/")}
    output.drop_masks(LAYOUT)
    assert len(output.done(BLOCKS, f"{MASK}/{LEVEL}")) == 0
    output.set_attributes(ATTRIBUTES | {"threshold": 0.9})
    assert output.attributes()["threshold"] == 0.9
    for block in range(BLOCKS.num_blocks):
        output.put(output.encode_label(LAYOUT, block, output.read_block(LAYOUT, block), 0.9))
    assert {key: data for key, data in files(output).items() if key.startswith(f"{LEVEL}/")} == probability
    np.testing.assert_array_equal(read(f"{output.path}/{MASK}"), PROBABILITY > 0.9 * 255)
    at_once = Segmentation(str(tmp_path / "at-once.zarr"))
    at_once.create(LAYOUT, ATTRIBUTES)
    for block in range(BLOCKS.num_blocks):
        put(at_once, block, 0.9)
    shards = {key: data for key, data in files(output).items() if "/c/" in key}
    assert shards == {key: data for key, data in files(at_once).items() if "/c/" in key}


def test_changed_attributes_leave_the_rest_of_the_metadata(output):
    before = zarr.open_group(output.path, mode="r").attrs["ome"]
    output.set_attributes({"note": "ä"})
    assert output.attributes() == {"note": "ä"}
    assert zarr.open_group(output.path, mode="r").attrs["ome"] == before


def test_what_was_not_asked_for_may_differ(output):
    assert output.refuse_other({"model": "abc", "volume": {"size": 7}}) == ATTRIBUTES
    with pytest.raises(OutputMismatchError, match=r"was made with model abc \(now d\), tile_px 16 \(now 32\); choose"):
        output.refuse_other({"model": "d", "tile_px": 32})
    with pytest.raises(OutputMismatchError, match=r"volume.size 7 \(now 8\)"):
        output.refuse_other({"volume": {"size": 8}})
    assert Segmentation(f"{output.path}x").refuse_other({"model": "d"}) is None


@pytest.mark.parametrize(
    ("make", "kind", "said"),
    [
        (lambda path: (path / "thesis.txt").write_text("years"), OutputMismatchError, r"\(it holds thesis.txt\)"),
        (lambda path: zarr.create_group(str(path)), OutputMismatchError, "zarr but not a segmentation of ours"),
        (lambda path: (path / "zarr.json").write_text("{"), TargetError, "is not zarr metadata"),
    ],
)
def test_what_is_not_ours_is_neither_continued_nor_removed(tmp_path, make, kind, said):
    make(tmp_path)
    output = Segmentation(str(tmp_path))
    before = files(output)
    for action in (output.attributes, output.overwrite, lambda: output.refuse_other({})):
        with pytest.raises(kind, match=said):
            action()
    assert files(output) == before


def test_overwriting_removes_everything(output):
    output.overwrite()
    assert files(output) == {}
    assert output.attributes() is None
    output.overwrite()


def test_unwritten_blocks_by_section(output):
    assert output.unwritten_blocks(range(5)) == 0
    for block in (0, 5, 11):  # sections 0-1, 2-3 and 4
        output.objects.delete(f"{LEVEL}/c/{'/'.join(map(str, BLOCKS.position(block)))}")
    assert [output.unwritten_blocks([z]) for z in range(5)] == [1, 1, 1, 1, 1]
    output.objects.delete(f"{LEVEL}/c/0/0/1")
    assert [output.unwritten_blocks(chosen) for chosen in ([0], [0, 1], [2], [4, 0], range(5))] == [2, 2, 1, 3, 4]


def test_an_array_without_its_metadata_is_a_sentence(output):
    output.objects.delete(f"{LEVEL}/zarr.json")
    for ask in (output.blocks_done, lambda: output.unwritten_blocks([0])):
        with pytest.raises(VolumeError, match=r"has lost 0/zarr\.json, or has none yet; run the same jobs/segment.py"):
            ask()


@pytest.mark.parametrize("damage", [None, b"", b"short"])
def test_a_damaged_block_is_not_read(output, damage):
    key = f"{LEVEL}/c/0/1/0"
    output.objects.delete(key) if damage is None else output.objects.put(key, damage)
    with pytest.raises(
        VolumeError, match=r"block 2 of .* is damaged \(the shard .*\); run the same command with --verify"
    ):
        output.read_block(LAYOUT, 2)


def test_verify_sets_aside_what_a_run_then_repairs(output):
    before = files(output)
    assert list(output.verify(LAYOUT)) == []
    output.objects.put(f"{LEVEL}/c/0/0/1", before[f"{LEVEL}/c/0/0/1"][:-3])
    output.objects.put(f"{MASK}/{LEVEL}/c/2/1/1", b"\0" * 300)
    assert sorted(output.verify(LAYOUT)) == [(0, 1), (0, 11)]
    assert list(output.done(BLOCKS).missing()) == [1]
    assert list(output.done(BLOCKS, f"{MASK}/{LEVEL}").missing()) == [11]
    put(output, 1)
    output.put(output.encode_label(LAYOUT, 11, output.read_block(LAYOUT, 11), 0.5))
    assert {key: data for key, data in files(output).items() if not key.endswith(".damaged")} == before


DIES = """
import os, signal, sys
import numpy as np
from unet_ray.geometry.tiles import BlockGrid, TileGrid
from unet_ray.storage.local_objects import LocalObjects
from unet_ray.storage.segmentation import Segmentation
from unet_ray.storage.segmentation_layout import SegmentationLayout
original = LocalObjects.put
def deadly(self, key, data):
    if key == sys.argv[2]:
        os.kill(os.getpid(), signal.SIGKILL)
    original(self, key, data)
LocalObjects.put = deadly
blocks = BlockGrid(TileGrid((5, 40, 50), (1, 16, 16)), (2, 2, 2))
layout = SegmentationLayout(blocks, (1, 8, 8), None)
output = Segmentation(sys.argv[1])
output.put(output.encode(layout, 3, np.ones(blocks.write_box(3).shape, np.uint8), 0.5))
"""


@pytest.mark.parametrize("array", [f"{MASK}/{LEVEL}", LEVEL])
def test_killed_between_the_puts_of_one_block(output, array):
    """Mask first, probability last: without it the block is not done, and making it again leaves no trace."""
    before, place = files(output), "/".join(map(str, BLOCKS.position(3)))
    for name in (LEVEL, f"{MASK}/{LEVEL}"):
        output.objects.delete(f"{name}/c/{place}")
    killed = subprocess.run(
        [sys.executable, "-c", DIES, output.path, f"{array}/c/{place}"], cwd=ROOT, check=False
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL
    assert (3 in output.done(BLOCKS, f"{MASK}/{LEVEL}")) == (array == LEVEL)
    assert list(output.done(BLOCKS).missing()) == [3]
    put(output, 3)
    assert files(output) == before


def test_a_smaller_grid_does_not_take_a_larger_ones_blocks(output):
    """Shards outside the grid asked about are nobody's blocks."""
    smaller = BlockGrid(TileGrid((2, 32, 32), (1, 16, 16)), (2, 2, 2))
    assert list(output.done(smaller)) == [0]


def test_half_precision_changes_the_dtype_alone(output, tmp_path):
    half = replace(LAYOUT, dtype="float16")
    other = Segmentation(str(tmp_path / "half.zarr"))
    other.create(half, ATTRIBUTES)
    for block in range(BLOCKS.num_blocks):
        values = PROBABILITY[BLOCKS.write_box(block).slices] / np.float16(256)
        other.put(other.encode(half, block, values, 0.499))  # 128 of 256 is above, 127 is not
    assert files(output).keys() == files(other).keys()
    differing = {key for key, data in files(output).items() if files(other)[key] != data}
    assert {key for key in differing if not key.startswith(f"{LEVEL}/")} == set()
    found = read(other.path)
    assert found.dtype == np.float16
    np.testing.assert_array_equal(found * np.float16(256), PROBABILITY)
    np.testing.assert_array_equal(other.read_block(half, 11), found[BLOCKS.write_box(11).slices])
    assert list(other.verify(half)) == []


def test_what_made_with_does_not_say(output):
    assert output.refuse_other({"model": "abc", "probability_dtype": "uint8"}) == ATTRIBUTES
    with pytest.raises(OutputMismatchError, match=r"probability_dtype uint8 \(now float16\)"):
        output.refuse_other({"probability_dtype": "float16"})
