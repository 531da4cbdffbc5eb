"""Hosts on this machine: namespaces with addresses of their own on a bridge, which can lose their cable or their power.

A host has its own network, process ids, mounts, name, shared memory and temporary folder, so that `ray stop` stays
inside it and one signal is a power cut. The disk is shared, as by NFS. All of it ends with this process, however that
ends: the namespaces have no names that could be left behind.
"""

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from namespaces import BRIDGE, HOST, first_process, ip, powered

ROOT = Path(__file__).resolve().parents[2]
SUBNET = "10.77.0"
GCS_PORT, DASHBOARD_PORT = 6379, 8265
OBJECT_STORE_BYTES = 80_000_000
START_SECONDS = 180
# What Ray Data calls the actors of a job.
ACTOR = "ray::MapWorker"

# A host without power or cable is noticed after about 6 s (by Ray's own settings: about 64).
HEALTH_CHECKS = {
    "RAY_health_check_initial_delay_ms": "0",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "1500",
    "RAY_health_check_failure_threshold": "3",
}

GET = """
import os, sys, urllib.request
asked = urllib.request.Request(sys.argv[1], headers={"Authorization": "Bearer " + os.environ["RAY_AUTH_TOKEN"]})
sys.stdout.write(urllib.request.urlopen(asked, timeout=20).read().decode())
"""


class Host:
    """One host: number 0 is the head."""

    def __init__(self, hosts: "Hosts", number: int) -> None:
        self.hosts, self.number = hosts, number
        self.name, self.address, self.port = f"h{number}", f"{SUBNET}.{10 + number}", f"port{number}"
        self.process = powered(HOST.format(name=self.name, own=hosts.own))
        self.first = first_process(self.process)
        hub = hosts.hub_first
        subprocess.run(
            ["ip", "link", "add", self.port, "netns", str(hub), "type", "veth", "peer", "name", "eth0",
             "netns", str(self.first)],
            check=True,
        )  # fmt: skip
        ip(hub, "link", "set", self.port, "master", "br0", "up")
        ip(self.first, "addr", "add", f"{self.address}/24", "dev", "eth0")
        ip(self.first, "link", "set", "eth0", "up")
        # Without a default route Ray cannot find out its address.
        ip(self.first, "route", "add", "default", "via", f"{SUBNET}.1")
        self.namespace = os.readlink(f"/proc/{self.first}/ns/pid")

    def start(self, *argv: str, said: Path, cwd: Path = ROOT, **environment: str) -> subprocess.Popen[str]:
        """A command on this host; what it says goes into a file, for orphans would hold a pipe open."""
        with open(said, "w") as out:
            return subprocess.Popen(
                ["nsenter", "-t", str(self.first), "-n", "-p", "-m", "-u", "--", "env", f"--chdir={cwd}", *argv],
                stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, text=True,
                env={**self.hosts.environment, **environment},
            )  # fmt: skip

    def run(self, *argv: str, timeout: float = 120, cwd: Path = ROOT, **environment: str) -> tuple[int, str]:
        """Exit code of a command on this host, and what it said."""
        said = self.hosts.folder / f"said-{secrets.token_hex(4)}"
        process = self.start(*argv, said=said, cwd=cwd, **environment)
        code = process.wait(timeout)
        return code, said.read_text()

    def start_ray(self, **environment: str) -> subprocess.Popen[str]:
        """Ray's processes, with 1 CPU; ends when they run."""
        head = [
            "--head", f"--port={GCS_PORT}", f"--dashboard-host={self.address}", f"--dashboard-port={DASHBOARD_PORT}",
        ]  # fmt: skip
        return self.start(
            str(self.hosts.ray), "start", *(head if self.number == 0 else [f"--address={self.hosts.gcs}"]),
            f"--node-ip-address={self.address}", "--num-cpus=1", f"--object-store-memory={OBJECT_STORE_BYTES}",
            "--disable-usage-stats", said=self.hosts.folder / f"start-{self.name}", **environment,
        )  # fmt: skip

    def ask(self, path: str) -> Any:
        """What the head's dashboard answers, asked from this host."""
        code, said = self.run(sys.executable, "-S", "-c", GET, f"{self.hosts.dashboard}{path}")
        assert code == 0, said
        return json.loads(said)

    def processes(self, called: str) -> list[int]:
        """Process ids, as this process sees them, of those on the host whose command line has a word."""
        found = []
        for folder in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                ours = folder.name.isdigit() and os.readlink(folder / "ns/pid") == self.namespace
                if ours and called in (folder / "cmdline").read_bytes().decode(errors="replace"):
                    found.append(int(folder.name))
        return found

    def unplug(self) -> None:
        """Pull the network cable."""
        ip(self.hosts.hub_first, "link", "set", self.port, "down")

    def plug(self) -> None:
        """Put it back."""
        ip(self.hosts.hub_first, "link", "set", self.port, "up")

    def power_off(self) -> None:
        """End every process of the host at once, and its network."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.first, signal.SIGKILL)
        self.process.wait(30)

    @property
    def powered(self) -> bool:
        """Whether it has not been switched off."""
        return self.process.poll() is None


class Hosts:
    """Some hosts on one bridge, of which number 0 is the head of a Ray cluster.

    Attributes:
        folder: on the disk that all of them share.
        more: what else is in the environment of every process on a host.
    """

    def __init__(self) -> None:
        # Short: Ray's sockets lie below it.
        self.folder = Path(tempfile.mkdtemp(prefix="ur-", dir="/tmp"))
        self.own = self.folder / "own"
        self.own.mkdir()
        self.token = secrets.token_hex(32)
        self.more: dict[str, str] = {}
        self.hub = powered(BRIDGE.format(subnet=SUBNET))
        self.hub_first = first_process(self.hub)
        self.all: list[Host] = []

    @cached_property
    def ray(self) -> Path:
        """Ray's command beside this Python."""
        return Path(sys.executable).with_name("ray")

    @property
    def gcs(self) -> str:
        """Where workers join."""
        return f"{SUBNET}.10:{GCS_PORT}"

    @property
    def dashboard(self) -> str:
        """Where jobs are submitted."""
        return f"http://{SUBNET}.10:{DASHBOARD_PORT}"

    @property
    def environment(self) -> dict[str, str]:
        """Of every process on a host: nothing of this one's but the way to Python."""
        return {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            # What is installed on every host, for jobs that are run without being submitted.
            "PYTHONPATH": str(ROOT),
            "HOME": str(self.own), "TMPDIR": str(self.own), "LANG": "C.UTF-8",
            "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token, "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_API_SERVER_ADDRESS": self.dashboard,
            # Without it every rank tells the others to find it at 127.0.0.1.
            "GLOO_SOCKET_IFNAME": "eth0",
            "MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1",
            **HEALTH_CHECKS, **self.more,
        }  # fmt: skip

    @property
    def head(self) -> Host:
        """The host that schedules; it has a CPU for work as well."""
        return self.all[0]

    @property
    def workers(self) -> list[Host]:
        """The other hosts, but for those that were switched off."""
        return [host for host in self.all[1:] if host.powered]

    def add(self) -> Host:
        """One more host, without Ray."""
        self.all.append(Host(self, len(self.all)))
        return self.all[-1]

    def start_ray(self, hosts: Sequence[Host], **environment: str) -> None:
        """Ray on some hosts; returns when all of them have joined."""
        until = time.time() + START_SECONDS
        starting = []
        for host in hosts:
            if host.number and not starting:
                wait_for(lambda: self.answers(GCS_PORT), START_SECONDS)
            starting.append(host.start_ray(**environment))
            if host.number == 0:
                wait_for(lambda: self.answers(GCS_PORT), START_SECONDS)
        for host, process in zip(hosts, starting, strict=True):
            code = process.wait(max(1, until - time.time()))
            assert code == 0, (self.folder / f"start-{host.name}").read_text()
        wait_for(lambda: {host.address for host in hosts} <= self.alive(), START_SECONDS)

    def restore(self, count: int) -> None:
        """Add hosts for those that were switched off, until as many as asked for are there."""
        new = [self.add() for _ in range(count - 1 - len(self.workers))]
        self.start_ray(new)

    def answers(self, port: int) -> bool:
        """Whether the head listens at a port."""
        code, _ = self.head.run(
            sys.executable, "-S", "-c", f"import socket; socket.create_connection(('{self.head.address}', {port}), 1)"
        )
        return code == 0

    def alive(self) -> set[str]:
        """Addresses of the hosts that Ray takes for alive."""
        rows = self.head.ask("/api/v0/nodes")["data"]["result"]["result"]
        return {row["node_ip"] for row in rows if row["state"] == "ALIVE"}

    def close(self) -> None:
        """End and remove everything."""
        for host in self.all:
            host.power_off()
        self.hub.kill()
        self.hub.wait(30)
        shutil.rmtree(self.folder)


def wait_for(what: Callable[[], Any], seconds: float, every: float = 0.1) -> Any:
    """What it returns as soon as that is true of it."""
    until = time.time() + seconds
    while True:
        found = what()
        if found:
            return found
        assert time.time() < until, f"it did not come to that in {seconds:g} s"
        time.sleep(every)


def noticed(hosts: Hosts, host: Host, record: Callable[[str, object], None]) -> None:
    """Wait until Ray takes a host for dead, and keep how long that took."""
    began = time.time()
    wait_for(lambda: host.address not in hosts.alive(), 60)
    record("seconds until Ray noticed", round(time.time() - began, 1))


@contextlib.contextmanager
def hosts_with_ray(count: int) -> Iterator[Hosts]:
    """A Ray cluster over some hosts, the first its head."""
    hosts = Hosts()
    try:
        hosts.start_ray([hosts.add() for _ in range(count)])
        yield hosts
    finally:
        hosts.close()
