"""The README's manifest for KubeRay says what the jobs understand, and keeps others out."""

import copy
import re
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from unet_ray.config.parse import parse
from unet_ray.config.segment import SegmentConfig

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def manifest() -> dict[str, Any]:
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    found: dict[str, Any]
    (found,) = [loaded for loaded in map(yaml.safe_load, blocks) if loaded.get("kind") == "RayJob"]
    return found


@pytest.fixture(scope="module")
def spec(manifest: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = manifest["spec"]
    return found


@pytest.fixture(scope="module")
def schema() -> jsonschema.Draft202012Validator:
    loaded = yaml.safe_load((ROOT / "tests" / "rayjob_schema.yaml").read_text())
    jsonschema.Draft202012Validator.check_schema(loaded)
    return jsonschema.Draft202012Validator(loaded)


def test_its_fields_are_known_and_of_their_types(
    manifest: dict[str, Any], schema: jsonschema.Draft202012Validator
) -> None:
    assert [f"{error.json_path}: {error.message}" for error in schema.iter_errors(manifest)] == []


@pytest.mark.parametrize(
    ("path", "value", "found"),
    [
        ("spec.backofLimit", 2, "'backofLimit' was unexpected"),
        ("spec.rayClusterSpec.authOptions.mode", "tokens", "'tokens' is not one of ['disabled', 'token']"),
        ("spec.rayClusterSpec.headGroupSpec.rayStartParams.num-cpus", 0, "0 is not of type 'string'"),
        ("spec.rayClusterSpec.workerGroupSpecs.0.maxReplicas", "8", "'8' is not of type 'integer'"),
        ("spec.rayClusterSpec.workerGroupSpecs.0.template.spec.containers.0.resources.limits.memory", "32 GB", "match"),
        ("spec.rayClusterSpec.workerGroupSpecs.0.template.containers", [], "'containers' was unexpected"),
    ],
)
def test_a_wrong_field_is_found(
    manifest: dict[str, Any], schema: jsonschema.Draft202012Validator, path: str, value: Any, found: str
) -> None:
    changed = copy.deepcopy(manifest)
    at: Any = changed
    *there, last = (int(word) if word.isdigit() else word for word in path.split("."))
    for word in there:
        at = at[word]
    at[last] = value
    (error,) = schema.iter_errors(changed)
    assert found in error.message


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
