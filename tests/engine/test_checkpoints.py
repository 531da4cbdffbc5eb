"""Which checkpoints of a run can be gone on from, after a power cut or with a hand in the folder."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from unet_ray.engine.checkpoints import LIST, STATE, take_off_unusable
from unet_ray.errors import ModelFileError
from unet_ray.storage.open_objects import open_objects

FOLDERS = [f"checkpoint_2026-01-0{day}_00-00-00.000000" for day in (1, 2, 3)]


def saved(step: int, **changes: Any) -> bytes:
    parts = {"network": {"w": torch.ones(50)}, "optimizer": {}, "schedule": {}, "average": None, "scaler": None}
    data = io.BytesIO()
    torch.save({**parts, "at": {"step": step}} | changes, data)
    return data.getvalue()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Three checkpoints, listed as Ray Train lists them."""
    results = [
        {"version": 0, "checkpoint_dir_name": name, "metrics": {"step": 4 * n}} for n, name in enumerate(FOLDERS)
    ]
    for number, name in enumerate(FOLDERS):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
        (tmp_path / "checkpoints" / name / STATE).write_bytes(saved(4 * number))
    listed = {
        "ray_version": "2.60.0", "checkpoint_results": results, "checkpoint_report_indices": [0, 1, 2],
        "latest_checkpoint_result": results[-1], "pending_training_results": [], "pending_validation_specs": [],
        "current_report_index": 3, "validated_checkpoint_dir_names": [],
        "timed_out_validation_checkpoint_dir_names": [], "failed_validation_checkpoint_dir_names": [],
    }  # fmt: skip
    (tmp_path / LIST).write_text(json.dumps(listed))
    return tmp_path


def state(run: Path, number: int) -> Path:
    return run / "checkpoints" / FOLDERS[number] / STATE


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def listed(run: Path) -> list[str]:
    """In order; the last is the one that Ray goes on from."""
    found = json.loads((run / LIST).read_text())
    names = [result["checkpoint_dir_name"] for result in found["checkpoint_results"]]
    assert found["latest_checkpoint_result"] == found["checkpoint_results"][-1]
    assert len(found["checkpoint_report_indices"]) == len(names)
    return names


def test_what_is_whole_stays_as_it_is(run: Path) -> None:
    before = (run / LIST).read_bytes()
    assert take_off_unusable(open_objects(str(run)), "r") == []
    assert (run / LIST).read_bytes() == before


def test_a_run_without_checkpoints_has_none_to_look_at(tmp_path: Path) -> None:
    assert take_off_unusable(open_objects(str(tmp_path)), "r") == []


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: cut(path, path.stat().st_size // 2), "is damaged"),
        (lambda path: cut(path, 0), "is damaged"),
        (lambda path: path.unlink(), "is missing"),
        (lambda path: path.write_bytes(saved(8, at=io.BytesIO())), "is damaged"),
        (lambda path: torch.save({"network": {}}, path), "is not one of ours (it has no at, average"),
        (lambda path: torch.save([1], path), "is damaged"),
    ],
    ids=["cut", "empty", "missing", "program", "foreign", "list"],
)
def test_the_one_before_is_gone_on_from(run: Path, damage: Callable[[Path], Any], said: str) -> None:
    damage(state(run, 2))
    (sentence,) = take_off_unusable(open_objects(str(run)), "r")
    assert f"{FOLDERS[2]} {said}" in sentence
    assert sentence.endswith(f"going on from step 4, {FOLDERS[1]}")
    assert listed(run) == FOLDERS[:2]
    assert take_off_unusable(open_objects(str(run)), "r") == []


def test_an_older_one_may_be_missing(run: Path) -> None:
    state(run, 0).unlink()
    (sentence,) = take_off_unusable(open_objects(str(run)), "r")
    assert f"checkpoint {FOLDERS[0]} is missing; going on from step 8" in sentence
    assert listed(run) == FOLDERS[1:]


@pytest.mark.parametrize("size", [0, 40])
def test_a_list_that_was_cut_off_is_made_anew(run: Path, size: int) -> None:
    cut(run / LIST, size)
    cut(state(run, 2), 100)
    (sentence,) = take_off_unusable(open_objects(str(run)), "r")
    assert sentence.startswith("of the checkpoints of r, their list is damaged; ")
    assert sentence.endswith(f"going on from step 4, {FOLDERS[1]}")
    assert listed(run) == FOLDERS[:2]


def test_where_none_is_left_nothing_is_changed(run: Path) -> None:
    for number in range(3):
        cut(state(run, number), 100)
    before = (run / LIST).read_bytes()
    with pytest.raises(ModelFileError, match=r"^run r has no checkpoint that can be gone on from .*--overwrite$"):
        take_off_unusable(open_objects(str(run)), "r")
    assert (run / LIST).read_bytes() == before
