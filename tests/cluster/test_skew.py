"""A host that runs other code than the driver is found at the start; one with another library is warned about."""

import shutil
from pathlib import Path

import pytest
from hosts import ACTOR, ROOT, Hosts, wait_for
from submitted import Job, flags

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


def other_code(folder: Path) -> Path:
    """A folder with this package, but for a line."""
    shutil.copytree(ROOT / "unet_ray", folder / "unet_ray", ignore=shutil.ignore_patterns("__pycache__"))
    with open(folder / "unet_ray" / "errors.py", "a") as module:
        module.write("# a line more\n")
    return folder


def test_other_code_ends_the_job_and_other_libraries_are_named(
    hosts: Hosts, labelled: dict[str, tuple[str, ...]]
) -> None:
    """In half a minute: a fourth host is started."""
    other = other_code(hosts.folder / "other")
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


@pytest.mark.parametrize("code", ["other", "none"])
def test_a_host_that_joins_with_other_code_gets_no_work(
    hosts: Hosts, labelled: dict[str, tuple[str, ...]], code: str
) -> None:
    """In a minute each: the job goes on without it, and loses nothing."""
    cache = hosts.folder / f"joined-{code}"
    settings = flags(
        **labelled, label_kind="membrane", variants=1000, patch_px=256, patches_per_shard=4, validation_sections=("2",),
        cache=cache,
    )  # fmt: skip
    job = Job(hosts.head, "augment", *settings, submit=False)
    wait_for(lambda: job.running() and hosts.workers[-1].processes(ACTOR), 90)
    stranger = hosts.add()
    path = other_code(hosts.folder / "joining") if code == "other" else broken(hosts.folder / "broken")
    hosts.start_ray([stranger], PYTHONPATH=str(path))
    assert job.running()
    ended = job.wait(240)
    stranger.power_off()
    assert ended.code == 0, ended.said
    assert (ended.summary["status"], ended.summary["patches_written"]) == ("complete", 5000)
    assert f"cluster: node {stranger.address} has joined and gets no work" in ended.said
    assert "Traceback" not in ended.said


def broken(folder: Path) -> Path:
    """A folder whose package of our name cannot be imported."""
    (folder / "unet_ray").mkdir(parents=True)
    (folder / "unet_ray" / "__init__.py").write_text('raise ImportError("not installed here")\n')
    return folder
