"""What Prometheus would scrape, scraped."""

import re
import time
import urllib.request

import ray

from unet_ray.engine.block_metrics import BlockMetrics

WANTED = {"blocks_done": 3.0, "blocks_failed": 1.0, "units_done": 192.0}


def scraped(stage: str) -> dict[str, float]:
    port = next(node["MetricsExportPort"] for node in ray.nodes())
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    lines = re.findall(rf'^ray_unet_ray_(\w+)_total{{[^}}]*stage="{stage}"[^}}]*}} (\S+)', text, re.M)
    return {name: float(value) for name, value in lines}


def test_blocks_units_and_failures_are_exported(ray_cluster: None) -> None:
    metrics = BlockMetrics("test-of-metrics")
    for row in [{"ok": True, "units": 64}] * 3 + [{"ok": False, "units": 0}]:
        metrics.take(row)
    until, found = time.time() + 60, {}
    while found != WANTED and time.time() < until:
        time.sleep(1)
        found = scraped("test-of-metrics")
    assert found == WANTED
