"""Hosts that lose their power or their cable in the middle of a job, and hosts that join: the same bytes in the end."""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import zarr
from hosts import Host, Hosts, hosts_with_ray, wait_for
from submitted import Job, flags
from torch import Tensor

from unet_ray.config.network import NetworkConfig
from unet_ray.config.train import TrainSettings
from unet_ray.engine.patch_loader import PatchLoader
from unet_ray.engine.train_worker import batch_of
from unet_ray.geometry.box import Box
from unet_ray.network.ema import WeightAverage
from unet_ray.network.model_file import ModelMetadata, decode
from unet_ray.network.schedule import Schedule
from unet_ray.network.step import make_optimizer, train_step
from unet_ray.network.unet import new_network
from unet_ray.numerics.phantom import phantom_block
from unet_ray.storage.patch_cache import PatchCache

pytestmark = pytest.mark.cluster

SHAPE, BLOCKS = (12, 200, 230), 108
ACTOR = "ray::MapWorker"
PlainSteps = tuple[list[float], list[dict[str, Tensor]]]


class Undisturbed(NamedTuple):
    """Where volume and model are, and the digest of every shard that a plain loop makes of them without Ray."""

    folder: Path
    digests: dict[str, str]


class Segmentation:
    """A segmentation under way, long enough to lose a host in it."""

    def __init__(self, host: Host, inputs: Undisturbed, out: str, submit: bool = False, **more: Any) -> None:
        self.output = inputs.folder / out
        given = flags(
            volume=inputs.folder / "volume.zarr", model=inputs.folder / "model", output=self.output, tile_px=32,
            precision="float32", threads=1, **more,
        )  # fmt: skip
        self.job = Job(host, "segment", *given, submit=submit)

    def done(self) -> set[Path]:
        return set((self.output / "0" / "c").glob("*/*/[0-9]"))

    def wait_until_working(self, *busy: Host, blocks: int = 12) -> None:
        def working() -> bool:
            at_work = all(host.processes(ACTOR) for host in busy)
            return self.job.running() and at_work and len(self.done()) >= blocks

        wait_for(working, 120, every=0.02)
        assert len(self.done()) < BLOCKS, "it was to be caught in the middle"


@pytest.fixture(scope="session")
def undisturbed(
    session_hosts: Hosts, write_model: Callable[..., str], by_plain_loop: Callable[..., Any], shards: Callable[..., Any]
) -> Undisturbed:
    folder = session_hosts.folder
    volume = f"{folder}/volume.zarr"
    zarr.create_array(volume, data=phantom_block(Box.of_shape(SHAPE), 2).image, chunks=(1, *SHAPE[1:]))
    model = write_model(folder / "model", "default", base_channels=8)
    by_plain_loop(volume, model, folder / "plain", 32, 0.5)
    found = {key: shard.digest for key, shard in shards(folder / "plain").items()}
    assert sum(key.startswith("0/c/") for key in found) == BLOCKS
    return Undisturbed(folder, found)


@pytest.fixture
def ends_undisturbed(undisturbed: Undisturbed, shards: Callable[..., Any]) -> Callable[[Segmentation], dict[str, Any]]:
    """Asserts that a segmentation ends complete, with the bytes of the plain loop; its summary."""

    def check(segmentation: Segmentation) -> dict[str, Any]:
        ended = segmentation.job.wait()
        assert ended.code == 0, ended.said
        found = ended.summary
        assert (found["status"], found["blocks_written"] + found["blocks_skipped"]) == ("complete", BLOCKS)
        written = shards(segmentation.output)
        assert {key: written[key].digest for key in undisturbed.digests} == undisturbed.digests
        return found

    return check


def noticed(hosts: Hosts, host: Host, record: Callable[[str, object], None]) -> None:
    """Wait until Ray takes a host for dead, and keep how long that took."""
    began = time.time()
    wait_for(lambda: host.address not in hosts.alive(), 60)
    record("seconds until Ray noticed", round(time.time() - began, 1))


def test_segmentation_survives_a_power_cut(
    hosts: Hosts,
    undisturbed: Undisturbed,
    ends_undisturbed: Callable[[Segmentation], Any],
    record_property: Callable[[str, object], None],
) -> None:
    """Submitted from one host, over three, of which the third loses its power."""
    lost = hosts.workers[-1]
    segmentation = Segmentation(hosts.workers[0], undisturbed, "cut", submit=True)
    segmentation.wait_until_working(lost)
    before = {path: path.stat().st_mtime_ns for path in segmentation.done()}
    lost.power_off()
    noticed(hosts, lost, record_property)
    ends_undisturbed(segmentation)
    redone = [path for path, written in before.items() if path.stat().st_mtime_ns != written]
    assert not redone, "what is done is never done again"


def test_augmentation_survives_a_power_cut(
    hosts: Hosts,
    labelled: dict[str, tuple[str, ...]],
    shards: Callable[..., Any],
    record_property: Callable[[str, object], None],
) -> None:
    """In half a minute, and as long again for the undisturbed run that it is compared with."""
    lost = hosts.workers[-1]
    settings = labelled | {
        "label_kind": "membrane", "variants": 100, "patch_px": 128, "patches_per_shard": 4,
        "validation_sections": ("2",),
    }  # fmt: skip
    cache = hosts.folder / "augment-cut"

    def done() -> list[Path]:
        return list((cache / "train" / "image" / "c").glob("*/0/0/0"))

    job = Job(hosts.head, "augment", *flags(**settings, cache=cache), submit=False)
    wait_for(lambda: job.running() and lost.processes(ACTOR) and len(done()) >= 10, 120, every=0.02)
    before = {path: path.stat().st_mtime_ns for path in done()}
    assert len(before) < 100, "it was to be caught in the middle"
    lost.power_off()
    noticed(hosts, lost, record_property)
    ended = job.wait()
    assert ended.code == 0, ended.said
    assert (ended.summary["status"], ended.summary["patches_written"]) == ("complete", 500)
    assert not [path for path, written in before.items() if path.stat().st_mtime_ns != written]
    ended = Job(hosts.head, "augment", *flags(**settings, cache=hosts.folder / "augment"), submit=False).wait()
    assert ended.code == 0, ended.said
    expected = {key: shard.digest for key, shard in shards(hosts.folder / "augment").items()}
    assert {key: shard.digest for key, shard in shards(cache).items()} == expected


def test_training_survives_a_power_cut(
    hosts: Hosts, labelled: dict[str, tuple[str, ...]], record_property: Callable[[str, object], None]
) -> None:
    """Two ranks on two of three hosts, of which one loses its power; what they find, one process finds without Ray."""
    cache = f"{hosts.folder}/train-cache"
    made = Job(
        hosts.head, "augment",
        *flags(**labelled, label_kind="membrane", variants=8, patch_px=128, validation_sections=("2",), cache=cache),
        submit=False,
    )  # fmt: skip
    assert made.wait().code == 0, made.log.read_text()
    settings = {
        "cache": cache, "workers": 2, "threads": 1, "base_channels": 4, "depth": 3, "epochs": 2, "batch_size": 4,
        "precision": "float32", "checkpoint_every_steps": 4,
        # Adam would make much of the ranks' other order of sums.
        "optimizer": "sgd", "learning_rate": 0.01,
    }  # fmt: skip
    run = hosts.folder / "train-cut"
    job = Job(hosts.head, "train", *flags(**settings, run=run), submit=False)

    def steps() -> dict[int, float]:
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        return {row["step"]: row["loss"] for row in rows if row["event"] == "step"}

    wait_for(lambda: job.running() and (run / "metrics.jsonl").exists() and len(steps()) >= 8, 120)
    assert len(steps()) < 20, "it was to be caught in the middle"
    # What the job cannot do without lies where the job itself is.
    assert hosts.head.processes("ray::Board")
    lost = next(host for host in hosts.workers if host.processes("ray::RayTrainWorker"))
    lost.power_off()
    noticed(hosts, lost, record_property)
    ended = job.wait(240)
    assert ended.code == 0, ended.said
    assert ended.summary["steps"] == 20
    found = decode((run / "model.safetensors").read_bytes())
    losses, judged = by_plain_steps(cache, found)
    assert list(steps()) == list(range(20))
    assert list(steps().values()) == pytest.approx(losses, rel=1e-4)
    expected = judged[found[2].training["epoch"]]
    assert found[1].keys() == expected.keys()
    for name, values in expected.items():
        torch.testing.assert_close(found[1][name], values, rtol=1e-4, atol=1e-5, msg=name)


def by_plain_steps(cache: str, model: tuple[NetworkConfig, Mapping[str, Tensor], ModelMetadata]) -> PlainSteps:
    """Losses of the steps that made a model, and the weights that are judged after each epoch: one process, no Ray."""
    settings = TrainSettings.model_validate(model[2].training["settings"])
    loader = PatchLoader(
        PatchCache(cache), batch_size=settings.batch_size, seed=settings.seed, rank=0, world_size=1,
        random_dihedral=settings.random_dihedral,
    )  # fmt: skip
    network = new_network(model[0], settings.seed)
    optimizer = make_optimizer(network, settings.optimizer, settings.learning_rate, momentum=settings.momentum)
    schedule = Schedule(
        settings.schedule, settings.learning_rate, total_steps=settings.epochs * loader.steps, warm_up=settings.warm_up
    )
    average, losses, judged = WeightAverage(network, settings.ema_decay), list[float](), list[dict[str, Tensor]]()
    for epoch in range(settings.epochs):
        for loaded in loader.epoch(epoch):
            schedule.apply(optimizer, len(losses))
            batch = batch_of(loaded, settings.weighted)
            losses.append(train_step(network, batch, optimizer, step=len(losses), seed=settings.seed).loss)
            average.update()
        with average.applied():
            judged.append({name: values.clone() for name, values in network.state_dict().items()})
    return losses, judged


@pytest.mark.slow
def test_a_host_that_joins_gets_work(
    hosts: Hosts, labelled: dict[str, tuple[str, ...]], undisturbed: Undisturbed
) -> None:
    """In a minute or two."""
    folder = hosts.folder / "joined"
    segmentation = {
        "volume": undisturbed.folder / "volume.zarr", "model": undisturbed.folder / "model", "tile_px": 32,
        "precision": "float32", "threads": 1, "tta": "dihedral", "output": folder / "out.zarr",
    }  # fmt: skip
    augmentation = labelled | {
        "label_kind": "membrane", "variants": 300, "patch_px": 256, "patches_per_shard": 4,
        "validation_sections": ("2",), "cache": folder / "cache",
    }  # fmt: skip
    # Of the work itself: what follows it, as the pyramid, has actors of its own.
    for name, settings, records, total in (
        ("segment", segmentation, "out.zarr/0/c/*/*/[0-9]", BLOCKS),
        ("augment", augmentation, "cache/train/image/c/*/0/0/0", 375),
    ):
        job = Job(hosts.head, name, *flags(**settings), submit=False)
        everywhere = (hosts.head, *hosts.workers)
        wait_for(lambda job=job, on=everywhere: job.running() and all(host.processes(ACTOR) for host in on), 60)
        joined = hosts.add()
        hosts.start_ray([joined])
        wait_for(lambda job=job, joined=joined: job.running() and joined.processes(ACTOR), 60, every=0.02)
        assert len(list(folder.glob(records))) < total
        ended = job.wait()
        assert ended.code == 0, ended.said
        assert ended.summary["status"] == "complete"
        joined.power_off()


@pytest.mark.slow
@pytest.mark.parametrize("long", [False, True], ids=["a few seconds", "until the host is taken for dead"])
def test_segmentation_survives_a_pulled_cable(
    hosts: Hosts,
    undisturbed: Undisturbed,
    ends_undisturbed: Callable[[Segmentation], Any],
    record_property: Callable[[str, object], None],
    long: bool,
) -> None:
    """In half a minute each. The disk does not hang on the cable, so a host taken for dead may go on writing."""
    cut = hosts.workers[-1]
    segmentation = Segmentation(hosts.head, undisturbed, f"cable-{long}")
    segmentation.wait_until_working(cut)
    cut.unplug()
    if long:
        noticed(hosts, cut, record_property)
    else:
        time.sleep(3)
        assert cut.address in hosts.alive()
    cut.plug()
    ends_undisturbed(segmentation)
    if long:
        cut.power_off()  # Ray has given up the host, which has given up Ray


@pytest.mark.slow
def test_the_loss_of_the_head_ends_the_job_and_another_goes_on(
    undisturbed: Undisturbed,
    ends_undisturbed: Callable[[Segmentation], Any],
    record_property: Callable[[str, object], None],
) -> None:
    """In about a minute: two clusters are started."""
    with hosts_with_ray(2) as hosts:
        away = hosts.workers[0]
        submitted = Segmentation(away, undisturbed, "headless", submit=True, workers=1)
        own = Segmentation(away, undisturbed, "headless-too", workers=1)
        submitted.wait_until_working()
        own.wait_until_working()
        hosts.head.power_off()
        began = time.time()
        ended = [submitted.job.wait(120), own.job.wait(120)]
        record_property("seconds until the commands ended", round(time.time() - began, 1))
        record_property("what they said", [one.said.splitlines()[-3:] for one in ended])
        assert all(one.code != 0 for one in ended), ended
        assert "the Ray cluster" in ended[1].said
        there = len(submitted.done())
        assert 12 <= there < BLOCKS
    with hosts_with_ray(1) as hosts:
        again = Segmentation(hosts.head, undisturbed, "headless")
        assert ends_undisturbed(again)["blocks_skipped"] == there
