"""Time the loader that feeds training, alone, beside torch's DataLoader over arrays in memory; prints a JSON record.

Run ``python tests/benchmarks/bench_patch_loader.py --images I.tif --labels L.tif > record.json``; without paths it
takes sections of the phantom. It first makes a cache of augmented patches, image, label and weight map, or takes the
one that ``--cache P`` names. Our loader reads it from the disk's page cache, checks its checksums and decodes it; the
DataLoader has all patches ready in memory and only picks and stacks them, which is its best case.
Batches are of the same patches in the same order. Contestants, each in a process of its own, take turns, repeat by
repeat: pinned to one core with one reading thread, and on all cores with one reading thread for each.

- ``ours``: the loader; ``ours_turned``: with random symmetries.
- ``memory_0`` and ``memory_2``: torch's DataLoader over arrays in memory, without workers and with two that persist.
- ``zarr_0``: torch's DataLoader over the cache's arrays as zarr reads them.

Samples per second are of whole epochs, their beginning included. It needs Linux: it pins processes to cores.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import zarr
from record import commit, machine, median_ratio, versions
from stacks import add_flags, stacks

from unet_ray.config.augment import AugmentConfig
from unet_ray.config.recipe import RECIPES
from unet_ray.engine.augment_plan import prepare
from unet_ray.engine.augment_worker import AugmentWorker
from unet_ray.engine.patch_loader import PatchLoader, epoch_order
from unet_ray.storage.patch_cache import PatchCache

ARRAYS = ("image", "label", "weight")
SEED = 0
Epoch = Callable[[int], int]
"""Takes in one epoch; returns the samples that came."""


def make_cache(config: argparse.Namespace, folder: str) -> str:
    """Fill a cache in ``folder`` with patches of the notebook's recipe, as the augment job does."""
    images, labels = stacks(config, folder)
    asked = AugmentConfig(
        images=(images,), labels=(labels,), cache=f"{folder}/cache.zarr", recipe_name="notebook",
        recipe=RECIPES["notebook"], for_preset="keras", patch_px=config.patch_px, variants=config.variants,
    )  # fmt: skip
    plan, made_with = prepare(asked)
    cache = PatchCache(asked.cache)
    cache.create_or_extend(plan.cache, made_with)
    worker = AugmentWorker(cache, plan)
    for shard in range(plan.cache.shards):
        print(f"making shard {shard + 1} of {plan.cache.shards}", file=sys.stderr)
        block = len(plan.validation) + shard
        worker.write(block, worker.encode(block, worker.compute(block, None)))
    return asked.cache


def ours(path: str, batch_size: int, cores: int, *, random_dihedral: bool = False) -> Epoch:
    import torch

    loader = PatchLoader(
        PatchCache(path), batch_size=batch_size, seed=SEED, rank=0, world_size=1, random_dihedral=random_dihedral,
        threads=cores,
    )  # fmt: skip

    def take(epoch: int) -> int:
        samples = 0
        for batch in loader.epoch(epoch):
            _, label, _ = (torch.from_numpy(getattr(batch.patch, name)) for name in ARRAYS)
            samples += len(label)
        return samples

    return take


class Patches:
    """A dataset of (image, label, weight) tensors, as torch's DataLoader wants one."""

    def __init__(self, arrays: Sequence[Any]) -> None:
        self.arrays = arrays

    def __len__(self) -> int:
        return int(self.arrays[0].shape[0])

    def __getitem__(self, number: int) -> tuple[Any, ...]:
        import torch

        return tuple(torch.from_numpy(array[number]) for array in self.arrays)


class Order:
    """The order of our epochs, one after the other."""

    def __init__(self, patches: int) -> None:
        self.patches, self.epoch = patches, 0

    def __len__(self) -> int:
        return self.patches

    def __iter__(self) -> Iterator[int]:
        return iter(epoch_order(self.patches, SEED, self.epoch).tolist())


def data_loader(path: str, batch_size: int, workers: int, *, in_memory: bool = True) -> Epoch:
    """Torch's DataLoader with its own collate function."""
    from torch.utils.data import DataLoader

    arrays: list[Any] = [zarr.open_array(f"{path}/train/{name}", mode="r") for name in ARRAYS]
    if in_memory:
        arrays = [array[...] for array in arrays]
    dataset, order = Patches(arrays), Order(arrays[0].shape[0])
    loader = DataLoader(
        dataset, batch_size, sampler=order, num_workers=workers, persistent_workers=workers > 0  # type: ignore[arg-type]
    )  # fmt: skip

    def take(epoch: int) -> int:
        order.epoch = epoch
        return sum(len(label) for _, label, _ in loader)

    return take


CONTESTANTS: dict[str, Callable[[str, int, int], Epoch]] = {
    "ours": ours,
    "ours_turned": lambda path, batch, cores: ours(path, batch, cores, random_dihedral=True),
    "memory_0": lambda path, batch, cores: data_loader(path, batch, 0),
    "memory_2": lambda path, batch, cores: data_loader(path, batch, 2),
    "zarr_0": lambda path, batch, cores: data_loader(path, batch, 0, in_memory=False),
}


def _serve(end: Connection, name: str, path: str, batch_size: int, cores: Sequence[int]) -> None:
    """Take epochs for as long as asked, again and again; the first is to warm up."""
    os.sched_setaffinity(0, cores)
    import torch

    torch.set_num_threads(len(cores))
    take = CONTESTANTS[name](path, batch_size, len(cores))
    take(0)
    end.send("warm")
    epoch = 1
    while (seconds := end.recv()) is not None:
        samples, began, cpu = 0, time.perf_counter(), time.process_time()
        while samples == 0 or time.perf_counter() - began < seconds:
            samples += take(epoch)
            epoch += 1
        end.send((samples / (time.perf_counter() - began), (time.process_time() - cpu) / samples))
    end.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


@contextlib.contextmanager
def serving(names: Sequence[str], path: str, batch_size: int, cores: Sequence[int]) -> Iterator[dict[str, Connection]]:
    """Our ends of the contestants' connections, once all are warm. They are no daemons: those may have no workers."""
    context, ends, processes = multiprocessing.get_context("spawn"), dict[str, Connection](), []
    try:
        for name in names:
            ends[name], theirs = context.Pipe()
            processes.append(context.Process(target=_serve, args=(theirs, name, path, batch_size, list(cores))))
            processes[-1].start()
            theirs.close()
        for end in ends.values():
            end.recv()
        yield ends
    finally:
        for end in ends.values():
            end.close()
        for process in processes:
            process.join()


def measure(
    names: Sequence[str], path: str, batch_size: int, cores: Sequence[int], *, repeats: int, seconds: float
) -> dict[str, Any]:
    """Per contestant the samples per second of every repeat on these cores, and the ratios of ours to the others'."""
    found: dict[str, Any] = {name: {"samples_per_second": [], "cpu_seconds_per_sample": []} for name in names}
    with serving(names, path, batch_size, cores) as ends:
        for repeat in range(repeats):
            print(f"{len(cores)} cores: repeat {repeat + 1} of {repeats}", file=sys.stderr)
            for name, end in ends.items():
                end.send(seconds)
                rate, cpu = end.recv()
                found[name]["samples_per_second"].append(rate)
                found[name]["cpu_seconds_per_sample"].append(cpu)
        for name, end in ends.items():
            end.send(None)
            found[name]["peak_memory_bytes"] = end.recv()
    for result in found.values():
        rates = result["samples_per_second"]
        result["median_samples_per_second"] = statistics.median(rates)
        result["median_samples_per_second_and_core"] = statistics.median(rates) / len(cores)
        result["ours_to_this"] = median_ratio(found["ours"]["samples_per_second"], rates)
    return found


def patches_of(path: str) -> dict[str, Any]:
    """How many patches the cache holds, their sides, and bytes per patch before and after compression."""
    cache = PatchCache(path)
    plan = cache.plan()
    specs = [plan.spec("train", name) for name in ARRAYS]
    decoded = sum(int(np.prod(spec.shape[1:])) * np.dtype(spec.dtype).itemsize for spec in specs)
    stored = sum(info.size for info in cache.objects.list("train/") if "/c/" in info.key)
    return {
        "patches": plan.patches,
        "image": specs[0].shape[1:],
        "decoded_bytes_per_patch": decoded,
        "stored_bytes_per_patch": stored / plan.patches,
    }


def main(arguments: list[str]) -> dict[str, Any]:
    """Measure and return the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser)
    parser.add_argument("--cache", help="read this patch cache in place of one made for the purpose")
    parser.add_argument("--patch-px", type=int, default=512)
    parser.add_argument("--variants", type=int, default=7, help="patches made of each section")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of one contestant's turn")
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS))
    config = parser.parse_args(arguments)
    names = ["ours", *(name for name in config.contestants if name != "ours")]
    cores = sorted(os.sched_getaffinity(0))
    widths = {"one_core": cores[:1], **({"all_cores": cores} if len(cores) > 1 else {})}
    record = {
        "benchmark": "the loader alone, beside torch's DataLoader over arrays in memory",
        "commit": commit(),
        "config": vars(config),
        "machine": machine(),
        "versions": versions(["numpy", "zarr", "numcodecs", "torch"]),
    }
    with tempfile.TemporaryDirectory() as folder:
        path = config.cache or make_cache(config, folder)
        found = {
            width: measure(names, path, config.batch_size, used, repeats=config.repeats, seconds=config.seconds)
            for width, used in widths.items()
        }
        return {**record, "patches": patches_of(path), "results": found}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1:])))
