"""Shards as zarr itself reads them, and every way in which one can be less than whole."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import example, given, settings
from hypothesis import strategies as st
from zarr.storage import MemoryStore

from unet_ray.errors import TargetError
from unet_ray.storage.array_spec import ArraySpec
from unet_ray.storage.open_objects import open_objects
from unet_ray.storage.shard_codec import ShardCodec
from unet_ray.storage.shards import (
    present_shards,
    put_array,
    put_group,
    put_shard,
    read_attributes,
    read_document,
    set_aside_damaged,
    shard_key,
)

ROOT = Path(__file__).resolve().parents[2]
SPEC = ArraySpec((5, 20, 20), (2, 16, 16), (1, 8, 8), "uint8", ("z", "y", "x"))
PLACES = list(np.ndindex(*SPEC.counts))


def place_slices(spec, place):
    return tuple(slice(p * s, min((p + 1) * s, n)) for p, s, n in zip(place, spec.shard, spec.shape, strict=True))


def volume(spec=SPEC):
    """Each voxel holds its own flat index, as far as its dtype goes."""
    return (np.arange(np.prod(spec.shape)).reshape(spec.shape) % 251 + 1).astype(spec.dtype)


@pytest.fixture
def root(tmp_path):
    """A group with the array ``a``, every shard of which has been put."""
    objects, codec = open_objects(str(tmp_path / "group.zarr")), ShardCodec(SPEC)
    put_group(objects, "", {"kept": [1, "two"]})
    put_array(objects, "a", SPEC, {"unit": "µm"})
    for place in PLACES:
        put_shard(objects, "a", codec, place, volume()[place_slices(SPEC, place)])
    return objects


@pytest.mark.parametrize("compressor", ["zstd", "lz4"])
@pytest.mark.parametrize("dtype", ["uint8", "float16", "uint16"])
def test_zarr_reads_what_was_put(tmp_path, compressor, dtype):
    spec = ArraySpec((3, 2, 21, 9), (2, 2, 16, 8), (1, 2, 8, 4), dtype, ("n", "c", "y", "x"), compressor)
    objects, codec = open_objects(str(tmp_path)), ShardCodec(spec)
    put_array(objects, "x/y", spec, {"seed": 3})
    for place in np.ndindex(*spec.counts):
        assert put_shard(objects, "x/y", codec, place, volume(spec)[place_slices(spec, place)]) == objects.size(
            shard_key("x/y", place)
        )
    array = zarr.open(str(tmp_path / "x/y"), mode="r")
    np.testing.assert_array_equal(array[...], volume(spec))
    assert (array.shards, array.chunks, array.dtype, dict(array.attrs)) == (spec.shard, spec.chunk, dtype, {"seed": 3})
    assert array.metadata.dimension_names == spec.axes


def test_chunks_and_index_carry_checksums(root):
    metadata = json.loads(root.get("a/zarr.json"))
    (sharding,) = metadata["codecs"]
    assert sharding["name"] == "sharding_indexed"
    inner = sharding["configuration"]
    assert [codec["name"] for codec in inner["codecs"]] == ["bytes", "zstd", "crc32c"]
    assert [codec["name"] for codec in inner["index_codecs"]] == ["bytes", "crc32c"]
    assert metadata["zarr_format"] == 3


def test_an_ordinary_array_of_the_same_values_is_the_same_bytes(root, tmp_path):
    """Nothing of ours is in the format: zarr writes these shards itself."""
    codecs = [zarr.codecs.ZstdCodec(level=3), zarr.codecs.Crc32cCodec()]
    plain = zarr.create_array(
        str(tmp_path / "plain"), shape=SPEC.shape, shards=SPEC.shard, chunks=SPEC.chunk, dtype="uint8",
        compressors=codecs, fill_value=0, config={"write_empty_chunks": True},
    )  # fmt: skip
    plain[...] = volume()
    for place in [(0, 0, 0), (1, 0, 0)]:  # inside; of an overhanging shard zarr leaves out the chunks outside
        ours = root.get(shard_key("a", place))
        assert ours == (tmp_path / "plain" / "c" / "/".join(map(str, place))).read_bytes()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 5), st.integers(1, 4)), min_size=1, max_size=4),
    st.sampled_from(["uint8", "float16", "uint16", "float32"]),
    st.sampled_from(["zstd", "lz4"]),
    st.integers(0, 9),
)
@example([(1, 2), (5, 3), (7, 1)], "uint8", "zstd", 0)
def test_any_shard_is_the_same_bytes_as_zarr_makes_of_it(sides, dtype, compressor, seed):
    """Chunks in its order, compressed with its settings, and back."""
    shard, chunk = tuple(count * side for count, side in sides), tuple(side for _, side in sides)
    spec = ArraySpec(shard, shard, chunk, dtype, ("n", "z", "y", "x")[-len(sides) :], compressor)
    values = np.random.default_rng(seed).integers(0, 5, shard).astype(dtype)
    objects = {}
    spec.create(MemoryStore(objects), shard, {})[...] = values
    (theirs,) = (data.to_bytes() for key, data in objects.items() if key != "zarr.json")
    assert ShardCodec(spec).encode(values) == theirs
    np.testing.assert_array_equal(ShardCodec(spec).decode(theirs), values)


def test_chunks_that_zarr_never_wrote_are_fill_values(root):
    """It leaves out those outside of an overhanging array."""
    objects = {}
    array = SPEC.create(MemoryStore(objects), (2, 12, 20), {})
    array[...] = volume()[:2, :12]
    inside = ShardCodec(SPEC).decode(objects["c/0/0/1"].to_bytes())
    np.testing.assert_array_equal(inside[:, :12, :4], volume()[:2, :12, 16:])
    assert inside.sum() == inside[:, :12, :4].sum()


@settings(max_examples=25, deadline=None)
@given(st.tuples(st.integers(1, 2), st.integers(1, 16), st.integers(1, 16)), st.integers(0, 9))
def test_encode_pads_and_decode_gives_it_back(shape, seed):
    values = np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)
    codec = ShardCodec(SPEC)
    whole = codec.decode(codec.encode(values))
    inside = tuple(slice(0, n) for n in shape)
    np.testing.assert_array_equal(whole[inside], values)
    assert whole.sum() == values.sum()
    assert codec.encode(values) == ShardCodec(SPEC).encode(values)


REOPENS_AND_PUTS_ZEROS = """
import sys, numpy as np
from unet_ray.storage.open_objects import open_objects
from unet_ray.storage.array_spec import ArraySpec
from unet_ray.storage.shard_codec import ShardCodec
from unet_ray.storage.shards import put_shard
spec = ArraySpec((5, 20, 20), (2, 16, 16), (1, 8, 8), "uint8", ("z", "y", "x"))
put_shard(open_objects(sys.argv[1]), "a", ShardCodec(spec), (1, 1, 0), np.zeros((2, 4, 16), np.uint8))
"""


def test_a_shard_of_fill_values_from_a_process_that_reopened_the_array(root):
    root.delete(shard_key("a", (1, 1, 0)))
    subprocess.run([sys.executable, "-c", REOPENS_AND_PUTS_ZEROS, root.url], cwd=ROOT, check=True)
    assert sorted(present_shards(root, "a")) == PLACES
    assert set_aside_damaged(root, "a", SPEC, PLACES) == []
    expected = volume()
    expected[place_slices(SPEC, (1, 1, 0))] = 0
    np.testing.assert_array_equal(zarr.open(f"{root.url}/a", mode="r")[...], expected)


def test_a_put_reads_nothing_back_and_mends_a_damaged_shard(root, monkeypatch):
    key = shard_key("a", (0, 0, 0))
    good = root.get(key)
    root.put(key, b"garbage")
    monkeypatch.setattr(type(root), "get", None)
    put_shard(root, "a", ShardCodec(SPEC), (0, 0, 0), volume()[:2, :16, :16])
    monkeypatch.undo()
    assert root.get(key) == good


def test_only_whole_shards_count_as_present(root):
    root.put(shard_key("a", (0, 0, 0)), b"")
    root.rename(shard_key("a", (0, 1, 1)), shard_key("a", (0, 1, 1)) + ".damaged")
    root.put("a/c/.DS_Store", b"litter")
    root.put("ab/c/9/9/9", b"another array's")
    assert sorted(present_shards(root, "a")) == [p for p in PLACES if p not in [(0, 0, 0), (0, 1, 1)]]
    assert list(present_shards(root, "none")) == []


def cut(data, at):
    return data[:at]


def flip(data, at):
    return data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :]


@pytest.mark.parametrize("damage", [cut, flip])
def test_every_cut_and_every_flipped_bit_is_noticed(root, damage):
    codec = ShardCodec(SPEC)
    data = root.get(shard_key("a", (0, 0, 0)))
    np.testing.assert_array_equal(codec.decode(data), volume()[:2, :16, :16])
    step = max(1, len(data) // 150)
    for at in [*range(0, len(data) - 140, step), *range(len(data) - 140, len(data))]:  # the index at the end: each byte
        with pytest.raises(ValueError, match="the shard"):
            codec.decode(damage(data, at))


def test_what_is_damaged_is_set_aside_and_nothing_else(root):
    middle = len(root.get(shard_key("a", (0, 0, 1)))) // 2
    damaged = {(0, 0, 1): lambda data: flip(data, middle), (1, 1, 0): lambda data: data[:-1], (2, 1, 1): lambda _: b""}
    for place, damage in damaged.items():
        root.put(shard_key("a", place), damage(root.get(shard_key("a", place))))
    root.delete(shard_key("a", (2, 0, 0)))
    assert set_aside_damaged(root, "a", SPEC, PLACES) == [(0, 0, 1), (1, 1, 0), (2, 0, 0), (2, 1, 1)]
    assert sorted(present_shards(root, "a")) == [p for p in PLACES if p not in damaged and p != (2, 0, 0)]
    kept = sorted(info.key for info in root.list("a/") if info.key.endswith(".damaged"))
    assert kept == [shard_key("a", place) + ".damaged" for place in sorted(damaged)]


def test_a_shard_of_another_array_is_noticed(root):
    other = ShardCodec(ArraySpec((4, 4), (4, 4), (2, 2), "uint8", ("y", "x")))
    root.put(shard_key("a", (0, 0, 0)), other.encode(np.ones((4, 4), np.uint8)))
    assert set_aside_damaged(root, "a", SPEC, PLACES) == [(0, 0, 0)]


def test_attributes(root):
    assert read_attributes(root) == {"kept": [1, "two"]}
    assert read_attributes(root, "a") == {"unit": "µm"}
    assert read_attributes(root, "b") is None
    assert read_document(root, "a")["shape"] == [5, 20, 20]


@pytest.mark.parametrize("data", [b"not json", b"\xff\xfe", b'{"zarr_format": 3', b"[1]", b""])
def test_metadata_that_is_none(root, data):
    root.put("a/zarr.json", data)
    with pytest.raises(TargetError, match=f"^{root.url}/a/zarr.json is not zarr metadata; choose another path"):
        read_document(root, "a")


def test_putting_metadata_again_keeps_the_shards(root):
    put_group(root, "", {})
    put_array(root, "a", SPEC)
    assert sorted(present_shards(root, "a")) == PLACES


def test_chunks_that_do_not_divide_shards_are_our_mistake():
    with pytest.raises(ValueError, match="does not divide shard"):
        ArraySpec((8, 8), (4, 6), (2, 4), "uint8", ("y", "x"))
