"""The memory a process says it took is its own."""

import subprocess
import sys

import numpy as np

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
