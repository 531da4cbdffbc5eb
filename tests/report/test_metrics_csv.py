"""The table holds every score of metrics.json, and a reader of CSV gets them back."""

import csv
import io

from unet_ray.report.metrics_csv import metrics_csv


def test_rows_and_columns():
    section = {"section": 3, "v_rand": 0.9, "voi_split": None, "holdout": "trained"}
    stack = {
        "name": 'a, "quoted"',
        "prediction": "a.zarr",
        "kind": "membrane",
        "holdout": {"status": "trained"},
        "warnings": ["one, two"],
        "v_rand": 0.1 + 0.2,
        "warping_error": None,
        "interval": {"v_rand": [0.25, 0.75], "warping_error": None},
        "curves": {"v_rand": [0.9]},
        "sections": [section, section | {"section": 7}],
    }
    other = stack | {"name": "b", "fixed_threshold": 0.5, "sections": [section]}
    rows = list(csv.DictReader(io.StringIO(metrics_csv({"predictions": [stack, other]}).decode())))
    assert [(row["prediction"], row["section"]) for row in rows] == [
        ('a, "quoted"', "3"), ('a, "quoted"', "7"), ('a, "quoted"', "all"), ("b", "3"), ("b", "all"),
    ]  # fmt: skip
    assert rows[0] == {
        "prediction": 'a, "quoted"', "section": "3", "holdout": "trained", "v_rand": "0.9", "voi_split": "",
        "warping_error": "", "v_rand_low": "", "v_rand_high": "", "fixed_threshold": "",
    }  # fmt: skip
    assert float(rows[2]["v_rand"]) == stack["v_rand"]
    assert (rows[2]["v_rand_low"], rows[2]["v_rand_high"], rows[2]["warping_error"]) == ("0.25", "0.75", "")
    assert (rows[2]["fixed_threshold"], rows[4]["fixed_threshold"]) == ("", "0.5")
