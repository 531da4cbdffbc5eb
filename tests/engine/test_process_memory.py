"""The memory a process says it took is its own."""

import platform
import subprocess
import sys

import numpy as np
import pytest

PRINT_PEAK = "from unet_ray.engine.process_memory import peak_rss_bytes; print(peak_rss_bytes())"


def test_a_small_process_of_a_large_one_is_small() -> None:
    from unet_ray.engine.process_memory import peak_rss_bytes

    before = peak_rss_bytes()
    large = np.ones(max(before, 1 << 30), np.uint8)  # ones: every page is there
    after = peak_rss_bytes()
    assert after > 0.99 * large.nbytes
    del large
    assert peak_rss_bytes() > 0.99 * after, "a peak stays; the kernel counts pages in batches"
    small = subprocess.run([sys.executable, "-c", PRINT_PEAK], capture_output=True, text=True, check=True)
    assert int(small.stdout) < after / 2


FAULTS = """
import resource, sys
import numpy as np
import pytest
from unet_ray.engine.process_memory import keep_freed_memory

if sys.argv[1] == "keep":
    assert keep_freed_memory()
for _ in range(5):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    layers = [np.ones(1 << 24, np.uint8) for _ in range(8)]
    del layers
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator alone can be told")
def test_freed_memory_is_used_again_without_asking_the_kernel() -> None:
    faults = {
        how: int(subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True).stdout)
        for how in ("keep", "give back")
    }
    assert faults["keep"] < 16 < faults["give back"]


class Allocating:
    """What a worker of a segmentation does to memory; returns the page faults of the last round."""

    def __init__(self) -> None:
        from unet_ray.engine.process_memory import keep_freed_memory

        assert keep_freed_memory()

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        import resource

        for _ in range(5):
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            layers = [np.ones(1 << 24, np.uint8) for _ in range(8)]
            del layers
        return {"faults": np.array([resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before])}


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator alone can be told")
def test_a_worker_that_ray_starts_keeps_freed_memory_too(ray_cluster: None) -> None:
    import ray.data

    pool = ray.data.ActorPoolStrategy(size=1)
    rows = ray.data.from_items([{"a": 1}]).map_batches(Allocating, compute=pool, batch_size=1).take_all()
    # Other threads of the worker cause a few.
    assert rows[0]["faults"] < 100
