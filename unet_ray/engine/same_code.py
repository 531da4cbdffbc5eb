"""Whether all nodes of a cluster that is joined run what the driver runs: Python and Ray are compared by Ray itself."""

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from unet_ray.errors import ConfigError
from unet_ray.storage.fingerprint import digest

# What decides bytes, or reads what others have written. Their metadata are read, for importing PyTorch takes seconds.
LIBRARIES = ("numpy", "scipy", "numba", "torch", "zarr", "numcodecs")
# A node without a free process starts one; on a busy machine that takes a while.
PATIENCE_SECONDS = 60
# Work goes on meanwhile, but no actor is started.
JOIN_PATIENCE_SECONDS = 20
# A label that Ray gives every node.
NODE_ID = "ray.io/node-id"
SAME_CODE = "install the same on every node, or submit the checkout with `ray job submit --working-dir .`"


AGAIN = "if its modules were edited while this ran, run the same command again: it goes on"


@dataclass(frozen=True)
class Versions:
    """What a process runs.

    Attributes:
        code: digest of this package's modules: of two checkouts the version alone may be the same.
        libraries: version of each of `LIBRARIES` that is installed.
    """

    code: str
    libraries: Mapping[str, str]


# Why a node that was asked is not to be used, by node ID, which Ray gives once; empty where it is. A driver asks once.
_asked: dict[str, str] = {}


@cache
def own_code() -> str:
    """Digest of this package's modules in this process."""
    root = Path(__file__).parents[1]
    modules = sorted(root.rglob("*.py"))
    return digest(
        b"".join(b"%s\0%s\0" % (str(path.relative_to(root)).encode(), path.read_bytes()) for path in modules)
    )[:12]


def versions() -> Versions:
    """What this process runs."""
    return Versions(own_code(), {name: found for name in LIBRARIES if (found := version_of(name))})


def version_of(name: str) -> str | None:
    """Of an installed package, from its metadata; None where there are none, as of a checkout that is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def require_same_code() -> list[str]:
    """Ask every node for its versions, all at once.

    Returns:
        Warnings, one sentence per library that differs somewhere.

    Raises:
        ConfigError: a node has other code of this package, or none.
    """
    nodes = _alive()
    answers = _answers(nodes, PATIENCE_SECONDS)
    for node, answer in answers.items():
        if isinstance(answer, str):
            raise ConfigError(f"node {nodes[node]} cannot run this unet_ray ({answer}); {SAME_CODE}")
    found = {nodes[node]: answer for node, answer in answers.items() if isinstance(answer, Versions)}
    warnings = compared(versions(), found)
    _asked.update(dict.fromkeys(answers, ""))
    return warnings


def strangers() -> list[str]:
    """IDs of the nodes that joined since `require_same_code` and have other code of this package, or none.

    Each node is asked once, and a sentence on stderr names the address of one that is not to be used.
    """
    nodes = _alive()
    if len(nodes) > 1:  # alone, it is the driver's or has been asked at the start
        new = {node: address for node, address in nodes.items() if node not in _asked}
        for node, answer in _answers(new, JOIN_PATIENCE_SECONDS).items():
            reason = answer if isinstance(answer, str) else _other_code(answer.code)
            _asked[node] = reason
            if reason:
                print(f"cluster: node {new[node]} has joined and gets no work: {reason}; {SAME_CODE}", file=sys.stderr)
    return [node for node in nodes if _asked.get(node)]


def off_strangers() -> dict[str, Any]:
    """Options of a task or an actor that is about to be started, by which it starts on none of the `strangers`."""
    avoided = strangers()
    return {"label_selector": {NODE_ID: f"!in({','.join(avoided)})"}} if avoided else {}


def require_code(code: str) -> None:
    """For an actor, a task or a rank, which may be started on a node before that is asked.

    Raises:
        ConfigError: this process does not have the code with this digest.
    """
    if own_code() != code:
        address = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
        raise ConfigError(f"node {address} cannot run this: {_other_code(own_code(), code)}; {SAME_CODE}, or {AGAIN}")


def refusal(error: Exception) -> ConfigError | None:
    """What `require_code` said, where Ray tells of an actor that died of it; None for any other error."""
    said = re.search(rf"node \S+ cannot run this: .*?{re.escape(AGAIN)}", str(error))
    return ConfigError(said[0]) if said else None


def _other_code(there: str, here: str | None = None) -> str:
    here = here or own_code()
    return "" if there == here else f"its unet_ray has the digest {there}, the driver's {here}"


def _alive() -> dict[str, str]:
    """Addresses of the cluster's nodes, by node ID."""
    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    return {node["NodeID"]: node["NodeManagerAddress"] for node in nodes if node["Alive"]}


def _answers(nodes: Mapping[str, str], seconds: float) -> dict[str, Versions | str]:
    """What nodes run, or why they cannot, by node ID; those that leave, or stay silent for too long, are left out."""
    task = ray.remote(num_cpus=0, max_retries=0)(versions)
    asked: dict[Any, str] = {}
    for node in nodes:
        there = NodeAffinitySchedulingStrategy(node, soft=False)
        asked[task.options(scheduling_strategy=there).remote()] = node
    answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=seconds) if asked else ([], [])
    found: dict[str, Versions | str] = {}
    for reference in answered:
        try:
            found[asked[reference]] = ray.get(reference)
        except (ray.exceptions.RayTaskError, ray.exceptions.RuntimeEnvSetupError) as error:
            found[asked[reference]] = _last_line(error)
        except ray.exceptions.RayError:
            continue  # it left in the meantime
    return found


def compared(here: Versions, nodes: Mapping[str, Versions]) -> list[str]:
    """Warnings about libraries of nodes, by address, that are not the driver's.

    Raises:
        ConfigError: a node has other code of this package.

    >>> compared(Versions("1f", {"zarr": "3.1"}), {"10.0.0.2": Versions("1f", {"zarr": "3.0"})})
    ['zarr is 3.1 here but 3.0 on 10.0.0.2; results may differ in rounding']
    """
    others = sorted(address for address, there in nodes.items() if there.code != here.code)
    if others:
        raise ConfigError(
            f"unet_ray on {_named(others)} is not the driver's: its modules have the digest "
            f"{nodes[others[0]].code}, here {here.code}; {SAME_CODE}"
        )
    warnings = []
    for name in LIBRARIES:
        mine = here.libraries.get(name, "missing")
        by_version: dict[str, list[str]] = {}
        for address, there in sorted(nodes.items()):
            by_version.setdefault(there.libraries.get(name, "missing"), []).append(address)
        differing = [f"{theirs} on {_named(where)}" for theirs, where in by_version.items() if theirs != mine]
        if differing:
            warnings.append(f"{name} is {mine} here but {', '.join(differing)}; results may differ in rounding")
    return warnings


def _named(addresses: list[str], most: int = 3) -> str:
    more = len(addresses) - most
    return ", ".join(addresses[:most]) + (f" and {more} more" if more > 0 else "")


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1].strip()
