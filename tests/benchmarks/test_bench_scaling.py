"""The benchmark of several hosts and many blocks still runs, at toy size."""

import json

import bench_scaling
import pytest


@pytest.mark.slow
def test_it_returns_plan_and_driver() -> None:
    record = json.loads(json.dumps(bench_scaling.main(
        ["--hosts", "--plan-blocks", "20000", "--driver-blocks", "2000"]
    )))  # fmt: skip
    few, many = record["plan"]["until_begun"]
    assert (few["blocks"], many["blocks"]) == (1000, 20000)
    assert record["plan"]["seconds"] == pytest.approx(many["seconds"] - few["seconds"])
    assert record["driver"]["cpu_microseconds_per_block"] > 0


@pytest.mark.slow
@pytest.mark.cluster
def test_two_hosts_share_the_blocks() -> None:
    """In a minute: two clusters."""
    record = bench_scaling.main(
        ["--hosts", "1", "2", "--blocks", "24", "--seconds", "0.1", "--plan-blocks", "2000", "--driver-blocks", "500"]
    )
    (alone,), (together,) = record["hosts"][1], record["hosts"][2]
    assert (set(alone["blocks_by_host"]), set(together["blocks_by_host"])) == ({"h0"}, {"h0", "h1"})
    assert alone["blocks"] == together["blocks"] == sum(together["blocks_by_host"].values()) >= 24
    assert record["efficiency"][1] == 1
