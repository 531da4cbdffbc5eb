"""The benchmark of the metrics still runs, at toy size."""

import json
import runpy
from pathlib import Path

BENCH = runpy.run_path(str(Path(__file__).with_name("bench_metrics.py")))


def test_it_returns_a_record():
    record = json.loads(json.dumps(BENCH["main"](["--side", "48", "--repeats", "2"])))
    assert record["config"]["side"] == 48
    assert set(record["results"]) == {"binary", "blurred", "noise"}
    for result in record["results"].values():
        for name in ("v_rand_and_v_info_thinned", "warping", "everything"):
            assert len(result[name]["seconds"]) == 2
            assert result[name]["megapixels_per_second"] > 0
    assert record["peak_memory_bytes"] > 1e6
    assert record["versions"]["numba"]


def test_its_section_has_cells_and_a_prediction_of_them():
    probability, truth = BENCH["a_section"](64, "blurred")
    assert 0.3 < truth.mean() < 0.9
    assert 0.005 < ((probability > 0.5) != truth).mean() < 0.4
