"""The nodes of a cluster: those that are there and, where it grows by itself, those that may come."""

import os
from pathlib import Path
from typing import Any, NamedTuple

import ray
import yaml

# `ray up` leaves the cluster's config on the head, where submitted jobs run.
GROWTH = "~/ray_bootstrap_config.yaml"


class Machine(NamedTuple):
    """What a node offers."""

    cpus: int
    gpus: int

    def fits(self, cpus_each: int, gpus_each: float) -> int:
        """Workers that fit, of so many CPUs and GPUs each.

        >>> Machine(8, 1).fits(2, 0), Machine(8, 1).fits(2, 0.5), Machine(8, 1).fits(9, 1)
        (4, 2, 0)
        """
        by_cpu = self.cpus // cpus_each
        return by_cpu if not gpus_each else int(min(by_cpu, self.gpus / gpus_each))


def machines() -> list[Machine]:
    """Every node that is there or, in a cluster made by `ray up` and joined from its head, may come."""
    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    there = [_machine(node["Resources"]) for node in nodes if node["Alive"]]
    config = Path(GROWTH).expanduser()
    if not os.environ.get("RAY_ADDRESS") or not config.exists():
        return there
    return larger(there, yaml.safe_load(config.read_text()))


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
    return Machine(int(resources.get("CPU", 0)), int(resources.get("GPU", 0)))
