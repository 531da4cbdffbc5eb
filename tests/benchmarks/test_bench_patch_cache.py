"""The benchmark of the patch cache still runs, at toy size; it compares what it reads itself."""

import json

import bench_patch_cache


def test_it_returns_a_row_of_every_compressor_and_shard():
    compressors = ["none", "zstd 3", "blosc lz4 5", "blosc zstd 3 bitshuffle"]
    sizes = ["--sections", "2", "--side", "96", "--patch-px", "64", "--patches", "4", "--patches-per-shard", "2", "4"]
    asked = ["--compressors", *compressors, "--recipes", "notebook", "--repeats", "2"]
    record = json.loads(json.dumps(bench_patch_cache.main([*sizes, *asked])))
    found = record["results"]["notebook"]
    assert found["patch_px"] == 64
    rows = found["rows"]
    assert [(row["compressor"], row["patches_per_shard"]) for row in rows] == [
        (c, n) for c in compressors for n in (2, 4)
    ]
    for row in rows:
        for rate in bench_patch_cache.RATES:
            assert len(row["repeats"][rate]) == 2
            assert min(row["repeats"][rate]) <= row[rate] <= max(row["repeats"][rate])
        held = row["bytes_per_patch"]
        assert held["all"] == held["image"] + held["label"] + held["weight"]
        # What is not compressed takes its own size, checksums and index; what is, less.
        if row["compressor"] == "none":
            assert 64 * 64 * 4 < held["all"] < 64 * 64 * 4 + 200
        else:
            assert held["all"] < 64 * 64 * 3
    assert bench_patch_cache.table(rows).count("\n") == len(rows) + 1


def test_a_compressor_is_what_its_name_says():
    small, large = (
        bench_patch_cache.OtherSpec(
            (2, 64, 64), (2, 64, 64), (1, 64, 64), "uint8", ("n", "y", "x"), codecs=bench_patch_cache.COMPRESSORS[name]
        ).create(bench_patch_cache.MemoryStore(), (2, 64, 64), {})
        for name in ("zstd 9", "none")
    )
    assert [codec.level for codec in small.compressors if hasattr(codec, "level")] == [9]
    assert not [codec for codec in large.compressors if hasattr(codec, "level")]
