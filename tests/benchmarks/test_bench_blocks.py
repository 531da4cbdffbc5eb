"""The benchmark of what Ray adds to a block still runs, at toy size."""

import json
from pathlib import Path

import bench_blocks
import numpy as np
import pytest
import zarr
from block_workers import InvertWorker, grid_of, make_volume


@pytest.mark.slow
def test_it_returns_the_overhead_of_a_block_and_the_drivers_memory() -> None:
    record = json.loads(json.dumps(bench_blocks.main(["--blocks", "40", "--workers", "1", "--repeats", "1"])))
    (alone,), (job,) = record["results"]["plain_all"], record["results"]["job_all"]
    assert alone["blocks"] == job["blocks"] >= 40
    overhead = record["overhead_ms_per_block"]["all"]["seconds"]["median"]
    assert overhead == pytest.approx(job["ms_per_block"] - alone["ms_per_block"])
    assert job["call_seconds"] >= job["seconds"]
    assert 0.5 < record["driver_peak_all/tenth"] < 2


def test_the_worker_writes_what_it_read_inverted(tmp_path: Path) -> None:
    grid = grid_of(20, 4)
    assert 20 <= grid.num_blocks < 30
    make_volume(str(tmp_path / "in.zarr"), grid)
    worker = InvertWorker(str(tmp_path / "in.zarr"), str(tmp_path / "out.zarr"), grid)
    worker.create()
    assert not worker.is_done(3)
    for block in range(grid.num_blocks):
        assert worker.write(block, worker.encode(block, worker.compute(block, worker.read(block)))) == 64
    assert worker.is_done(3)
    made = zarr.open_array(tmp_path / "out.zarr" / "0", mode="r")[...]
    np.testing.assert_array_equal(made, ~zarr.open_array(tmp_path / "in.zarr", mode="r")[...])
