"""The benchmark of the loader still runs, at toy size, and its contestants get the same batches."""

import json
import os
from argparse import Namespace

import bench_patch_loader
import numpy as np
import pytest
from pinned import on_cores

TOY = ["--sections", "2", "--side", "64", "--patch-px", "48", "--variants", "3", "--batch-size", "4"]


def test_it_returns_a_record():
    asked = ["--contestants", "memory_2", "--repeats", "2", "--seconds", "0.05"]
    with on_cores([min(os.sched_getaffinity(0))]):  # half the processes
        record = json.loads(json.dumps(bench_patch_loader.main([*TOY, *asked])))
    assert record["patches"]["patches"] == 6
    assert record["patches"]["decoded_bytes_per_patch"] == 48 * 48 * 4
    assert 0 < record["patches"]["stored_bytes_per_patch"] < 48 * 48 * 4
    assert set(record["results"]) == {"one_core"}
    for width in record["results"].values():
        assert set(width) == {"ours", "memory_2"}
        for result in width.values():
            rates = result["samples_per_second"]
            assert len(rates) == 2
            assert 0 < min(rates) <= result["median_samples_per_second"] <= max(rates)
            assert result["peak_memory_bytes"] > 1e7
        assert width["ours"]["ours_to_this"]["repeats"] == [1, 1]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    config = Namespace(images=None, labels=None, sections=2, side=64, patch_px=48, variants=3)
    return bench_patch_loader.make_cache(config, str(tmp_path_factory.mktemp("toy")))


# Not memory_2: it would fork this process of many threads. The record above has it.
@pytest.mark.parametrize("name", [name for name in bench_patch_loader.CONTESTANTS if name != "memory_2"])
def test_a_contestant_takes_in_an_epoch(path, name):
    assert bench_patch_loader.CONTESTANTS[name](path, 4, 1)(0) == 6


@pytest.mark.parametrize("in_memory", [True, False])
def test_the_data_loader_gives_the_batches_of_ours(path, monkeypatch, in_memory):
    seen = []
    stack = bench_patch_loader.Patches.__getitem__
    monkeypatch.setattr(
        bench_patch_loader.Patches, "__getitem__", lambda self, n: seen.append((n, stack(self, n))) or seen[-1][1]
    )
    assert bench_patch_loader.data_loader(path, 4, 0, in_memory=in_memory)(3) == 6
    loader = bench_patch_loader.PatchLoader(
        bench_patch_loader.PatchCache(path), batch_size=6, seed=0, rank=0, world_size=1, random_dihedral=False
    )
    (batch,) = loader.epoch(3)
    assert [number for number, _ in seen] == batch.numbers.tolist()
    for k, name in enumerate(("image", "label", "weight")):
        np.testing.assert_array_equal(np.stack([tensors[k] for _, tensors in seen]), getattr(batch.patch, name))
