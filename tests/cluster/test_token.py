"""Without the cluster's token nobody gets in, and the job server listens on the private network alone."""

import json
import sys
from pathlib import Path

import pytest
from hosts import DASHBOARD_PORT, GCS_PORT, Host, Hosts
from submitted import Job, flags

pytestmark = pytest.mark.cluster

STRANGERS = {
    "another token": {"RAY_AUTH_TOKEN": "f" * 64},
    "no token": {"RAY_AUTH_TOKEN": ""},
    "no authentication": {"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": ""},
}
# Otherwise Ray asks for 20 s whether it may come in after all.
SOON = {"RAY_NUM_REDIS_GET_RETRIES": "1"}

# What the job server answers to a list of jobs, and to a job.
JOBS = """
import os, sys, urllib.error, urllib.request
token = os.environ["RAY_AUTH_TOKEN"]
said = {"Authorization": "Bearer " + token} if token else {}
said["Content-Type"] = "application/json"
for data in (None, b'{"entrypoint": "true"}'):
    try:
        print(urllib.request.urlopen(urllib.request.Request(sys.argv[1], data, said), timeout=20).status)
    except urllib.error.HTTPError as error:
        print(error.code)
"""
# Something that each of Ray's gRPC servers on a node would tell or do; the third, of objects, takes what others push.
CALLS = (
    "NodeInfoGcsService/GetAllNodeInfo", "NodeManagerService/GetNodeStats", "ObjectManagerService/Push",
    "ReporterService/GetTraceback",
)  # fmt: skip
# By port, what each call comes to, and what asking for a page does; the words are the server's own, but for COUNTS.
ASK = """
import http.client, json, sys, urllib.request
import grpc
address, calls, ports = sys.argv[1], sys.argv[2].split(), sys.argv[3].split()

def call(port, method):
    with grpc.insecure_channel(f"{address}:{port}") as channel:
        try:
            channel.unary_unary("/ray.rpc." + method)(b"", timeout=10)
        except grpc.RpcError as error:
            return error.code().name
    return "OK"

def get(port, page):
    try:
        with urllib.request.urlopen(f"http://{address}:{port}{page}", timeout=5) as answer:
            return "COUNTS" if answer.read().startswith(b"# HELP") else "OK"
    except (OSError, http.client.HTTPException) as error:
        return str(getattr(error, "code", type(error).__name__))

print(json.dumps({p: [*(call(p, m) for m in calls), get(p, "/metrics"), get(p, "/api/jobs/")] for p in ports}))
"""


def listening(host: Host) -> dict[int, set[str]]:
    """Addresses that a host's processes listen at, by port, as the kernel writes them: in hexadecimal, backwards."""
    found: dict[int, set[str]] = {}
    for kind in ("tcp", "tcp6"):
        for line in Path(f"/proc/{host.first}/net/{kind}").read_text().splitlines()[1:]:
            _, local, _, state, *_ = line.split()
            address, _, port = local.partition(":")
            if state == "0A":
                found.setdefault(int(port, 16), set()).add(address)
    return found


def test_the_job_server_refuses(hosts: Hosts) -> None:
    away, url = hosts.workers[0], f"{hosts.dashboard}/api/jobs/"
    came_to = {who: away.run(sys.executable, "-S", "-c", JOBS, url, **given) for who, given in STRANGERS.items()}
    assert {who: said.split() for who, (_, said) in came_to.items()} == {
        "another token": ["403"] * 2, "no token": ["401"] * 2, "no authentication": ["401"] * 2,
    }  # fmt: skip
    code, said = away.run(sys.executable, "-S", "-c", JOBS, url)
    assert said.split() == ["200"] * 2, "the token itself is let in"
    code, said = away.run(str(hosts.ray), "job", "submit", "--", "true", **STRANGERS["another token"])
    assert code != 0
    assert "Invalid authentication token" in said


def test_a_driver_is_refused_in_a_sentence(hosts: Hosts, labelled: dict[str, tuple[str, ...]]) -> None:
    cache = hosts.folder / "stranger"
    given = flags(**labelled, label_kind="membrane", variants=1, patch_px=128, cache=cache)
    jobs = [
        Job(hosts.workers[0], "augment", *given, submit=False, **stranger, **SOON) for stranger in STRANGERS.values()
    ]
    for job in jobs:
        ended = job.wait()
        assert ended.code == 2, ended.said
        # The first line tells what it will write.
        assert len(ended.said.splitlines()) == 2, ended.said
        assert f"the Ray cluster at {hosts.gcs} lets nobody in without its token" in ended.said.splitlines()[1]
    assert not list(cache.glob("*/*/c")), "nothing was made"


def test_what_listens_refuses_or_counts(hosts: Hosts) -> None:
    """Ray's gRPC servers listen on all interfaces and leave nobody a choice, so each is asked, and all that listens."""
    private = "".join(f"{int(part):02X}" for part in reversed(hosts.head.address.split(".")))
    assert listening(hosts.head)[DASHBOARD_PORT] == {private}
    refused, said_all = set(), {}
    for host in (hosts.head, hosts.workers[0]):
        asked = " ".join(map(str, listening(host)))
        code, said = host.run(sys.executable, "-c", ASK, host.address, " ".join(CALLS), asked, RAY_AUTH_TOKEN="")
        assert code == 0, said
        said_all[host.name] = by_port = json.loads(said.splitlines()[-1])
        refused |= {(host.number, CALLS[n]) for came_to in by_port.values()
                    for n, code in enumerate(came_to[: len(CALLS)]) if code == "UNAUTHENTICATED"}  # fmt: skip
    assert [
        (where, came_to) for by_port in said_all.values() for where, came_to in by_port.items() if "OK" in came_to
    ] == []
    of_all = {(number, call) for number in (0, hosts.workers[0].number) for call in CALLS[1:]}
    assert refused == of_all | {(0, CALLS[0])}, said_all
    assert said_all["h0"][str(GCS_PORT)][0] == "UNAUTHENTICATED"
