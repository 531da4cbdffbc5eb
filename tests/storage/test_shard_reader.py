"""Chunks read one by one are what zarr reads, and a shard that is less than whole is named."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from unet_ray.errors import VolumeError
from unet_ray.storage import shard_reader, store_client
from unet_ray.storage.array_spec import ArraySpec
from unet_ray.storage.open_objects import open_objects
from unet_ray.storage.shard_codec import ShardCodec
from unet_ray.storage.shard_reader import ShardReader
from unet_ray.storage.shards import put_array, put_shard, shard_key

REMEDY = "run its jobs/augment.py command again with --verify"
SPEC = ArraySpec((11, 2, 9, 7), (4, 2, 9, 7), (1, 2, 9, 7), "uint8", ("n", "c", "y", "x"))


def values_of(spec):
    """Each voxel holds its own flat index, as far as its dtype goes."""
    return (np.arange(np.prod(spec.shape)).reshape(spec.shape) % 251 + 1).astype(spec.dtype)


def put(objects, spec, path="train/image"):
    put_array(objects, path, spec)
    codec = ShardCodec(spec)
    for shard in range(spec.counts[0]):
        first = shard * spec.shard[0]
        place = (shard, *(0 for _ in spec.shape[1:]))
        put_shard(objects, path, codec, place, values_of(spec)[first : first + spec.shard[0]])
    return ShardReader(objects, path, spec, REMEDY)


def key(shard, spec=SPEC):
    return shard_key("train/image", (shard, *(0 for _ in spec.shape[1:])))


@pytest.fixture(params=["local", "s3"])
def objects(request, tmp_path):
    return open_objects(str(tmp_path / "group") if request.param == "local" else request.getfixturevalue("s3"))


@pytest.fixture
def local(tmp_path):
    return open_objects(str(tmp_path / "group"))


def test_every_chunk_is_what_zarr_reads(objects):
    reader = put(objects, SPEC)
    array = zarr.open_array(objects.zarr_store(), path="train/image", mode="r")
    assert SPEC.shape[0] % SPEC.shard[0], "the last shard is part-filled"
    for number in range(SPEC.shape[0]):
        found = reader.entry(number)
        assert found.dtype == SPEC.dtype
        np.testing.assert_array_equal(found, array[number])
        np.testing.assert_array_equal(found, values_of(SPEC)[number])


@settings(max_examples=20)
@given(
    count=st.integers(1, 9),
    per_shard=st.integers(1, 5),
    inner=st.lists(st.integers(1, 6), min_size=1, max_size=3).map(tuple),
    dtype=st.sampled_from(["uint8", "uint16", "float16", "float32"]),
    compressor=st.sampled_from(["zstd", "lz4"]),
)
def test_any_shape_dtype_and_compressor(tmp_path_factory, count, per_shard, inner, dtype, compressor):
    spec = ArraySpec(
        (count, *inner), (per_shard, *inner), (1, *inner), dtype, tuple("ncyx"[: 1 + len(inner)]), compressor
    )
    reader = put(open_objects(str(tmp_path_factory.mktemp("any"))), spec)
    found = np.stack([reader.entry(number) for number in range(count)])
    assert found.dtype == spec.dtype
    np.testing.assert_array_equal(found, values_of(spec))


@settings(max_examples=40, deadline=None)
@given(data=st.data(), axes=st.integers(1, 4), dtype=st.sampled_from(["uint8", "float16"]))
def test_any_box_of_any_grid_is_what_zarr_reads(tmp_path_factory, data, axes, dtype):
    def sides(largest):
        return tuple(data.draw(st.integers(1, largest)) for _ in range(axes))

    shape, chunk, chunks = sides(9), sides(4), sides(3)
    spec = ArraySpec(
        shape, tuple(c * n for c, n in zip(chunk, chunks, strict=True)), chunk, dtype, tuple("czyx"[-axes:])
    )
    objects = open_objects(str(tmp_path_factory.mktemp("grid")))
    put_array(objects, "a", spec)
    values = values_of(spec)
    for place in np.ndindex(*spec.counts):
        inside = tuple(slice(p * s, (p + 1) * s) for p, s in zip(place, spec.shard, strict=True))
        put_shard(objects, "a", ShardCodec(spec), place, values[inside])
    start = tuple(data.draw(st.integers(0, side - 1)) for side in shape)
    stop = tuple(data.draw(st.integers(a + 1, side)) for a, side in zip(start, shape, strict=True))
    box = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
    with ThreadPoolExecutor(3) as pool:
        found = ShardReader(objects, "a", spec, REMEDY).read(start, stop, pool)
    assert found.dtype == spec.dtype
    np.testing.assert_array_equal(found, values[box])
    np.testing.assert_array_equal(found, zarr.open_array(objects.zarr_store(), path="a", mode="r")[box])


def test_a_box_asks_for_the_chunks_it_touches_alone(objects):
    spec = ArraySpec((4, 30, 40), (2, 20, 40), (1, 10, 10), "uint8", ("z", "y", "x"))
    put_array(objects, "a", spec)
    values = values_of(spec)
    for z, y in ((0, 0), (0, 1), (1, 0), (1, 1)):
        put_shard(objects, "a", ShardCodec(spec), (z, y, 0), values[2 * z : 2 * z + 2, 20 * y : 20 * y + 20])
    reader = ShardReader(objects, "a", spec, REMEDY)
    asked = counted(reader)
    with ThreadPoolExecutor(4) as pool:
        np.testing.assert_array_equal(reader.read((1, 5, 12), (2, 25, 33), pool), values[1:2, 5:25, 12:33])
        assert sum(offset >= 0 for _, offset, _ in asked) == 3 * 3
        assert {name for name, _, _ in asked} == {"a/c/0/0/0", "a/c/0/1/0"}
        objects.delete("a/c/0/1/0")
        with pytest.raises(VolumeError, match=r"shard .*a/c/0/1/0 is missing; run .* with --verify"):
            reader.read((1, 5, 12), (2, 25, 33), pool)


def test_chunks_that_were_never_written_are_zeros(local):
    """As an ordinary write of zarr leaves them: it leaves out what holds fill values alone."""
    values = values_of(SPEC)
    values[[1, 6]] = 0
    array = zarr.create_array(
        str(local.root / "train/image"), shape=SPEC.shape, shards=SPEC.shard, chunks=SPEC.chunk, dtype=SPEC.dtype,
        compressors=[zarr.codecs.ZstdCodec(level=3), zarr.codecs.Crc32cCodec()], fill_value=0,
    )  # fmt: skip
    array[...] = values
    reader = ShardReader(local, "train/image", SPEC, REMEDY)
    for number in range(SPEC.shape[0]):
        np.testing.assert_array_equal(reader.entry(number), values[number])


def test_only_a_shards_own_places_can_be_asked_for(local):
    reader = put(local, SPEC)
    for number in (-1, SPEC.shape[0]):
        with pytest.raises(IndexError, match=r"has shape \(11, 2, 9, 7\) and no chunk"):
            reader.entry(number)
    for chunk in ((1, 8, 4), (2, 8, 8)):
        spec = ArraySpec((4, 8, 8), (2, 8, 8), chunk, "uint8", ("z", "y", "x"))
        with pytest.raises(ValueError, match="not one whole place"):
            ShardReader(local, "a", spec, REMEDY).entry(0)


def test_many_threads_read_the_same(local, monkeypatch):
    monkeypatch.setattr(shard_reader, "INDEXES", 1)  # so that indexes come and go all the time
    reader = put(local, SPEC)
    numbers = np.random.default_rng(0).integers(SPEC.shape[0], size=600).tolist()
    together = threading.Barrier(4)

    def read(part):
        together.wait()
        return all(np.array_equal(reader.entry(number), values_of(SPEC)[number]) for number in numbers[part::4])

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(read, range(4)))


def counted(reader):
    """The requests of a reader, noted from now on."""
    asked, ask = [], reader._objects.get_part
    reader._objects.get_part = lambda *request: asked.append(request) or ask(*request)
    return asked


def test_an_index_is_read_once_and_a_chunk_by_one_request(objects):
    reader = put(objects, SPEC)
    asked = counted(reader)
    for number in (0, 5, 1, 0, 4):
        reader.entry(number)
    assert sum(offset < 0 for _, offset, _ in asked) == 2
    assert len(asked) == 2 + 5
    sizes = {key(shard): objects.size(key(shard)) for shard in range(2)}
    assert all(length < sizes[name] / 2 for name, _, length in asked)


def test_indexes_kept_are_bounded(local, monkeypatch):
    monkeypatch.setattr(shard_reader, "INDEXES", 2)
    reader = put(local, SPEC)
    asked = counted(reader)
    for number in (0, 4, 8, 0):
        reader.entry(number)
    assert sum(offset < 0 for _, offset, _ in asked) == 4


def cut(n):
    return lambda data: data[:n]


def flip(place):
    """One bit of the byte at ``place``."""
    return lambda data: bytes(b ^ (i == place % len(data)) for i, b in enumerate(data))


DAMAGES = {
    "empty": cut(0),
    "a few bytes": cut(5),
    "end cut off": cut(-1),
    "cut in the chunks": cut(60),
    "chunk": flip(20),
    "chunk's checksum": flip(0),  # replaced below: the end of the first chunk
    "index": flip(-30),
    "index's checksum": flip(-1),
    "zeros": lambda data: bytes(len(data)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_shard_is_named_with_its_remedy(objects, damage):
    put(objects, SPEC)
    data, change = objects.get(key(0)), DAMAGES[damage]
    if damage == "chunk's checksum":
        change = flip(int(np.frombuffer(data[-68:-60], "<u8")[0] + np.frombuffer(data[-60:-52], "<u8")[0]) - 1)
    assert change(data) != data
    objects.put(key(0), change(data))
    reader = ShardReader(objects, "train/image", SPEC, REMEDY)
    with pytest.raises(VolumeError) as raised:
        reader.entry(0)
    said = str(raised.value)
    assert said.startswith(f"shard {objects.url}/{key(0)} is damaged (")
    assert said.endswith("); run its jobs/augment.py command again with --verify")
    np.testing.assert_array_equal(reader.entry(4), values_of(SPEC)[4])


def test_no_changed_bit_goes_unseen(local):
    """Whatever bit of a shard is changed, each chunk is right or refused, and one at least is refused."""
    put(local, SPEC)
    data = local.get(key(0))
    for place in range(0, len(data), 5):
        (local.root / key(0)).write_bytes(flip(place)(data))
        reader, refused = ShardReader(local, "train/image", SPEC, REMEDY), 0
        for number in range(4):
            try:
                np.testing.assert_array_equal(reader.entry(number), values_of(SPEC)[number])
            except VolumeError:
                refused += 1
        assert refused >= 1


def test_a_missing_shard_is_named_with_its_remedy(objects):
    reader = put(objects, SPEC)
    objects.delete(key(1))
    with pytest.raises(VolumeError, match=r"shard .*/train/image/c/1/0/0/0 is missing; run .* with --verify"):
        reader.entry(4)


def test_a_shard_that_vanishes_later_is_missing_too(objects):
    reader = put(objects, SPEC)
    reader.entry(4)
    objects.delete(key(1))
    with pytest.raises(VolumeError, match="is missing"):
        reader.entry(4)


def test_a_shard_that_is_put_again_is_read_anew(objects):
    """Other chunks of other lengths: what was kept of the old index does not fit any more."""
    reader = put(objects, SPEC)
    reader.entry(1)
    before, even = objects.size(key(0)), np.repeat(np.uint8([5, 6, 7, 8]), 126).reshape(SPEC.shard)
    put_shard(objects, "train/image", ShardCodec(SPEC), (0, 0, 0, 0), even)
    assert objects.size(key(0)) < before
    for number in range(4):
        np.testing.assert_array_equal(reader.entry(number), even[number])


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="the system does not list open files")
def test_no_file_stays_open(local):
    reader, before = put(local, SPEC), len(os.listdir("/proc/self/fd"))
    for number in range(SPEC.shape[0]):
        reader.entry(number)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_shard_that_may_not_be_read(local):
    reader = put(local, SPEC)
    (local.root / key(0)).chmod(0)
    with pytest.raises(VolumeError, match=r"cannot be read \(Permission denied\); check the disk"):
        reader.entry(0)


def test_a_folder_in_place_of_a_shard(local):
    reader = put(local, SPEC)
    (local.root / key(0)).unlink()
    (local.root / key(0)).mkdir()
    with pytest.raises(VolumeError, match=r"cannot be read \(Is a directory\); check the disk"):
        reader.entry(0)


@pytest.mark.usefixtures("impatient")
def test_a_store_that_does_not_answer(s3, monkeypatch):
    put(open_objects(s3), SPEC)
    with pytest.raises(VolumeError, match=r"s3://nowhere/x cannot be read|is missing"):
        ShardReader(open_objects("s3://nowhere/x"), "train/image", SPEC, REMEDY).entry(0)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(store_client, "PATIENCE_SECONDS", 0.3)
    with pytest.raises(VolumeError, match=r"cannot be read: .* check endpoint and network"):
        ShardReader(open_objects(s3), "train/image", SPEC, REMEDY).entry(0)
