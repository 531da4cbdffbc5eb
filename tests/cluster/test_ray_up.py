"""`cluster.yaml` on hosts that are there already: brought up by `ray up` over ssh, used, and taken down."""

import hashlib
import json
import secrets
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hosts import GET, ROOT, Hosts, wait_for
from submitted import Job, flags

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

SSHD = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/sbin")
TUNNEL = "http://127.0.0.1:8265"
# A host's own users, home and daemon. The cluster's user is its root under another name, the first, by which programs
# find root's home: it is on the host's own disk.
ADMIT = """
set -e
mkdir -p {own}/home/.ssh {own}/etc
cp /etc/skel/.bashrc /etc/skel/.profile {own}/home/
(echo '{user}:x:0:0::{own}/home:/bin/bash'; cat /etc/passwd) > {own}/etc/passwd
mount --bind {own}/etc/passwd /etc/passwd
mount -t tmpfs tmpfs /run
mkdir -p /run/sshd
cp {folder}/key.pub {own}/etc/authorized
chmod 700 {own}/home {own}/home/.ssh
ssh-keygen -q -t ed25519 -N '' -f {own}/etc/host_key
cat > {own}/etc/sshd_config <<END
ListenAddress {address}
HostKey {own}/etc/host_key
AuthorizedKeysFile {own}/etc/authorized
PidFile none
UsePAM no
StrictModes no
PasswordAuthentication no
SetEnv TMPDIR={own} RAY_TMPDIR={own}
Subsystem sftp internal-sftp
END
{sshd} -f {own}/etc/sshd_config
"""


class Rack:
    """Three hosts that let in a key by ssh, and a fourth, from which `ray up` is run.

    Attributes:
        user: of the hosts and of `ray up`, by whose name Ray calls its folder of ssh connections in /tmp.
    """

    def __init__(self, hosts: Hosts) -> None:
        self.hosts, self.user = hosts, f"lab{secrets.token_hex(4)}"
        folder = hosts.folder
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / "key"], check=True)
        self.nodes = [hosts.add() for _ in range(3)]
        self.laptop = hosts.add()
        for host in self.nodes:
            script = ADMIT.format(own=hosts.own, folder=folder, user=self.user, address=host.address, sshd=SSHD)
            code, said = host.run("bash", "-c", script)
            assert code == 0, said
        keep = f"mkdir -p {hosts.own}/.ray && echo {hosts.token} > {hosts.own}/.ray/auth_token"
        assert self.laptop.run("bash", "-c", keep)[0] == 0
        self.yaml = folder / "cluster.yaml"
        self.yaml.write_text(yaml.safe_dump(self.exchanged()))

    def exchanged(self) -> dict[str, Any]:
        """`cluster.yaml`, all of it but what is AWS's, what needs a registry, and names of this rack."""
        home = f"{self.hosts.own}/home"
        text = (ROOT / "cluster.yaml").read_text().replace("/home/ubuntu", home).replace("=ens5", "=eth0")
        found: dict[str, Any] = yaml.safe_load(text)
        for key in ("available_node_types", "head_node_type", "max_workers"):
            del found[key]
        found["cluster_name"] = self.user
        found["provider"] = {
            "type": "local", "head_ip": self.nodes[0].address, "worker_ips": [node.address for node in self.nodes[1:]],
        }  # fmt: skip
        found["auth"] = {"ssh_user": self.user, "ssh_private_key": str(self.hosts.folder / "key")}
        assert [step for step in found["setup_commands"] if "pip install" in step or "-m venv" in step]
        found["setup_commands"] = [
            f"ln -sfn {Path(sys.executable).parents[1]} {home}/venv",
            *(step for step in found["setup_commands"] if "pip install" not in step and "-m venv" not in step),
        ]
        return found

    def ray(self, *words: str) -> tuple[int, str]:
        """Ray's launcher, as a user calls it on his own machine in the checkout."""
        argv = (str(self.hosts.ray), *words, str(self.yaml), "-y")
        # Where hosts are named, Ray 2.60 starts one worker only unless its older autoscaler does it.
        environment = {"LOGNAME": self.user, "USER": self.user, "RAY_UP_enable_autoscaler_v2": "0"}
        return self.laptop.run(*argv, timeout=240, **environment)

    def alive(self) -> set[str]:
        """Addresses of the nodes that the head knows."""
        code, said = self.nodes[0].run(sys.executable, "-S", "-c", GET, f"{TUNNEL}/api/v0/nodes")
        if code != 0:
            return set()
        rows = json.loads(said)["data"]["result"]["result"]
        return {row["node_ip"] for row in rows if row["state"] == "ALIVE"}

    def monitor(self) -> str:
        """What the one who starts the workers, on the head, has said last."""
        return self.nodes[0].run("bash", "-c", f"tail -n 80 {self.hosts.own}/ray/session_latest/logs/monitor.*")[1]


@pytest.fixture
def rack(can_make_hosts: None) -> Iterator[Rack]:
    """A rack without Ray."""
    missing = [name for name in ("ssh", "ssh-keygen", "rsync") if shutil.which(name) is None] + ["sshd"] * (not SSHD)
    if missing:
        pytest.skip(f"needs {', '.join(missing)} (openssh-server, openssh-client, rsync)")
    hosts = Hosts()
    try:
        rack = Rack(hosts)
        yield rack
        name = hashlib.sha256(rack.user.encode()).hexdigest()[:10]
        shutil.rmtree(f"/tmp/ray_ssh_{name}", ignore_errors=True)
    finally:
        hosts.close()


def test_ray_up_brings_up_a_rack_that_takes_jobs(rack: Rack, labelled_at: Callable[[Path], dict[str, Any]]) -> None:
    """In two minutes; on a busy machine in five."""
    code, said = rack.ray("up", "--no-config-cache")
    assert code == 0, said
    try:
        wait_for(lambda: rack.alive() == {node.address for node in rack.nodes}, 120, every=1)
    except AssertionError:
        raise AssertionError(rack.monitor()) from None
    for package in ("unet_ray", "jobs"):
        copied = f"{rack.hosts.own}/home/unet_ray/{package}"
        assert rack.nodes[0].run("diff", "-rq", "--exclude=__pycache__", str(ROOT / package), copied) == (0, "")
    # The job server is at the head's loopback, so the way there is a tunnel.
    tunnel = rack.laptop.start(
        str(rack.hosts.ray), "dashboard", str(rack.yaml), said=rack.hosts.folder / "tunnel", LOGNAME=rack.user,
        USER=rack.user,
    )  # fmt: skip

    def through() -> bool:
        assert tunnel.poll() is None, (rack.hosts.folder / "tunnel").read_text()
        code, _ = rack.laptop.run(sys.executable, "-S", "-c", GET, f"{TUNNEL}/api/version")
        return code == 0

    wait_for(through, 60, every=1)
    given = labelled_at(rack.hosts.folder) | {
        "label_kind": "membrane", "variants": 2, "patch_px": 128, "cache": rack.hosts.folder / "cache",
    }  # fmt: skip
    ended = Job(rack.laptop, "augment", *flags(**given), RAY_API_SERVER_ADDRESS=TUNNEL).wait(300)
    assert ended.code == 0, ended.said
    assert (ended.summary["status"], ended.summary["patches_written"]) == ("complete", 12)
    tunnel.terminate()
    code, said = rack.ray("down")
    assert code == 0, said

    def running() -> list[str]:
        return [node.name for node in rack.nodes if node.processes("raylet/raylet")]

    wait_for(lambda: not running(), 90, every=1)
