"""Levels of lower resolution, of one class and of several: what each is made from, forgotten with and damaged like."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import zarr
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.storage.test_segmentation import files
from unet_ray.geometry.box import Box
from unet_ray.geometry.tiles import BlockGrid, TileGrid
from unet_ray.storage.segmentation import LEVEL, Segmentation
from unet_ray.storage.segmentation_layout import CLASSES, MASK, SegmentationLayout

ATTRIBUTES = {"made_with": {"model": "abc"}, "threshold": 0.5}
PYRAMID = SegmentationLayout(
    BlockGrid(TileGrid((5, 70, 90), (1, 16, 16)), (2, 1, 1)), (1, 8, 8), (50.0, 4.0, 4.0), ((1, 2, 2), (2, 2, 2))
)


def fill(output, level, blocks=None):
    grid = PYRAMID.grid(level)
    for block in range(grid.num_blocks) if blocks is None else blocks:
        values = np.full(grid.write_box(block).shape, 10 * level + block, np.uint8)
        output.put(output.encode(PYRAMID, block, values, 0.5, level))


def test_levels_cover_the_volume_and_each_block_has_its_own_source():
    assert [PYRAMID.grid(level).tiles.volume for level in PYRAMID.levels] == [(5, 70, 90), (5, 35, 45), (3, 18, 23)]
    assert [PYRAMID.scale(level) for level in PYRAMID.levels] == [(1, 1, 1), (1, 2, 2), (2, 4, 4)]
    for level in PYRAMID.levels[1:]:
        below, seen = PYRAMID.grid(level - 1), np.zeros(PYRAMID.grid(level - 1).tiles.volume, int)
        for block in range(PYRAMID.grid(level).num_blocks):
            box = PYRAMID.source(level, block)
            seen[box.slices] += 1
            children = list(below.blocks_touching(box))
            # Whole blocks: nobody else reads them.
            assert sum(below.write_box(child).voxels for child in children) == box.voxels
        assert (seen == 1).all()


@settings(max_examples=200, deadline=None)
@given(
    st.tuples(st.integers(1, 9), st.integers(1, 90), st.integers(1, 90)),
    st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3)),
    st.lists(st.sampled_from([(1, 2, 2), (2, 2, 2), (1, 3, 2)]), max_size=4),
)
@example((5, 70, 90), (2, 1, 1), [(1, 2, 2), (2, 2, 2)])
def test_shards_of_coarse_levels_are_cut_to_the_level_alone(volume, tiles, factors):
    """Their places, sources and what lies above them are those of padded ones."""
    blocks = BlockGrid(TileGrid(volume, (1, 16, 16)), tiles)
    layout = SegmentationLayout(blocks, (1, 8, 8), None, tuple(factors))
    padded = replace(layout, padded=True)
    for level in layout.levels:
        grid, spec = layout.grid(level), layout.spec(level)
        assert (spec.shape, spec.shard) == (grid.tiles.volume, grid.shard)
        for side, shard, full, chunk in zip(grid.tiles.volume, grid.shard, blocks.shard, (1, 8, 8), strict=True):
            assert shard % chunk == 0
            assert shard == (full if level == 0 or full <= side else -(-side // chunk) * chunk)
        assert grid.counts == padded.grid(level).counts
        assert padded.spec(level).shard == blocks.shard
        for block in range(grid.num_blocks):
            assert grid.write_box(block) == padded.grid(level).write_box(block)
            if level:
                children = list(layout.grid(level - 1).blocks_touching(layout.source(level, block)))
                assert layout.above(level, children) == {block}


def test_levels_in_the_metadata(tmp_path):
    output = Segmentation(str(tmp_path / "out.zarr"))
    output.create(PYRAMID, ATTRIBUTES)
    group = zarr.open_group(output.path, mode="r")
    for holder in (group, group[MASK]):
        datasets = holder.attrs["ome"]["multiscales"][0]["datasets"]
        assert [dataset["path"] for dataset in datasets] == ["0", "1", "2"]
        scales = [dataset["coordinateTransformations"][0]["scale"] for dataset in datasets]
        assert scales == [[50, 4, 4], [50, 8, 8], [100, 16, 16]]
        moved = [dataset["coordinateTransformations"][1]["translation"] for dataset in datasets[1:]]
        assert moved == [[0, 2, 2], [25, 6, 6]]  # the middle of a box of voxels
        assert [holder[str(level)].shape for level in range(3)] == [(5, 70, 90), (5, 35, 45), (3, 18, 23)]


def test_a_level_is_ready_when_its_source_is_there(tmp_path):
    output = Segmentation(str(tmp_path / "out.zarr"))
    output.create(PYRAMID, ATTRIBUTES)
    assert output.ready(PYRAMID, 1) == []
    first = [b for b in range(PYRAMID.blocks.num_blocks) if PYRAMID.blocks.position(b)[0] == 0]
    fill(output, 0, first)
    assert output.ready(PYRAMID, 1) == [b for b in range(PYRAMID.grid(1).num_blocks) if b < 9]
    fill(output, 0, [b for b in range(PYRAMID.blocks.num_blocks) if b != PYRAMID.blocks.number((2, 3, 5))])
    lacks_one = PYRAMID.grid(1).number((2, 1, 2))
    assert output.ready(PYRAMID, 1) == [b for b in range(PYRAMID.grid(1).num_blocks) if b != lacks_one]
    fill(output, 0)
    fill(output, 1)
    assert output.ready(PYRAMID, 1) == []
    assert output.ready(PYRAMID, 2) == list(range(PYRAMID.grid(2).num_blocks))
    found = output.read_source(PYRAMID, 1, 4)
    for child in PYRAMID.blocks.blocks_touching(PYRAMID.source(1, 4)):
        inside = PYRAMID.blocks.write_box(child).relative_to(PYRAMID.source(1, 4).start)
        assert (found[inside.slices] == child).all()


def test_what_was_made_from_a_block_is_forgotten_up_to_the_top(tmp_path):
    output = Segmentation(str(tmp_path / "out.zarr"))
    output.create(PYRAMID, ATTRIBUTES)
    for level in PYRAMID.levels:
        fill(output, level)
    changed = PYRAMID.blocks.number((2, 3, 5))
    output.forget_above(PYRAMID, [changed])
    for level, place in ((1, (2, 1, 2)), (2, (1, 0, 1))):
        grid = PYRAMID.grid(level)
        assert list(output.done(grid, str(level)).missing()) == [grid.number(place)]
    assert len(output.done(PYRAMID.blocks)) == PYRAMID.blocks.num_blocks
    output.forget_above(PYRAMID, [])


def test_damage_is_found_in_every_level(tmp_path):
    output = Segmentation(str(tmp_path / "out.zarr"))
    output.create(PYRAMID, ATTRIBUTES)
    for level in PYRAMID.levels:
        fill(output, level)
    for key in ("1/c/0/1/2", f"{MASK}/2/c/1/0/1"):
        path = tmp_path / "out.zarr" / key
        data = bytearray(path.read_bytes())
        data[3] ^= 1
        path.write_bytes(data)
    checked = []
    shards = output.shards(PYRAMID)
    assert shards == 2 * sum(PYRAMID.grid(level).num_blocks for level in PYRAMID.levels)
    assert sorted(output.verify(PYRAMID, on_checked=lambda: checked.append(1))) == [
        (1, PYRAMID.grid(1).number((0, 1, 2))), (2, PYRAMID.grid(2).number((1, 0, 1)))
    ]  # fmt: skip
    assert len(checked) == shards


@pytest.mark.parametrize("layout", [PYRAMID, replace(PYRAMID, classes=3)], ids=["membrane", "classes"])
def test_what_was_lost_stays_known_until_it_is_made_again(tmp_path, layout):
    """Set aside and then killed; or deleted, under a level that was made from it."""
    output = Segmentation(str(tmp_path / "out.zarr"))
    output.create(layout, ATTRIBUTES)
    for level in layout.levels:
        grid = layout.grid(level)
        for block in range(grid.num_blocks):
            values = np.full((*layout.channels, *grid.write_box(block).shape), block, np.uint8)
            output.put(output.encode(layout, block, values, 0.5, level))
    assert output.lost(layout) == []
    damaged, deleted = 7, 40
    output.objects.put(layout.record(0, damaged), b"no shard")
    output.objects.delete(layout.record(0, deleted))
    assert list(output.verify(layout)) == [(0, damaged)]
    assert output.lost(layout) == [damaged, deleted]
    output.forget_above(layout, [damaged])
    assert list(output.verify(layout)) == []
    assert output.lost(layout) == [damaged, deleted]
    for block in (damaged, deleted):
        values = np.full((*layout.channels, *layout.blocks.write_box(block).shape), block, np.uint8)
        output.put(output.encode(layout, block, values, 0.5))
    assert output.lost(layout) == []


CLASS_LAYOUT = replace(PYRAMID, classes=3)


@pytest.fixture
def classes(tmp_path):
    """Three levels of three classes; every voxel of a block knows its block, level and class."""
    made = Segmentation(str(tmp_path / "classes.zarr"))
    made.create(CLASS_LAYOUT, ATTRIBUTES)
    for level in CLASS_LAYOUT.levels:
        grid = CLASS_LAYOUT.grid(level)
        for block in range(grid.num_blocks):
            values = np.empty((3, *grid.write_box(block).shape), np.uint8)
            values[:] = np.array([block, 3 * block % 7, 7 * level]).reshape(3, 1, 1, 1)
            made.put(made.encode(CLASS_LAYOUT, block, values, 0.5, level))
    return made


def test_classes_share_a_shard_and_have_chunks_of_their_own(classes):
    group = zarr.open_group(classes.path, mode="r")
    assert classes.classes() == 3
    assert group["labels"].attrs["ome"]["labels"] == ["classes"]
    assert [axis["name"] for axis in group.attrs["ome"]["multiscales"][0]["axes"]] == ["c", "z", "y", "x"]
    label = group[CLASSES].attrs["ome"]
    assert [axis["name"] for axis in label["multiscales"][0]["axes"]] == ["z", "y", "x"]
    assert [colour["label-value"] for colour in label["image-label"]["colors"]] == [0, 1, 2]
    for level in CLASS_LAYOUT.levels:
        shape = CLASS_LAYOUT.grid(level).tiles.volume
        values, labels = group[str(level)], group[f"{CLASSES}/{level}"]
        assert (values.shape, values.shards, values.chunks) == ((3, *shape), (3, 2, 16, 16), (1, 1, 8, 8))
        assert (labels.shape, labels.shards, labels.chunks, labels.dtype) == (shape, (2, 16, 16), (1, 8, 8), "u1")
        assert values.metadata.dimension_names == ("c", "z", "y", "x")
        np.testing.assert_array_equal(labels[...], values[...].argmax(axis=0))
        for block in (0, CLASS_LAYOUT.grid(level).num_blocks - 1):
            inside = CLASS_LAYOUT.grid(level).write_box(block).slices
            expected = values[(slice(None), *inside)]
            np.testing.assert_array_equal(classes.read_block(CLASS_LAYOUT, block, level), expected)
    with ThreadPoolExecutor(2) as pool:
        box = Box((0, 0, 16), (1, 1, 17))
        assert [read(box).item() for read in classes.probability_readers(CLASS_LAYOUT, pool)] == [1, 3, 0]
        assert classes.label_reader(CLASS_LAYOUT, pool)(box).item() == 1


def test_classes_are_listed_verified_and_forgotten_as_blocks(classes):
    blocks, before = CLASS_LAYOUT.blocks, files(classes)
    assert len(classes.done(blocks)) == blocks.num_blocks
    assert list(classes.verify(CLASS_LAYOUT)) == []
    assert classes.unwritten_blocks([0, 4]) == 0
    place = "/".join(map(str, blocks.position(7)))
    classes.objects.put(f"{LEVEL}/c/0/{place}", before[f"{LEVEL}/c/0/{place}"][:-3])
    classes.objects.put(f"{CLASSES}/1/c/0/1/2", b"\0" * 300)
    assert sorted(classes.verify(CLASS_LAYOUT)) == [(0, 7), (1, CLASS_LAYOUT.grid(1).number((0, 1, 2)))]
    assert list(classes.done(blocks).missing()) == [7]
    assert not classes.is_done(CLASS_LAYOUT, 7)
    assert classes.is_done(CLASS_LAYOUT, 8)
    assert [classes.unwritten_blocks([z]) for z in (0, 4)] == [1, 0]
    changed = blocks.number((2, 3, 5))
    classes.forget_above(CLASS_LAYOUT, [changed])
    for level, above in ((1, (2, 1, 2)), (2, (1, 0, 1))):
        grid = CLASS_LAYOUT.grid(level)
        assert list(classes.done(grid, str(level)).missing()) == [grid.number(above)]
    assert classes.ready(CLASS_LAYOUT, 1) == [CLASS_LAYOUT.grid(1).number((2, 1, 2))]


def test_the_source_of_a_level_holds_all_classes(classes):
    found, box = classes.read_source(CLASS_LAYOUT, 1, 4), CLASS_LAYOUT.source(1, 4)
    np.testing.assert_array_equal(found, zarr.open_array(f"{classes.path}/0")[(slice(None), *box.slices)])
