"""The scores of an evaluation as a table that a spreadsheet opens."""

import csv
import io
from collections.abc import Mapping
from typing import Any

NOT_SCORES = {"name", "prediction", "kind", "holdout", "warnings", "interval", "curves", "sections"}


def metrics_csv(metrics: Mapping[str, Any]) -> bytes:
    """CSV with a row per prediction and section, and a row ``all`` per prediction.

    Args:
        metrics: what ``metrics.json`` holds.

    Returns:
        UTF-8 with a header. Columns: prediction (its short name), section, holdout, then scores; a section's row
        has those of its own, the row ``all`` those of the stack and ``*_low``, ``*_high`` of their intervals.
        Empty where there is none.

    >>> row = {"section": 4, "dice": 0.75, "holdout": "held out"}
    >>> stack = {"name": "a", "holdout": {"status": "held out"}, "dice": 0.75, "interval": {"dice": None}}
    >>> print(metrics_csv({"predictions": [stack | {"sections": [row]}]}).decode(), end="")
    prediction,section,holdout,dice
    a,4,held out,0.75
    a,all,held out,0.75
    """
    rows: list[dict[str, Any]] = []
    for stack in metrics["predictions"]:
        rows += [{"prediction": stack["name"], **section} for section in stack["sections"]]
        scores = {name: value for name, value in stack.items() if name not in NOT_SCORES}
        for name, interval in stack["interval"].items():
            if interval is not None:
                scores |= {f"{name}_low": interval[0], f"{name}_high": interval[1]}
        rows.append({"prediction": stack["name"], "section": "all", "holdout": stack["holdout"]["status"], **scores})
    columns = dict.fromkeys(["prediction", "section", "holdout"]) | dict.fromkeys(name for row in rows for name in row)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()
