"""A host that runs other code than the driver is found at the start; one with another library is warned about."""

import shutil
from pathlib import Path

import pytest
from hosts import ROOT, Hosts
from submitted import Job, flags

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


def test_other_code_ends_the_job_and_other_libraries_are_named(
    hosts: Hosts, labelled: dict[str, tuple[str, ...]]
) -> None:
    """In half a minute: a fourth host is started."""
    other = hosts.folder / "other"
    shutil.copytree(ROOT / "unet_ray", other / "unet_ray", ignore=shutil.ignore_patterns("__pycache__"))
    with open(other / "unet_ray" / "errors.py", "a") as module:
        module.write("# a line more\n")
    (other / "numcodecs-0.0.1.dist-info").mkdir()
    Path(other / "numcodecs-0.0.1.dist-info" / "METADATA").write_text("Name: numcodecs\nVersion: 0.0.1\n")
    settings = flags(
        **labelled, label_kind="membrane", variants=1, patch_px=128, validation_sections=("2",),
        cache=hosts.folder / "skewed",
    )  # fmt: skip
    stranger = hosts.add()
    hosts.start_ray([stranger], PYTHONPATH=str(other))
    ended = Job(hosts.head, "augment", *settings, submit=False).wait()
    assert ended.code == 2, ended.said
    sentence = ended.said.splitlines()[-1]
    assert sentence.startswith(f"augment: unet_ray on {stranger.address} is not the driver's"), ended.said
    assert "--working-dir" in sentence
    assert "Traceback" not in ended.said
    # What is submitted brings its code along; libraries stay the host's.
    ended = Job(hosts.workers[0], "augment", *settings).wait()
    stranger.power_off()
    assert ended.code == 0, ended.said
    assert ended.summary["status"] == "complete"
    assert f"0.0.1 on {stranger.address}; results may differ in rounding" in ended.said
