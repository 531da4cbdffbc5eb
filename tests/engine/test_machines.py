"""Workers are counted node by node; a cluster that grows counts with the nodes that may come."""

from pathlib import Path

import pytest
import yaml

from unet_ray.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]


def nodes(monkeypatch: pytest.MonkeyPatch, *given: tuple[int, ...]) -> None:
    from unet_ray.engine import cluster
    from unet_ray.engine.machines import Machine

    monkeypatch.setattr(cluster, "machines", lambda: [Machine(*node) for node in given])


def test_workers_must_fit_on_nodes_not_on_their_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    from unet_ray.engine.cluster import pool_size

    nodes(monkeypatch, (1, 0), (1, 0), (1, 0), (5, 0))
    assert pool_size(None, cpus_each=2) == 2
    assert pool_size(1, cpus_each=2) == 1
    with pytest.raises(ConfigError, match=r"6 CPU and 0 GPU on one node, .* 5 CPU and 0 GPU; .*fewer --threads"):
        pool_size(None, cpus_each=6)
    with pytest.raises(ConfigError, match="use --no-use-gpu or a cluster with GPUs"):
        pool_size(None, cpus_each=1, gpus_each=1)


def test_a_dead_end_is_told_by_whoever_knows_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    from unet_ray.engine.cluster import pool_size

    nodes(monkeypatch, (2, 0))
    with pytest.raises(ConfigError, match=r"has 2 CPU and 0 GPU; start anew$"):
        pool_size(None, cpus_each=4, remedy="start anew")
    with pytest.raises(ConfigError, match="use --no-use-gpu"):
        pool_size(None, cpus_each=1, gpus_each=1, remedy="start anew")


def test_memory_counts_and_never_waits_for_ever(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from unet_ray.engine.cluster import memory_to_ask_for, pool_size

    gb = 10**9
    # The head has no CPU for work, so its memory helps nobody.
    nodes(monkeypatch, (0, 0, 64 * gb), (8, 0, 5 * gb), (4, 0, 3 * gb))
    assert memory_to_ask_for(2 * gb, cpus_each=1) == 2 * gb
    assert pool_size(None, cpus_each=1, memory_each=2 * gb) == 2 + 1
    assert capsys.readouterr().err == ""
    assert memory_to_ask_for(6 * gb, cpus_each=1) == 5 * gb
    assert pool_size(None, cpus_each=1, memory_each=5 * gb) == 1
    assert "takes about 6.00 GB of memory, but the cluster's largest node has 5.00 GB" in capsys.readouterr().err
    # Of a node that may come nobody knows.
    nodes(monkeypatch, (8, 0, 5 * gb), (8, 0))
    assert memory_to_ask_for(6 * gb, cpus_each=1) == 6 * gb
    assert pool_size(None, cpus_each=1, memory_each=6 * gb) == 8


@pytest.mark.parametrize(
    ("given", "workers", "gpus_each", "threads"),
    [
        ([(4, 0), (2, 0)], 1, 0, 4),
        ([(4, 0), (2, 0)], 2, 0, 2),
        ([(4, 0), (2, 0)], 4, 0, 1),
        ([(2, 0), (2, 0)], 9, 0, 1),
        ([(16, 0), (8, 1)], 1, 1, 8),
    ],
)
def test_threads_are_what_all_workers_find_room_for(
    monkeypatch: pytest.MonkeyPatch, given: list[tuple[int, int]], workers: int, gpus_each: float, threads: int
) -> None:
    from unet_ray.engine.cluster import threads_each

    nodes(monkeypatch, *given)
    assert threads_each(workers, gpus_each) == threads


@pytest.mark.parametrize(
    ("given", "asked", "workers", "each", "together"),
    [
        ([(16, 1)], None, None, 0.25, 4),
        ([(8, 0), (8, 1)], None, None, 0.5, 2),
        ([(64, 1)], None, None, 0.25, 4),
        ([(2, 1)], None, None, 1, 1),
        # On the second node four actors on one GPU would leave the other three idle.
        ([(16, 1), (8, 4)], None, None, 1, 5),
        # So would two workers in all that shared the first of two GPUs.
        ([(16, 2)], None, 2, 1, 2),
        ([(16, 2)], None, 3, 0.5, 4),
        ([(8, 2)], 7, None, 0.1428, 14),
        ([(8, 0)], None, 2, 1, 0),
    ],
)
def test_a_gpu_is_shared_by_as_many_actors_as_have_cpus_beside_it(
    monkeypatch: pytest.MonkeyPatch, given: list[tuple[int, int]], asked: int | None, workers: int | None,
    each: float, together: int,
) -> None:  # fmt: skip
    from unet_ray.engine.cluster import gpu_share
    from unet_ray.engine.machines import Machine

    nodes(monkeypatch, *given)
    assert gpu_share(asked, 4, workers) == (each, together)
    assert sum(Machine(64, gpus).fits(1, each) for _, gpus in given) == together


def test_workers_that_begin_together_never_wait_for_memory(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from unet_ray.engine.cluster import memory_together

    gb = 10**9
    nodes(monkeypatch, (4, 0, 5 * gb), (4, 0, 3 * gb))
    assert memory_together(3, 2 * gb, cpus_each=1) == 2 * gb
    assert capsys.readouterr().err == ""
    assert memory_together(4, 2 * gb, cpus_each=1) == 0
    assert "4 workers take about 2.00 GB of memory each, more than the nodes have for Ray" in capsys.readouterr().err
    assert memory_together(8, 0, cpus_each=1) == 0  # on GPUs nothing is asked for
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("given", "threads"),
    [
        ([(16, 0, 20)], 1),  # GB
        ([(16, 0, 19)], 2),
        ([(16, 0, 5)], 4),
        ([(4, 0, 20), (16, 0, 10)], 2),
        ([(0, 0, 1), (2, 0, 3)], 1),  # the head has no CPU for work
        ([(3, 0, 2)], 3),
        ([(16, 0, 1)], 1),  # not even one: `memory_to_ask_for` says so
        ([(16, 0)], 1),  # nobody knows
    ],
)
def test_a_worker_has_the_fewest_threads_with_which_memory_leaves_no_cpu_idle(
    monkeypatch: pytest.MonkeyPatch, given: list[tuple[int, ...]], threads: int
) -> None:
    from unet_ray.engine.cluster import fewest_threads

    gb = 10**9
    nodes(monkeypatch, *((node[0], node[1], *(size * gb for size in node[2:])) for node in given))
    assert fewest_threads(1_250_000_000, most=4) == threads


def test_our_cluster_grows_from_nothing() -> None:
    from unet_ray.engine.machines import Machine, larger

    grown = larger([Machine(0, 0)], yaml.safe_load((ROOT / "cluster.yaml").read_text()))
    assert grown == [Machine(0, 0), *[Machine(16, 0)] * 16, *[Machine(8, 1)] * 4]


def test_the_config_is_read_on_the_head_of_a_cluster_that_is_joined(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from unet_ray.engine.machines import Machine, machines

    monkeypatch.setenv("HOME", str(tmp_path))
    kind = {"worker": {"resources": {"CPU": 2, "GPU": 1}, "max_workers": 1}}
    (tmp_path / "ray_bootstrap_config.yaml").write_text(yaml.safe_dump({"available_node_types": kind}))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert machines() == [Machine(4, 0)]
    monkeypatch.setenv("RAY_ADDRESS", "somewhere:6379")
    assert machines() == [Machine(4, 0), Machine(2, 1)]


@pytest.mark.parametrize(
    ("workers", "gpus_each", "kept"),
    [
        (1, 0, 2),  # the head has no CPU for work, and is kept all the same
        (4, 0, 2),
        (5, 0, 3),
        (12, 0, 4),
        (99, 0, 4),
        (1, 0.5, 2),  # the nodes without GPUs need not be there
        (3, 0.5, 3),
    ],
)
def test_paid_nodes_are_those_that_the_workers_keep(
    monkeypatch: pytest.MonkeyPatch, workers: int, gpus_each: float, kept: int
) -> None:
    from unet_ray.engine import cluster
    from unet_ray.engine.machines import Machine

    there = [Machine(4, 0), Machine(0, 0, head=True), *[Machine(4, 1)] * 2]
    monkeypatch.setattr(cluster, "machines", lambda: there)
    assert cluster.nodes_for(workers, 1, gpus_each) == kept
    # A head that works is the first to get workers, for it is kept anyway.
    monkeypatch.setattr(cluster, "machines", lambda: [Machine(4, 1), Machine(4, 1, head=True)])
    assert cluster.nodes_for(workers, 1, gpus_each) == (1 if workers * (1 + 2 * gpus_each) <= 4 else 2)


def test_a_head_that_works_is_counted_once(ray_cluster: None) -> None:
    """Ray's own word for it, on a cluster of one node."""
    from unet_ray.engine.cluster import nodes_for
    from unet_ray.engine.machines import machines

    assert [node.head for node in machines()] == [True]
    assert nodes_for(4, 1) == nodes_for(1, 1) == nodes_for(1, 99) == 1


def test_the_roomiest_node_is_one_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    from unet_ray.engine.machines import roomiest_node

    given = [("head", True, 0, 0), ("gone", False, 64, 8), ("small", True, 4, 0), ("large", True, 9, 1)]
    listed = [
        {"NodeID": name, "Alive": alive, "Resources": {"CPU": float(cpus), "GPU": float(gpus)}}
        for name, alive, cpus, gpus in given
    ]
    monkeypatch.setattr(ray, "nodes", lambda: listed)
    assert roomiest_node(4) == ("large", 2)
    assert roomiest_node(4, gpus_each=1) == ("large", 1)
    assert roomiest_node(10) == (None, 0)
