"""The benchmark of a step's options still runs, at toy size."""

import json

import bench_step
import pytest

TOY = ["--patch-px", "32", "--batch-size", "2", "--base-channels", "2", "--depth", "2", "--threads", "1"]


def test_it_returns_a_ratio_for_each_option() -> None:
    chosen = ["kept_memory", "two_pieces", "float16_channels_last"]
    record = bench_step.main([*TOY, "--seconds", "0.1", "--repeats", "1", "--only", *chosen])
    assert json.loads(json.dumps(record))["medians"].keys() == {"plain", "kept_memory", "two_pieces"}  # no GPU
    (plain,), (pieces,) = record["results"]["plain"], record["results"]["two_pieces"]
    assert record["ratios"]["two_pieces"]["median"] == pieces["patches_per_second"] / plain["patches_per_second"]


@pytest.mark.parametrize("name", [n for n in bench_step.OPTIONS if n not in ("float16_channels_last", "compile")])
def test_each_option_is_measured(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # What it does to its own process is not for this one.
    monkeypatch.setattr(bench_step.torch, "set_num_threads", lambda threads: None)
    monkeypatch.setattr(bench_step, "keep_freed_memory", lambda: True)
    found = json.loads(json.dumps(bench_step.main([*TOY, "--seconds", "0", "--measure", name])))
    assert found["steps_per_second"] > 0
    assert found["patches_per_second"] == pytest.approx(found["steps_per_second"] * (1 if name == "half_batch" else 2))
