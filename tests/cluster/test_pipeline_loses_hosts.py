"""A pipeline over three hosts that loses a host in each of its stages: in the end the results of plain loops."""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hosts import ACTOR, Hosts, noticed, wait_for
from submitted import Job, flags
from torch import Tensor

from unet_ray.config.augment import AugmentConfig
from unet_ray.config.network import NetworkConfig
from unet_ray.config.parse import parse
from unet_ray.config.pipeline import PipelineConfig
from unet_ray.config.train import TrainSettings
from unet_ray.engine.patch_loader import PatchLoader
from unet_ray.engine.train_worker import batch_of
from unet_ray.network.ema import WeightAverage
from unet_ray.network.model_file import ModelMetadata, decode
from unet_ray.network.schedule import Schedule
from unet_ray.network.step import make_optimizer, train_step
from unet_ray.network.unet import new_network
from unet_ray.storage.patch_cache import PatchCache

pytestmark = pytest.mark.cluster

SIDE, PATCHES, SHARDS, STEPS, BLOCKS = 360, 640, 40, 20, 96
PlainSteps = tuple[list[float], list[dict[str, Tensor]]]


class Pipeline:
    """A pipeline under way on a labelled stack, and what it has finished so far."""

    def __init__(self, hosts: Hosts, images: str, labels: str) -> None:
        self.output, self.images, self.labels = hosts.folder / "pipeline", images, labels
        self.flags = flags(**{
            "output": self.output, "images": images, "labels": labels, "augment.label_kind": "membrane",
            "augment.variants": 160, "augment.patch_px": 128, "augment.validation_sections": ("1",),
            "augment.exclude_sections": ("4",), "train.base_channels": 4, "train.depth": 3, "train.epochs": 1,
            "train.batch_size": 32, "train.precision": "float32", "train_workers": 2, "checkpoint_every_steps": 4,
            # Adam would make much of the ranks' other order of sums.
            "train.optimizer": "sgd", "train.learning_rate": 0.01,
            "segment.tile_px": 12, "segment.precision": "float32", "segment.tta": "dihedral",
        })  # fmt: skip
        self.config = parse(PipelineConfig, self.flags, "pipeline")
        self.job = Job(hosts.head, "pipeline", *self.flags, submit=False)

    def patches(self) -> set[Path]:
        return set((self.output / "cache.zarr" / "train" / "image" / "c").glob("*/0/0/0"))

    def steps(self) -> dict[int, float]:
        """Loss of each step."""
        try:
            rows = [json.loads(line) for line in (self.output / "run" / "metrics.jsonl").read_text().splitlines()]
        except FileNotFoundError:
            return {}
        return {row["step"]: row["loss"] for row in rows if row["event"] == "step"}

    def blocks(self) -> set[Path]:
        return set((self.output / "segmentation.zarr" / "0" / "c").glob("*/*/[0-9]"))

    def wait(self, what: Callable[[], Any]) -> None:
        wait_for(lambda: self.job.running() and what(), 240, every=0.02)


def times(files: set[Path]) -> dict[Path, int]:
    return {file: file.stat().st_mtime_ns for file in files}


def test_it_ends_as_if_nothing_had_happened(
    hosts: Hosts,
    labelled_at: Callable[..., dict[str, tuple[str, ...]]],
    patches_by_plain_loop: Callable[..., PatchCache],
    by_plain_loop: Callable[..., Any],
    shards: Callable[..., dict[str, Any]],
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    stack = labelled_at(hosts.folder / "stack", SIDE)
    pipeline = Pipeline(hosts, stack["images"][0], stack["labels"][0])
    lost = hosts.workers[-1]
    pipeline.wait(lambda: lost.processes(ACTOR) and len(pipeline.patches()) >= 6)
    finished = times(pipeline.patches())
    assert len(finished) < SHARDS, "augmentation was to be caught in the middle"
    lost.power_off()
    noticed(hosts, lost, record_property)
    hosts.restore(3)

    pipeline.wait(lambda: len(pipeline.steps()) >= 8)
    assert len(pipeline.steps()) < STEPS, "training was to be caught in the middle"
    # What the job cannot do without lies where the job itself is.
    assert hosts.head.processes("ray::Board")
    lost = next(host for host in hosts.workers if host.processes("ray::RayTrainWorker"))
    lost.power_off()
    noticed(hosts, lost, record_property)
    hosts.restore(3)

    # Of segmentation one loses its cable for a while, one its power, and another one joins.
    cut, lost = hosts.workers
    pipeline.wait(lambda: cut.processes(ACTOR) and lost.processes(ACTOR) and len(pipeline.blocks()) >= 12)
    cut.unplug()
    time.sleep(2)
    assert cut.address in hosts.alive()
    cut.plug()
    finished |= times(pipeline.blocks())
    lost.power_off()
    joined = hosts.add()
    hosts.start_ray([joined])
    pipeline.wait(lambda: joined.processes(ACTOR))
    assert len(pipeline.blocks()) < BLOCKS, "it was to get work in the middle"

    ended = pipeline.job.wait(400)
    assert ended.code == 0, ended.said
    summary = ended.summary
    stages = {name: summary[name] for name in ("augment", "train", "segment", "evaluate")}
    assert {name: stage["status"] for name, stage in stages.items()} == dict.fromkeys(stages, "complete"), ended.said
    assert (stages["augment"]["patches_written"], stages["train"]["steps"]) == (PATCHES, STEPS)
    assert stages["segment"]["blocks_written"] == BLOCKS
    assert stages["evaluate"]["holdout"]["status"] == "held out"
    assert (pipeline.output / "report" / "sections.png").exists()
    assert times(set(finished)) == finished, "what is done is never done again"

    def digests(folder: Path) -> dict[str, str]:
        return {key: shard.digest for key, shard in shards(folder).items()}

    asked = AugmentConfig(
        **dict(pipeline.config.augment),
        images=(pipeline.images,),
        labels=(pipeline.labels,),
        cache=f"{tmp_path}/cache.zarr",
    )
    patches_by_plain_loop(asked)
    assert digests(pipeline.output / "cache.zarr") == digests(tmp_path / "cache.zarr")
    found = decode((pipeline.output / "run" / "model.safetensors").read_bytes())
    losses, judged = by_plain_steps(f"{pipeline.output}/cache.zarr", found)
    assert list(pipeline.steps()) == list(range(STEPS))
    assert list(pipeline.steps().values()) == pytest.approx(losses, rel=1e-4)
    expected = judged[found[2].training["epoch"]]
    assert found[1].keys() == expected.keys()
    for name, values in expected.items():
        torch.testing.assert_close(found[1][name], values, rtol=1e-4, atol=1e-5, msg=name)
    volume, model = pipeline.images, f"{pipeline.output}/run/model.safetensors"
    by_plain_loop(volume, model, tmp_path / "plain.zarr", 12, 0.5, tta="dihedral")
    plain = digests(tmp_path / "plain.zarr")
    assert sum(key.startswith("0/c/") for key in plain) == BLOCKS
    made = digests(pipeline.output / "segmentation.zarr")
    assert {key: made[key] for key in plain} == plain


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
