"""Kernel namespaces as hosts: a first process that has one of each kind of its own, and what its end ends with it.

They have no names that could be left behind, and end with the process that made them, however that ends.
"""

import shutil
import subprocess
from pathlib import Path

NAMESPACES = ("unshare", "--net", "--pid", "--mount", "--uts", "--fork", "--kill-child", "--mount-proc")
TOOLS = ("ip", "nsenter", "setpriv", "unshare")
# The first process of a host, which also reaps whatever Ray's daemons leave behind. Names are as on Debian: a host's
# own is at 127.0.1.1, and nobody answers for others.
HOST = """
set -e
hostname {name}
ip link set lo up
mount -t tmpfs -o size=256m tmpfs /dev/shm
mount -t tmpfs -o size=512m tmpfs {own}
printf '127.0.0.1 localhost\\n127.0.1.1 {name}\\n' > {own}/hosts
mount --bind {own}/hosts /etc/hosts
touch {own}/resolv.conf
mount --bind {own}/resolv.conf /etc/resolv.conf
echo ready
while :; do sleep 1000; done
"""
BRIDGE = """
set -e
ip link add br0 type bridge
ip link set br0 up
ip addr add {subnet}.1/24 dev br0
echo ready
while :; do sleep 1000; done
"""


def why_not() -> str | None:
    """Why no hosts can be made here, in a sentence; None where they can."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        return f"needs {', '.join(missing)} (iproute2 and util-linux) to make hosts"
    tried = subprocess.run([*NAMESPACES, "ip", "link", "add", "type", "veth"], capture_output=True, text=True)
    return f"may not make namespaces and network links here ({tried.stderr.strip()})" if tried.returncode else None


def powered(script: str) -> subprocess.Popen[str]:
    """A process in namespaces of its own, whose first process has run a script up to ``echo ready``."""
    process = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", *NAMESPACES, "sh", "-c", script],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n", "the first process of a host could not set it up"
    return process


def first_process(process: subprocess.Popen[str]) -> int:
    return int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text())


def ip(inside: int, *words: str) -> None:
    subprocess.run(["nsenter", "-t", str(inside), "-n", "ip", *words], check=True)
