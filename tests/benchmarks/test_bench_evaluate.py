"""The benchmark of the evaluate job still runs, at toy size."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
import tifffile

BENCH = runpy.run_path(str(Path(__file__).with_name("bench_evaluate.py")))


@pytest.mark.slow
def test_it_returns_a_record():
    record = json.loads(json.dumps(BENCH["main"](["--sections", "3", "--side", "48", "--repeats", "1"])))
    assert set(record["results"]) == {"binary", "blurred"}
    for result in record["results"].values():
        assert result["sections"] == 3
        assert 0 < result["startup_seconds"][0] < result["job_seconds"][0] < result["process_seconds"][0]


def test_its_sections_are_different_ones(tmp_path):
    flags = BENCH["write_stack"](tmp_path, 3, 48, "blurred")
    prediction, labels = tifffile.imread(flags[1]), tifffile.imread(flags[5])
    assert flags[4] == "--labels"
    assert prediction.shape == labels.shape == (3, 48, 48)
    assert prediction.dtype == np.float32
    assert len({section.tobytes() for section in labels}) == 3
    assert 0.005 < ((prediction > 0.5) != (labels > 0)).mean() < 0.4
