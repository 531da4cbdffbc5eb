"""The benchmark of augmentation still runs, at toy size, and compares things that do the same."""

import json
import os
import subprocess
import sys
from multiprocessing.connection import Connection

import bench_augment
import numpy as np
import pytest
from augment_parts import breakdown, by_parts, drawn_of, interpolation
from contestants import CONTESTANTS, NO_WEIGHTS, NOTES, available
from pinned import start
from process_memory import MemoryWatch

from unet_ray.config.recipe import WeightMap
from unet_ray.geometry.box import Box
from unet_ray.numerics import augment
from unet_ray.numerics.labels import membrane_and_cells
from unet_ray.numerics.phantom import phantom_block

SIDE = 128
BLOCK = phantom_block(Box.of_shape((2, SIDE, SIDE)))
IMAGES, LABELS = list(BLOCK.image), list(BLOCK.membrane)


@pytest.mark.parametrize("name", CONTESTANTS)
def test_a_contestant_deforms_image_and_label_alike_and_puts_no_noise_on_labels(name):
    if not available([name]):
        pytest.skip(f"the library of {name} is not installed")
    pair = CONTESTANTS[name]([label * np.uint8(255) for label in LABELS], LABELS, 1)
    made = [pair(number) for number in range(6)]
    for image, label in made:
        assert image.dtype == label.dtype == np.uint8
        assert image.shape == label.shape == (SIDE, SIDE)
        assert set(np.unique(label)) == {0, 1}
        assert ((image > 127) == label).mean() > 0.98
    assert len({label.tobytes() for _, label in made}) == 6, "each pair is another one"
    assert len({grey for image, _ in made for grey in np.unique(image)}) > 50, "the image has noise"
    assert name in NOTES


@pytest.mark.parametrize("weighting", [NO_WEIGHTS, WeightMap()], ids=["without", "with"])
def test_the_parts_that_are_timed_make_the_patch(weighting):
    noises = set()
    for number in range(12):
        drawn = drawn_of(number, 2, SIDE, seed=4)
        image, labels = IMAGES[drawn.section][None], membrane_and_cells(LABELS[drawn.section], "membrane")
        patch, seconds = by_parts(drawn, image, labels, weighting)
        whole = augment.apply(drawn, image, labels, weighting=weighting)
        for name in ("image", "label", "weight"):
            np.testing.assert_array_equal(getattr(patch, name), getattr(whole, name))
        assert all(spent > 0 for spent in seconds.values())
        noises.add(drawn.noise)
    assert noises == {"gaussian", "uniform"}


def test_the_breakdown_has_every_part_of_every_repeat():
    found = breakdown(IMAGES, LABELS, shards=2, per_shard=2, repeats=2)
    inside = {"drawing", "apply_as_a_whole", "field", "image_sampling", "label_sampling", "cell_id_sampling",
              "weight_map", "noise_and_rounding"}  # fmt: skip
    stored = {"encoding_image", "encoding_label", "encoding_weight", "writing"}
    assert set(found["without_weight_map"]) == inside
    assert set(found["with_weight_map"]) == inside | stored
    assert all(len(part["repeats"]) == 2 and part["seconds"] > 0 for part in found["with_weight_map"].values())


def test_our_interpolation_is_as_exact_as_scipy_in_float64():
    found = interpolation(IMAGES, LABELS, patches=2)
    assert found["grey_levels"]["ours_float32"]["largest"] < 0.005
    assert found["grey_levels"]["ours_uint8"]["largest"] < 0.505
    assert found["label_pixels_that_differ"] < 1e-4


def test_rates_in_memory_are_of_every_repeat_and_turn():
    sizes = ["--sections", "2", "--side", "64", "--cores", "2", "--repeats", "2", "--seconds", "0.02"]
    record = json.loads(json.dumps(bench_augment.main([*sizes, "--parts", "pairs"])))
    assert set(record["pairs"]) == {"notebook", "ours", "ours_with_weight_map"}
    widths = ["one_core", "all_cores"] if len(os.sched_getaffinity(0)) > 1 else ["one_core"]
    for width in widths:
        for entry in record["pairs"].values():
            assert len(entry[width]["repeats"]) == 2
            assert all(rate > 0 for rate in entry[width]["repeats"])
        ours, notebook = record["pairs"]["ours"][width]["repeats"], record["pairs"]["notebook"][width]["repeats"]
        faster = record["pairs"]["notebook"][width]["ours_is_faster"]
        assert faster["repeats"] == [a / b for a, b in zip(ours, notebook, strict=True)]
        assert record["summary"][width]["ours_over_notebook"] == faster["median"]
    assert "NUMBA_NUM_THREADS" not in os.environ, "its settings of threads stay its own"


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="finds processes in /proc")
def test_the_job_and_the_plain_loops_make_the_same_cache():
    sizes = ["--sections", "2", "--side", "64", "--patches", "20", "--patches-one-core", "0", "--cache-repeats", "1"]
    record = bench_augment.main([*sizes, "--patches-per-shard", "4", "--parts", "cache"])
    runs = record["cache"]["all_cores"]
    assert runs["patches"] == 20
    assert len({run["cache_digest"] for way in bench_augment.WAYS for run in runs[way]["repeats"]}) == 1
    for way in bench_augment.WAYS:
        (run,) = runs[way]["repeats"]
        assert run["patches_per_second"] > 0
        assert 0 < run["startup_seconds"] < run["wall_seconds"]
        workers = run["memory"]["worker"]
        assert len(workers) >= 1
        assert all(50e6 < worker["peak_bytes"] < 2e9 for worker in workers)
    (job,) = runs["job"]["repeats"]
    assert len(job["memory"]["driver"]) == 1
    assert job["summary"]["patches_written"] == 20
    assert record["summary"]["all_cores"]["job_over"]["plain_loop"] == pytest.approx(
        job["patches_per_second"] / runs["plain_loop"]["repeats"][0]["patches_per_second"]
    )


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="finds processes in /proc")
def test_memory_is_watched_from_early_to_late_and_in_children():
    growing = "import time; time.sleep(1.5); a = bytearray(150_000_000); time.sleep(1.5)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {growing!r}])"

    def role(pid: int, command: str) -> str:
        return "parent" if "subprocess" in command else "child"

    with MemoryWatch(role, seconds=0.05) as watch:
        process = subprocess.Popen([sys.executable, "-c", parent])
        watch.add(process.pid)
        process.wait(60)
    found = watch.summary()
    assert max(each["peak_bytes"] for each in found["child"]) > 150e6
    child = max(found["child"], key=lambda each: each["peak_bytes"])
    assert child["early_bytes"] < 60e6 < 150e6 < child["late_bytes"]
    assert len(child["along_bytes"]) == 12
    assert max(each["peak_bytes"] for each in found["parent"]) < 100e6


def _ends_at_once(end: Connection) -> None:
    os._exit(0)


def test_a_process_that_ends_before_it_has_read_its_inputs_is_not_waited_for():
    with pytest.raises(OSError):  # noqa: PT011  broken pipe or connection reset
        start(_ends_at_once, min(os.sched_getaffinity(0)), bytes(10_000_000))
