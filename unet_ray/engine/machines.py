"""The nodes of a cluster: those that are there and, where it grows by itself, those that may come."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
import yaml

# `ray up` leaves the cluster's config on the head, where submitted jobs run.
GROWTH = "~/ray_bootstrap_config.yaml"
# What Ray gives the head alone.
HEAD = "node:__internal_head__"


@dataclass(frozen=True)
class Machine:
    """What a node offers.

    Attributes:
        cpus: of Ray's.
        gpus: of Ray's.
        memory: bytes that Ray may give away; 0 where that is not known, and not compared: two of a kind differ in it.
        head: whether it is the cluster's head, which is there as long as the cluster.
    """

    cpus: int
    gpus: int
    memory: int = field(default=0, compare=False, repr=False)
    head: bool = field(default=False, compare=False, repr=False)

    def fits(self, cpus_each: int, gpus_each: float, memory_each: int = 0) -> int:
        """Workers that fit, of so many CPUs, GPUs and bytes each.

        >>> Machine(8, 1).fits(2, 0), Machine(8, 1).fits(2, 0.5), Machine(8, 1).fits(9, 1)
        (4, 2, 0)
        >>> Machine(8, 0, memory=5_000).fits(1, 0, 2_000), Machine(8, 0).fits(1, 0, 2_000)
        (2, 8)
        """
        fitting = self.cpus // cpus_each
        if gpus_each:
            fitting = min(fitting, int(self.gpus / gpus_each))
        if memory_each and self.memory:
            fitting = min(fitting, self.memory // memory_each)
        return fitting


def machines() -> list[Machine]:
    """Every node that is there or, in a cluster made by `ray up` and joined from its head, may come."""
    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    there = [_machine(node["Resources"]) for node in nodes if node["Alive"]]
    config = Path(GROWTH).expanduser()
    if not os.environ.get("RAY_ADDRESS") or not config.exists():
        return there
    return larger(there, yaml.safe_load(config.read_text()))


def roomiest_node(cpus_each: int, gpus_each: float = 0) -> tuple[str | None, int]:
    """Ray's id of the node that is there and holds most workers of so many CPUs and GPUs, and how many it holds.

    None and 0 where no node holds one: the cluster is yet to grow.
    """
    nodes = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    fitting = [_machine(node["Resources"]).fits(cpus_each, gpus_each) for node in nodes]
    most = max(fitting, default=0)
    return (nodes[fitting.index(most)]["NodeID"], most) if most else (None, 0)


def larger(there: list[Machine], config: dict[str, Any]) -> list[Machine]:
    """The nodes that a cluster has when it has grown as far as its config lets it.

    >>> gpu = {"resources": {"CPU": 8, "GPU": 1}, "max_workers": 2}
    >>> head = {"resources": {"CPU": 0}}
    >>> types = {"available_node_types": {"head": head, "gpu": gpu}, "head_node_type": "head", "max_workers": 9}
    >>> larger([Machine(0, 0), Machine(8, 1)], types)
    [Machine(cpus=0, gpus=0), Machine(cpus=8, gpus=1), Machine(cpus=8, gpus=1)]
    """
    found, most = list(there), int(config.get("max_workers", 2))  # 2 is what Ray takes
    for name, kind in config.get("available_node_types", {}).items():
        if name == config.get("head_node_type"):
            continue
        machine = _machine(kind.get("resources", {}))
        coming = min(int(kind.get("max_workers", most)), most) - there.count(machine)
        found += [machine] * max(0, coming)
    return found


def _machine(resources: dict[str, Any]) -> Machine:
    cpus, gpus, memory = (int(resources.get(name, 0)) for name in ("CPU", "GPU", "memory"))
    return Machine(cpus, gpus, memory, HEAD in resources)
