"""Jobs submitted from one host to the head of others: they work, fail and stop as a laptop's do, and stay resumable."""

from pathlib import Path
from typing import Any

import pytest
from hosts import Hosts, wait_for
from submitted import Job, flags

pytestmark = pytest.mark.cluster

Labelled = dict[str, tuple[str, ...]]


def recipe(labelled: Labelled, variants: int) -> dict[str, Any]:
    return labelled | {
        "label_kind": "membrane", "variants": variants, "patch_px": 128, "patches_per_shard": 4,
        "validation_sections": ("2",),
    }  # fmt: skip


def test_wrong_input_fails_the_job_with_its_exit_code_and_a_sentence(hosts: Hosts) -> None:
    """In a quarter of a minute."""
    job = Job(hosts.workers[0], "segment", *flags(volume="/none.zarr", model="/none", output=f"{hosts.folder}/none"))
    ended = job.wait()
    assert ended.code == 1, ended.said  # the submitting command's own
    info = job.info()
    assert (info["status"], info["driver_exit_code"]) == ("FAILED", 2)
    said = [line for line in ended.said.splitlines() if line.startswith("segment: ")]
    assert said, ended.said
    assert "/none.zarr" in said[0]
    assert "Traceback" not in ended.said


@pytest.mark.slow
def test_every_job_works_across_the_hosts(hosts: Hosts, labelled: Labelled) -> None:
    """In three to five minutes, on a busy machine in ten: each job compiles what it needs on every host."""
    away, folder = hosts.workers[0], hosts.folder / "every"
    run = {"cache": f"{folder}/cache", "run": f"{folder}/run"}
    small = {"base_channels": 4, "depth": 2, "epochs": 1, "batch_size": 4}
    steps = {
        "augment": recipe(labelled, 8) | {"cache": run["cache"]},
        "train": run | small | {"workers": 2},
        "segment": {
            "volume": labelled["images"][0], "model": f"{folder}/run/model.safetensors",
            "output": f"{folder}/out.zarr", "tile_px": 32, "tiff": f"{folder}/mask.tif",
        },
        "evaluate": {
            "prediction": f"{folder}/out.zarr", "labels": labelled["labels"][0], "label_kind": "membrane",
            "report": f"{folder}/report",
        },
        "pipeline": {
            "output": f"{folder}/demo", "phantom.shape": (4, 160, 160), "augment.variants": 4,
            "augment.patch_px": 128, "augment.validation_sections": ("1",), "augment.exclude_sections": ("3",),
            "train.base_channels": 4, "train.depth": 2, "train.epochs": 1, "train_workers": 2,
        },
    }  # fmt: skip
    for name, settings in steps.items():
        ended = Job(away, name, *flags(**settings)).wait(400)
        assert ended.code == 0, ended.said
        assert ended.summary["status"] == "complete"
    assert Path(f"{folder}/mask.tif").exists()
    assert Path(f"{folder}/report/metrics.json").exists()
    assert Path(f"{folder}/demo/report/sections.png").exists()


@pytest.mark.slow
def test_a_stopped_job_goes_on(hosts: Hosts, labelled: Labelled) -> None:
    """In about a minute: the job is submitted twice."""
    cache = hosts.folder / "stopped"
    settings = recipe(labelled, 100) | {"cache": cache}
    job = Job(hosts.workers[0], "augment", *flags(**settings))

    def done() -> int:
        return len(list((cache / "train" / "image" / "c").glob("*/0/0/0")))

    wait_for(lambda: job.running() and done() >= 8, 120)
    job.stop()
    job.wait(30)  # the submitting command ends with 0 here
    assert job.info()["status"] == "STOPPED"
    assert "interrupted; the same command continues" in job.log.read_text()
    there = done()
    assert 8 <= there < 125, "it was to be stopped in the middle"
    ended = Job(hosts.workers[0], "augment", *flags(**settings)).wait()
    assert ended.code == 0, ended.said
    found = ended.summary
    assert (found["status"], found["patches_skipped"]) == ("complete", 4 * there)
    assert found["patches_skipped"] + found["patches_written"] == found["patches"] == 500
