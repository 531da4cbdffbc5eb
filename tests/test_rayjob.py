"""The README's manifest for KubeRay says what the jobs understand, and keeps others out."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from unet_ray.config.parse import parse
from unet_ray.config.segment import SegmentConfig

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def spec() -> dict[str, Any]:
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    (manifest,) = [loaded for loaded in map(yaml.safe_load, blocks) if loaded.get("kind") == "RayJob"]
    assert manifest["apiVersion"] == "ray.io/v1"
    found: dict[str, Any] = manifest["spec"]
    return found


def test_its_command_is_one_of_ours(spec: dict[str, Any]) -> None:
    python, job, *flags = shlex.split(spec["entrypoint"])
    assert python == "python"
    assert (ROOT / "jobs" / Path(job).name).exists()
    config = parse(SegmentConfig, flags, "segment")
    assert config.use_gpu
    assert config.volume.startswith("s3://")


def test_the_head_schedules_and_workers_have_what_they_ask_for(spec: dict[str, Any]) -> None:
    cluster = spec["rayClusterSpec"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert cluster["authOptions"] == {"mode": "token"}
    (group,) = cluster["workerGroupSpecs"]
    # Without a node the job would not know what one has.
    assert 1 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    (container,) = group["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert {"name": "GLOO_SOCKET_IFNAME", "value": "eth0"} in container["env"]
    assert container["image"] == cluster["headGroupSpec"]["template"]["spec"]["containers"][0]["image"]


def test_no_secret_is_in_it(spec: dict[str, Any]) -> None:
    assert not re.search(r"(?i)secret|access_key|password", yaml.safe_dump(spec))
