"""Whether all nodes of a cluster that is joined run what the driver runs: Python and Ray are compared by Ray itself."""

from collections.abc import Mapping
from dataclasses import dataclass
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
SAME_CODE = "install the same on every node, or submit the checkout with `ray job submit --working-dir .`"


@dataclass(frozen=True)
class Versions:
    """What a process runs.

    Attributes:
        code: digest of this package's modules: of two checkouts the version alone may be the same.
        libraries: version of each of `LIBRARIES` that is installed.
    """

    code: str
    libraries: Mapping[str, str]


def versions() -> Versions:
    """What this process runs."""
    root = Path(__file__).parents[1]
    modules = sorted(root.rglob("*.py"))
    code = b"".join(b"%s\0%s\0" % (str(path.relative_to(root)).encode(), path.read_bytes()) for path in modules)
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return Versions(digest(code)[:12], found)


def require_same_code() -> list[str]:
    """Ask every node for its versions, all at once.

    Returns:
        Warnings, one sentence per library that differs somewhere.

    Raises:
        ConfigError: a node has other code of this package, or none.
    """
    here = versions()
    task = ray.remote(num_cpus=0, max_retries=0)(versions)
    asked: dict[Any, str] = {}
    for node in ray.nodes():  # type: ignore[no-untyped-call]
        if node["Alive"]:
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            asked[task.options(scheduling_strategy=there).remote()] = node["NodeManagerAddress"]
    answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=PATIENCE_SECONDS)
    found = {}
    for reference in answered:
        address = asked[reference]
        try:
            found[address] = ray.get(reference)
        except (ray.exceptions.RayTaskError, ray.exceptions.RuntimeEnvSetupError) as error:
            raise ConfigError(f"node {address} cannot run this unet_ray ({_last_line(error)}); {SAME_CODE}") from None
        except ray.exceptions.RayError:
            continue  # it left in the meantime
    return compared(here, found)


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
