"""cluster.yaml is what Ray's own launcher accepts, and keeps others out."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

PATH = Path(__file__).resolve().parents[1] / "cluster.yaml"


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(PATH.read_text())
    return loaded


def test_ray_accepts_it(cluster: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    util = pytest.importorskip("ray.autoscaler._private.util")
    util.validate_config(util.prepare_config(cluster))
    with pytest.raises(Exception, match="max_wrkers"):
        util.validate_config(util.prepare_config(cluster | {"max_wrkers": 1}))


def test_every_ray_process_asks_for_the_token(cluster: dict[str, Any]) -> None:
    starts = [
        command
        for key in ("head_start_ray_commands", "worker_start_ray_commands")
        for command in cluster[key]
        if "ray start" in command
    ]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token" in command for command in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]


def test_every_aws_node_has_an_image_and_a_role(cluster: dict[str, Any]) -> None:
    """By default Ray takes Ubuntu 18.04, whose Python is too old, and gives workers no role that reaches a bucket."""
    for kind in cluster["available_node_types"].values():
        assert "ImageId" in kind["node_config"]
        assert set(kind["node_config"]["IamInstanceProfile"]) == {"Name"}


def test_every_ray_process_knows_the_region_of_its_bucket(cluster: dict[str, Any]) -> None:
    """The client of object stores takes us-east-1 where nothing tells."""
    told = f"AWS_REGION={cluster['provider']['region']}"
    assert all(told in cluster[f"{kind}_start_ray_commands"][-1].split() for kind in ("head", "worker"))


def test_its_commands_are_whole(cluster: dict[str, Any]) -> None:
    """YAML takes what follows a # for a comment, and a shell finds a quote without an end only when it gets there."""
    commands = [
        command
        for key in ("setup_commands", "head_start_ray_commands", "worker_start_ray_commands")
        for command in cluster[key]
    ]
    assert len(commands) > 5
    for command in commands:
        parsed = subprocess.run(["bash", "-n", "-c", command], capture_output=True, text=True)
        assert (parsed.returncode, parsed.stderr) == (0, ""), command
