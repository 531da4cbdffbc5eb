"""The whole path as a user takes it: one command, a small phantom, and the same command again."""

import contextlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import tifffile

from unet_ray.network.model_file import decode
from unet_ray.storage.volume import open_volume

SUMMARIES = {
    "augment": "patches patches_written patches_skipped patches_per_second",
    "train": "epochs steps samples_per_second best_validation_loss best_epoch model",
    "segment": "voxels voxels_per_second blocks blocks_written blocks_skipped blocks_failed model_seconds "
    "seam_max_abs_diff mask_change_share output peak_worker_rss_bytes",
    "evaluate": "v_rand v_info v_rand_threshold v_info_threshold v_rand_unthinned v_info_unthinned rand_error "
    "pixel_error pixel_mismatch adapted_rand_error warping_error dice",
}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(
        f"""
        output: {tmp_path / "run"}
        tiff: {tmp_path / "mask.tif"}
        phantom: {{shape: [6, 128, 128]}}
        augment:
          label_kind: membrane
          variants: 2
          patch_px: 64
          validation_sections: [1]
          exclude_sections: [4]
        train: {{base_channels: 2, depth: 3, epochs: 1, precision: float32}}
        segment: {{tile_px: 64, precision: float32}}
        """
    )
    return path


def test_end_to_end(
    config: Path, tmp_path: Path, run_job: Callable[..., Any], call_job: Callable[..., Any], ray_cluster: None
) -> None:
    ended = run_job("pipeline", "--config", config)
    assert ended.code == 0, ended.err
    summary = json.loads(ended.out.splitlines()[-1])
    assert "Traceback" not in ended.err
    assert "INFO" not in ended.err, "Ray Data's own lines"
    assert {"status", "seconds", "startup_seconds", "report", *SUMMARIES} <= set(summary)
    for stage, keys in SUMMARIES.items():
        assert {"status", "seconds", "startup_seconds", *keys.split()} <= set(summary[stage]), stage
        assert summary[stage]["status"] == summary["status"] == "complete"
    assert (summary["augment"]["patches"], summary["augment"]["patches_written"]) == (8, 8)
    assert (summary["train"]["epochs"], summary["train"]["steps"]) == (1, 2)
    assert summary["segment"]["voxels"] == 6 * 128 * 128
    assert summary["segment"]["blocks_written"] == summary["segment"]["blocks"] > 1
    assert summary["evaluate"]["sections"] == [4]
    assert summary["evaluate"]["v_rand_at_fixed_threshold"] <= summary["evaluate"]["v_rand"]  # by validation section 1

    run = tmp_path / "run"
    for name in ("model.safetensors", "metrics.jsonl", "curves.png"):
        assert (run / "run" / name).stat().st_size > 0, name
    assert summary["train"]["model"] == str(run / "run" / "model.safetensors")
    assert open_volume(summary["segment"]["output"]).shape == (6, 128, 128)
    mask = tifffile.imread(tmp_path / "mask.tif")
    assert mask.shape == (6, 128, 128)
    assert set(np.unique(mask)) <= {0, 255}
    metrics = json.loads((Path(summary["report"]) / "metrics.json").read_text())
    assert metrics["predictions"][0]["v_rand"] == summary["evaluate"]["v_rand"]
    # Neither training nor the choice of the model has seen what is scored, and the job knows.
    seen = decode((run / "run" / "model.safetensors").read_bytes())[2].training_sections
    assert sorted(section.section for section in seen) == [0, 1, 2, 3, 5]
    shown = open_volume(f"{run}/phantom.zarr/image")
    assert all(section.fingerprint == shown.section_digest(section.section) for section in seen)
    assert all(section.grey_order == shown.order_digest(section.section) for section in seen)
    assert summary["evaluate"]["holdout"]["status"] == "held out"
    assert summary["evaluate"]["warnings"] == []
    for picture in (Path(summary["report"]) / "sections.png", run / "run" / "curves.png"):
        pixels = matplotlib.image.imread(picture)
        assert min(pixels.shape[:2]) > 50
        assert pixels.std() > 0

    page = (Path(summary["report"]) / "report.html").read_text()
    for told in (
        "Demo on a synthetic volume",
        "held out",
        "Seam certificate",
        "What it waited for",
        "Augmented patches",
        "Validation: v rand",
        "python jobs/view.py",
        "--initial-model",
        "Mvox/s",
        "section-4",
        "jobs/pipeline.py",
    ):
        assert told in page, told

    before = {path: path.stat().st_mtime_ns for path in run.rglob("c/**/*") if path.is_file()}
    assert len(before) > 20
    again = call_job("pipeline", "--config", config)
    assert again.code == 0, again.err
    repeated = json.loads(again.out.splitlines()[-1])
    assert (repeated["augment"]["patches_written"], repeated["segment"]["blocks_written"]) == (0, 0)
    assert "nothing to do" in repeated["augment"]["note"]
    assert "nothing to do" in repeated["train"]["note"]
    assert repeated["evaluate"]["v_rand"] == summary["evaluate"]["v_rand"]
    assert {path: path.stat().st_mtime_ns for path in run.rglob("c/**/*") if path.is_file()} == before
    assert repeated["seconds"] < summary["seconds"]
    # The report still tells what the runs took that did the work.
    later = (Path(summary["report"]) / "report.html").read_text()
    for told in ("What it waited for", "<td>Speed</td>", "<td>Blocks</td>", "<td>idle</td>"):
        assert re.findall(rf"{told}.*", later) == re.findall(rf"{told}.*", page) != [], told
    times = re.search(r"augment (\d+:\d\d), train (\d+:\d\d), segment (\d+:\d\d), evaluate", page)
    assert times is not None
    words = ", ".join(f"{stage} {took} (done earlier)" for stage, took in zip(SUMMARIES, times.groups(), strict=False))
    assert f"{words}, evaluate" in later

    # A mistaken command is refused before it touches what is finished: the first one still has nothing to do.
    cached = {path: path.read_bytes() for path in run.glob("cache.zarr/**/zarr.json")}
    refused = call_job("pipeline", "--config", config, "--augment.variants", "3")
    assert (refused.code, refused.out) == (2, ""), refused.err
    assert "was started with patches 8 (now 12); choose" in refused.err
    assert {path: path.read_bytes() for path in run.glob("cache.zarr/**/zarr.json")} == cached
    assert {path: path.stat().st_mtime_ns for path in run.rglob("c/**/*") if path.is_file()} == before

    # What is damaged only for the report leaves the one that is there whole.
    rows = (run / "run" / "metrics.jsonl").read_bytes()
    (run / "run" / "metrics.jsonl").write_bytes(rows[:-20])
    kept = {path.name: path.stat().st_mtime_ns for path in (run / "report").iterdir()}
    assert "metrics.jsonl of run" in call_job("pipeline", "--config", config).err
    assert {path.name: path.stat().st_mtime_ns for path in (run / "report").iterdir()} == kept
    (run / "run" / "metrics.jsonl").write_bytes(rows)

    # Moved, with what it says of itself.
    run.rename(tmp_path / "moved")
    moved = call_job("pipeline", "--config", config, "--output", tmp_path / "moved")
    assert moved.code == 0, moved.err
    there = json.loads(moved.out.splitlines()[-1])
    assert (there["augment"]["patches_written"], there["segment"]["blocks_written"]) == (0, 0)
    assert there["train"]["model"] == str(tmp_path / "moved" / "run" / "model.safetensors")
    assert there["evaluate"]["holdout"]["status"] == "held out"


@pytest.fixture
def staged(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """staged(**status) -> list that fills with the settings of the stages, which do nothing and end with a status."""
    from unet_ray.engine import pipeline

    def arrange(**status: str) -> list[Any]:
        given: list[Any] = []
        monkeypatch.setattr(pipeline, "cluster", contextlib.nullcontext)
        for stage in ("augment", "train", "segment", "evaluate"):

            def note(config: Any, *_: Any, stage: str = stage) -> dict[str, str]:
                given.append(config)
                output = Path(getattr(config, "output", "")).name
                return {"status": status.get(output, status.get(stage, "complete")), "model": "m"}

            monkeypatch.setattr(pipeline, stage, note)
        return given

    return arrange


def test_a_mask_is_for_the_volume_and_another_for_the_labels(
    call_job: Callable[..., Any], stack: Callable[..., Path], tmp_path: Path, staged: Callable[..., list[Any]]
) -> None:
    given = staged()
    labelled, volume, mask, unlabelled = (str(stack(f"{n}.tif")) for n in ("labelled", "volume", "mask", "unlabelled"))
    flags = ["--images", labelled, "--labels", labelled, "--volume", volume, "--mask", mask, "--score-sections", "1"]
    flags += ["--augment.validation-sections", "0"]
    flags += ["--ignore-masks", unlabelled]
    assert call_job("pipeline", *flags, "--output", tmp_path / "p").code == 0
    assert [(config.volume, config.mask) for config in given if hasattr(config, "mask")] == [
        (labelled, None), (volume, mask),
    ]  # fmt: skip
    assert [config.ignore_masks for config in given if hasattr(config, "ignore_masks")] == [
        (unlabelled,), unlabelled,
    ]  # fmt: skip
    assert call_job("pipeline", "--ignore-masks", unlabelled, "--output", tmp_path / "p").code == 2


@pytest.mark.parametrize(
    ("incomplete", "came_to"),
    [
        ({"augment": "incomplete"}, "augment"),
        ({"segment": "incomplete"}, "augment train segment"),
        ({"scored.zarr": "incomplete"}, "augment train segment"),
        # What is scored is whole.
        ({"segmentation.zarr": "incomplete"}, "augment train segment evaluate report"),
    ],
)
def test_an_incomplete_stage_ends_with_exit_code_3_and_nothing_is_scored_that_is_not_there(
    call_job: Callable[..., Any],
    stack: Callable[..., Path],
    tmp_path: Path,
    staged: Callable[..., list[Any]],
    incomplete: dict[str, str],
    came_to: str,
) -> None:
    staged(**incomplete)
    labelled = str(stack("labelled.tif"))
    flags = ["--images", labelled, "--labels", labelled, "--score-sections", "1", "--output", tmp_path / "p"]
    flags += ["--augment.validation-sections", "0"]
    volume = ["--volume", stack("volume.tif")] if "segment" not in incomplete else []
    ended = call_job("pipeline", *flags, *volume)
    assert ended.code == 3
    summary = json.loads(ended.out.splitlines()[-1])
    assert list(summary) == ["status", "seconds", "startup_seconds", *came_to.split()]
    assert summary["status"] == "incomplete"


def test_settings_of_a_run_reach_its_stages(
    call_job: Callable[..., Any], stack: Callable[..., Path], tmp_path: Path, staged: Callable[..., list[Any]]
) -> None:
    given = staged()
    labelled = str(stack("labelled.tif"))
    flags = ["--images", labelled, "--labels", labelled, "--score-sections", "1", "--output", tmp_path / "p"]
    flags += ["--augment.validation-sections", "0"]
    assert call_job("pipeline", *flags, "--checkpoint-every-steps", 7, "--accept-changed-volume").code == 0
    _, train, segment, _ = given
    assert (train.checkpoint_every_steps, segment.accept_changed_volume) == (7, True)


def test_another_phantom_only_where_the_old_one_may_be_overwritten(tmp_path: Path, ray_cluster: None) -> None:
    from unet_ray.engine.phantom import make_phantom
    from unet_ray.errors import OutputMismatchError

    path = str(tmp_path / "phantom.zarr")
    image, _ = make_phantom(path, (2, 32, 48), seed=0)
    before = open_volume(image).section_digest(0)
    with pytest.raises(OutputMismatchError, match=r"holds another volume .* or pass --overwrite"):
        make_phantom(path, (2, 32, 48), seed=1)
    assert open_volume(image).section_digest(0) == before
    make_phantom(path, (3, 32, 48), seed=1, overwrite=True)
    assert open_volume(image).shape == (3, 32, 48)
    assert open_volume(image).section_digest(0) != before
