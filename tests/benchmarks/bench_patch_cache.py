"""Size and speed of a patch cache by compressor and by patches per shard; prints a JSON record.

Run ``python tests/benchmarks/bench_patch_cache.py --images I.tif --labels L.tif > record.json``; without paths it takes
sections of the phantom. The patches are real ones, of the recipe ``default`` (256 px) and of ``notebook`` (512 px),
with weight maps. Everything happens in one process pinned to one core, with one thread of the codecs, and reads find
the files in the page cache, where writing has just left them: a disk or a store adds its own time to them. Contestants
take turns, repeat by repeat; every array that is read back is compared with what was written. Single patches are read
as training reads them, but without compression, which its reader does not know, by zarr, as are whole shards.
"""

import argparse
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numcodecs.blosc
import numpy as np
import zarr
from pinned import on_cores
from record import commit, machine, versions
from stacks import add_flags, stacks
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec
from zarr.storage import MemoryStore

from unet_ray.config.augment import PATCH_PX, WEIGHTING, AugmentConfig
from unet_ray.config.recipe import RECIPES
from unet_ray.engine.augment_plan import prepare
from unet_ray.engine.augment_worker import AugmentWorker
from unet_ray.storage.array_spec import ArraySpec
from unet_ray.storage.open_objects import open_objects
from unet_ray.storage.patch_cache import ARRAYS, CachePlan, Patch, PatchCache
from unet_ray.storage.shard_reader import ShardReader
from unet_ray.storage.shards import put_array, shard_key

COMPRESSORS: dict[str, tuple[Any, ...]] = {
    "none": (),
    "zstd 1": (ZstdCodec(level=1),),
    "zstd 3": (ZstdCodec(level=3),),
    "zstd 5": (ZstdCodec(level=5),),
    "zstd 9": (ZstdCodec(level=9),),
    "blosc lz4 5": (BloscCodec(cname="lz4", clevel=5),),
    "blosc zstd 3 bitshuffle": (BloscCodec(cname="zstd", clevel=3, shuffle="bitshuffle"),),
}
PRESETS = {"default": "default", "notebook": "keras"}
"""Recipe -> network preset whose patches it makes."""


@dataclass(frozen=True, slots=True)
class OtherSpec(ArraySpec):
    """An array as a cache has it, by any compressor of zarr's."""

    codecs: tuple[Any, ...] = ()

    def create(self, store: MemoryStore, shape: Sequence[int], attributes: Any) -> Any:
        return zarr.create_array(
            store, shape=tuple(shape), shards=self.shard, chunks=self.chunk, dtype=self.dtype, fill_value=0,
            compressors=[*self.codecs, Crc32cCodec()], dimension_names=self.axes, attributes=dict(attributes),
            config={"write_empty_chunks": True},
        )  # fmt: skip


def real_patches(recipe: str, images: str, labels: str, count: int, patch_px: int | None) -> tuple[Patch, CachePlan]:
    """``count`` patches as the augment job makes them, stacked, and the sides of their arrays."""
    preset = PRESETS[recipe]
    config = AugmentConfig(
        images=(images,), labels=(labels,), cache="unused", recipe_name=recipe, recipe=RECIPES[recipe],
        for_preset=preset, patch_px=patch_px or PATCH_PX[preset], variants=count, patches_per_shard=1,
        weighting=WEIGHTING[preset],
    )  # fmt: skip
    plan, _ = prepare(config)
    worker = AugmentWorker(PatchCache(config.cache), plan)
    made = [worker.compute(block, None) for block in range(count)]
    return Patch(*(np.concatenate([getattr(patch, name) for patch in made]) for name in Patch.__slots__)), plan.cache


def trial(patches: Patch, sides: CachePlan, compressor: str, per_shard: int, order: Sequence[int]) -> dict[str, Any]:
    """Write the patches into a temporary folder; read single ones in ``order`` as training does, and whole shards."""
    count = len(patches.label)
    shards = range(0, count, per_shard)
    seconds = {"encode": dict.fromkeys(ARRAYS, 0.0), "write": 0.0}
    size, specs = dict.fromkeys(ARRAYS, 0), dict[str, OtherSpec]()
    with tempfile.TemporaryDirectory() as folder:
        root = open_objects(folder)
        for name in ARRAYS:
            inner = getattr(patches, name).shape[1:]
            like = sides.spec("train", name)
            family = compressor.partition(" ")[0]
            spec = OtherSpec(
                (count, *inner), (per_shard, *inner), (1, *inner), like.dtype, like.axes, family,
                codecs=COMPRESSORS[compressor],
            )  # fmt: skip
            put_array(root, name, spec)
            objects: dict[str, Any] = {}
            encoder = spec.create(MemoryStore(objects), spec.shard, {})
            for shard, first in enumerate(shards):
                values = np.zeros(spec.shard, spec.dtype)
                some = getattr(patches, name)[first : first + per_shard]
                values[: len(some)] = some
                clock = [time.perf_counter()]
                encoder[...] = values  # by zarr, which has all compressors
                data = objects.popitem()[1].to_bytes()
                clock.append(time.perf_counter())
                root.put(shard_key(name, (shard, *(0 for _ in inner))), data)
                clock.append(time.perf_counter())
                seconds["encode"][name] += clock[1] - clock[0]
                seconds["write"] += clock[2] - clock[1]
                size[name] += len(data)
            specs[name] = spec
        arrays = {name: zarr.open_array(root.zarr_store(), path=name, mode="r") for name in ARRAYS}
        readers: dict[str, Any] = arrays
        if COMPRESSORS[compressor]:  # training's reader knows no array without
            readers = {name: ShardReader(root, name, specs[name], "make it anew") for name in ARRAYS}
        single_seconds, whole_seconds = dict[str, float](), 0.0
        for name in ARRAYS:
            began = time.perf_counter()
            single = [_chunk(readers[name], number) for number in order]
            single_seconds[name] = time.perf_counter() - began
            began = time.perf_counter()
            whole = [arrays[name][first : first + per_shard] for first in shards]
            whole_seconds += time.perf_counter() - began
            written = getattr(patches, name)
            assert all((found == written[number]).all() for number, found in zip(order, single, strict=True))
            assert (np.concatenate(whole) == written).all()
    encode = sum(seconds["encode"].values())
    return {
        "bytes_per_patch": {name: size[name] / count for name in ARRAYS},
        "encode_seconds_per_patch": {name: spent / count for name, spent in seconds["encode"].items()},
        "single_read_seconds_per_patch": {name: spent / count for name, spent in single_seconds.items()},
        "encode_and_write_patches_per_second": count / (encode + seconds["write"]),
        "single_read_patches_per_second": count / sum(single_seconds.values()),
        "shard_read_patches_per_second": count / whole_seconds,
    }


def _chunk(reader: Any, number: int) -> Any:
    return reader.entry(number) if isinstance(reader, ShardReader) else reader[number]


RATES = tuple(f"{what}_patches_per_second" for what in ("encode_and_write", "single_read", "shard_read"))


def measure(patches: Patch, sides: CachePlan, config: argparse.Namespace) -> list[dict[str, Any]]:
    """Return one row for each compressor and number of patches per shard: medians, and all repeats of rates."""
    cases = [(compressor, per_shard) for compressor in config.compressors for per_shard in config.patches_per_shard]
    order = np.random.default_rng(0).permutation(len(patches.label)).tolist()
    # The first round warms up: it compiles nothing, but zarr's event loop and threads start in it.
    rounds = [[trial(patches, sides, *case, order) for case in cases] for _ in range(config.repeats + 1)][1:]
    rows = []
    for number, (compressor, per_shard) in enumerate(cases):
        trials = [each[number] for each in rounds]
        rows.append(
            {
                "compressor": compressor,
                "patches_per_shard": per_shard,
                "bytes_per_patch": trials[0]["bytes_per_patch"] | {"all": sum(trials[0]["bytes_per_patch"].values())},
                **{
                    part: {name: statistics.median(each[part][name] for each in trials) for name in ARRAYS}
                    for part in ("encode_seconds_per_patch", "single_read_seconds_per_patch")
                },
                **{rate: statistics.median(each[rate] for each in trials) for rate in RATES},
                "repeats": {rate: [each[rate] for each in trials] for rate in RATES},
            }
        )
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as Markdown: kilobytes per patch, and patches per second."""
    lines = [
        "| compressor | per shard | image kB | label kB | weight kB | all kB | write/s | single read/s | shard read/s |"
    ]
    lines.append("|" + " --- |" * 9)
    for row in rows:
        sizes = [f"{row['bytes_per_patch'][name] / 1000:.1f}" for name in ("image", "label", "weight", "all")]
        rates = [f"{row[rate]:.0f}" for rate in RATES]
        lines.append("| " + " | ".join([row["compressor"], str(row["patches_per_shard"]), *sizes, *rates]) + " |")
    return "\n".join(lines)


def main(arguments: list[str]) -> dict[str, Any]:
    """Measure and return the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser)
    parser.add_argument("--recipes", nargs="+", choices=list(PRESETS), default=list(PRESETS))
    parser.add_argument("--compressors", nargs="+", choices=list(COMPRESSORS), default=list(COMPRESSORS))
    parser.add_argument("--patches-per-shard", nargs="+", type=int, default=[4, 16, 64])
    parser.add_argument("--patches", type=int, default=128, help="a multiple of each number of patches per shard")
    parser.add_argument("--patch-px", type=int, help="None: 256 for default, 512 for notebook")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--table", action="store_true", help="print tables to stderr, too")
    config = parser.parse_args(arguments)
    if any(config.patches % per_shard for per_shard in config.patches_per_shard):
        parser.error("--patches is not a multiple of each of --patches-per-shard")
    record: dict[str, Any] = {
        "benchmark": "patch cache by compressor and patches per shard, one core, page cache warm",
        "commit": commit(),
        "config": vars(config),
        "machine": machine(),
        "versions": versions(["numpy", "zarr", "numcodecs"]),
        "results": {},
    }
    threads = numcodecs.blosc.set_nthreads(1)
    one_thread = zarr.config.set({"threading.max_workers": 1, "async.concurrency": 1})
    with on_cores([min(os.sched_getaffinity(0))]), one_thread, tempfile.TemporaryDirectory() as folder:
        paths = stacks(config, folder)
        for recipe in config.recipes:
            patches, sides = real_patches(recipe, *paths, config.patches, config.patch_px)
            rows = measure(patches, sides, config)
            record["results"][recipe] = {
                "patch_px": patches.label.shape[1],
                "image_px": patches.image.shape[2],
                "rows": rows,
            }
            if config.table:
                print(f"{recipe}, {patches.label.shape[1]} px\n{table(rows)}", file=sys.stderr)
    numcodecs.blosc.set_nthreads(threads)
    record["peak_memory_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return record


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1:])))
