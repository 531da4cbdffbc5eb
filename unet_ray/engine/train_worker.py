"""What one training worker does: steps, validation, checkpoints; rank 0 also writes the run directory."""

import io
import json
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from torch import Tensor

from unet_ray.config.network import NetworkConfig, layers
from unet_ray.config.train import TrainSettings
from unet_ray.engine.model_source import read_model_file
from unet_ray.engine.patch_loader import PatchLoader
from unet_ray.engine.validation import validate
from unet_ray.errors import UnetRayError
from unet_ray.geometry.receptive_field import halo_px, margin_px
from unet_ray.network.batch_norm import set_reduce
from unet_ray.network.model_file import ModelMetadata, Normalisation, TrainingSection, decode, encode
from unet_ray.network.schedule import Schedule
from unet_ray.network.step import Batch, Precision, make_optimizer, train_step
from unet_ray.network.unet import UNet, new_network
from unet_ray.storage.objects import Objects, open_objects
from unet_ray.storage.patch_cache import Patch, PatchCache

MODEL = "model.safetensors"
METRICS = "metrics.jsonl"
STATE = "state.pt"
POST_EVERY_SECONDS = 0.5


@dataclass(frozen=True)
class TrainPlan:
    """All that a training worker needs to know."""

    cache: str
    run: str
    settings: TrainSettings
    network: NetworkConfig
    precision: Precision
    threads: int
    use_gpu: bool
    initial_model: str | None


@dataclass
class Progressed:
    """How far a training is; the whole of it is in every checkpoint."""

    epoch: int = 0
    step: int = 0
    best_loss: float = float("inf")
    best_epoch: int = -1


class RunWriter:
    """The run directory as rank 0 writes it: rows are put at the end of each epoch, before its checkpoint."""

    def __init__(self, run: Objects, resumed_at: int) -> None:
        from tensorboardX import SummaryWriter

        self._run = run
        kept = (json.loads(line) for line in (run.get(METRICS) or b"").splitlines())
        # Steps after the checkpoint are taken again, and so are their rows.
        self._rows = [row for row in kept if row["step"] < resumed_at or row.get("closes") == resumed_at]
        self._folder = tempfile.TemporaryDirectory(prefix="unet_ray-events-")
        self._events = SummaryWriter(self._folder.name, purge_step=resumed_at or None)

    def add(self, row: dict[str, Any]) -> None:
        """One row per step and per validation."""
        self._rows.append(row)
        for name in ("loss", "learning_rate", "pixel_mismatch"):
            if name in row:
                self._events.add_scalar(f"{row['event']}/{name}", row[name], row["step"])

    def flush(self) -> None:
        """Put metrics.jsonl and the TensorBoard events."""
        self._events.flush()
        self._run.put(METRICS, "".join(json.dumps(row) + "\n" for row in self._rows).encode())
        for path in Path(self._folder.name).iterdir():
            self._run.put(f"tensorboard/{path.name}", path.read_bytes())

    def close(self) -> None:
        """Remove the temporary folder."""
        self._events.close()
        self._folder.cleanup()


def train_worker(given: dict[str, Any]) -> None:
    """One rank's training loop, as Ray Train calls it; continues from the newest registered checkpoint."""
    board = ray.get_actor(given["board"])
    if ray.get(board.failure.remote()) is not None:
        return  # Ray Train tries again after every error; one that would come again is left to the driver.
    world_size = ray.train.get_context().get_world_size()
    try:
        _train(given["plan"], board, ray.train.get_context().get_world_rank(), world_size)
    except torch.OutOfMemoryError as error:
        advice = "out of memory on the device; lower --batch-size or --base-channels, or make smaller patches"
        ray.get(board.fail.remote(UnetRayError(f"{advice} ({' '.join(str(error).split())[:200]})")))
        raise
    except Exception as error:
        # A rank whose neighbour died gets a RuntimeError from the process group: that is worth another try.
        if world_size == 1 or not isinstance(error, RuntimeError | OSError):
            ray.get(board.fail.remote(error))
        raise


def _train(plan: TrainPlan, board: Any, rank: int, world_size: int) -> None:
    torch.set_num_threads(plan.threads)
    device = ray.train.torch.get_device() if plan.use_gpu else torch.device("cpu")
    settings, run, cache = plan.settings, open_objects(plan.run), PatchCache(plan.cache)
    loader = PatchLoader(
        cache, batch_size=settings.batch_size, seed=settings.seed, rank=rank, world_size=world_size,
        random_dihedral=settings.random_dihedral,
    )  # fmt: skip
    network = _start_network(plan).to(device)
    if plan.precision == "bfloat16" or plan.use_gpu:
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = make_optimizer(network, settings.optimizer, settings.learning_rate)
    schedule = Schedule(settings.schedule, settings.learning_rate, total_steps=settings.epochs * loader.steps)
    at = _resume(network, optimizer, schedule, device)
    reduce = partial(_sum_over_ranks, device=device) if world_size > 1 else None
    if world_size > 1:
        set_reduce(network, _differentiable_sum)
        # Statistics are already those of the global batch on every rank.
        wrapped: torch.nn.Module = torch.nn.parallel.DistributedDataParallel(
            network, device_ids=[device] if plan.use_gpu else None, broadcast_buffers=False
        )
    else:
        wrapped = network
    writer = RunWriter(run, at.step) if rank == 0 else None
    resumed_at, posted = at.step, 0.0
    for epoch in range(at.epoch, settings.epochs):
        if epoch - 1 - at.best_epoch >= settings.early_stop_epochs:
            break
        for patch in loader.epoch(epoch):
            began = time.perf_counter()
            rate = schedule.apply(optimizer, at.step)
            torch.manual_seed(_step_seed(settings.seed, at.step, rank))
            batch = batch_of(patch, settings.weighted).to(device)
            result = train_step(
                wrapped, batch, optimizer, step=at.step, precision=plan.precision, world_size=world_size, reduce=reduce
            )
            row = {
                "event": "step", "step": at.step, "epoch": epoch, "loss": result.loss, "learning_rate": rate,
                "samples": result.samples, "seconds": round(time.perf_counter() - began, 4),
            }  # fmt: skip
            at.step += 1
            if writer is not None:
                writer.add(row)
                if time.monotonic() - posted > POST_EVERY_SECONDS:
                    posted = time.monotonic()
                    note = f"epoch {epoch + 1} of {settings.epochs}, loss {result.loss:.4f}"
                    board.post.remote({"step": at.step, "resumed_at": resumed_at, "note": note})
        found = validate(
            network, cache, halo=halo_px(layers(plan.network)), margin=margin_px(layers(plan.network)),
            weighted=settings.weighted, precision=plan.precision, rank=rank, world_size=world_size, reduce=reduce,
        )  # fmt: skip
        schedule.end_epoch(found.loss)
        at.epoch = epoch + 1
        if found.loss < at.best_loss:
            at.best_loss, at.best_epoch = found.loss, epoch
            if rank == 0:
                run.put(MODEL, encode(network, _metadata(plan, cache, at)))
        if writer is not None:
            writer.add(
                {"event": "validation", "step": at.step - 1, "closes": at.step, "epoch": epoch, **found._asdict()}
            )
            writer.flush()
        _report(network, optimizer, schedule, at, rank)
    if writer is not None:
        writer.close()


def batch_of(patch: Patch, weighted: bool) -> Batch:
    """Tensors of a batch; without the weight map only unlabelled pixels, which weigh 0, keep a weight."""
    weight = patch.weight if weighted else (patch.weight > 0).astype(np.float32)
    return Batch(
        torch.from_numpy(patch.image), torch.from_numpy(patch.label), torch.from_numpy(weight.astype(np.float32))
    )


def _start_network(plan: TrainPlan) -> UNet:
    network = new_network(plan.network, plan.settings.seed)
    if plan.initial_model is not None:
        network.load_state_dict(decode(read_model_file(plan.initial_model), plan.initial_model)[1])
    return network


def _step_seed(seed: int, step: int, rank: int) -> int:
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> 1)


def _sum_over_ranks(values: Tensor, device: torch.device) -> Tensor:
    summed = values.to(device)
    dist.all_reduce(summed)
    return summed


def _differentiable_sum(values: Tensor) -> Tensor:
    from torch.distributed.nn.functional import all_reduce

    summed: Tensor = all_reduce(values)  # type: ignore[no-untyped-call]
    return summed


def _resume(network: UNet, optimizer: torch.optim.Optimizer, schedule: Schedule, device: torch.device) -> Progressed:
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return Progressed()
    with checkpoint.as_directory() as folder:
        state = torch.load(Path(folder) / STATE, map_location=device, weights_only=True)
    network.load_state_dict(state["network"])
    optimizer.load_state_dict(state["optimizer"])
    schedule.load_state_dict(state["schedule"])
    return Progressed(**state["at"])


def _report(network: UNet, optimizer: torch.optim.Optimizer, schedule: Schedule, at: Progressed, rank: int) -> None:
    """Register a checkpoint; every rank takes part, rank 0 brings the state."""
    metrics = {"validation_loss": at.best_loss, "epoch": at.epoch}
    with tempfile.TemporaryDirectory(prefix="unet_ray-checkpoint-") as folder:
        checkpoint = None
        if rank == 0:
            state = {
                "network": network.state_dict(),
                "optimizer": optimizer.state_dict(),
                "schedule": schedule.state_dict(),
                "at": vars(at),
            }
            data = io.BytesIO()
            torch.save(state, data)
            (Path(folder) / STATE).write_bytes(data.getvalue())
            checkpoint = ray.train.Checkpoint.from_directory(folder)
        ray.train.report(metrics, checkpoint=checkpoint)


def _metadata(plan: TrainPlan, cache: PatchCache, at: Progressed) -> ModelMetadata:
    """What segmentation and honest evaluation need to know of a model."""
    made_with = cache.require()["made_with"]
    sections = []
    for key, fingerprints in made_with["sections"].items():
        role, stack, section = key.split("/")
        sections.append(
            TrainingSection(fingerprint=fingerprints["image"], stack=int(stack), section=int(section), role=role)
        )
    return ModelMetadata(
        network=plan.network,
        normalisation=Normalisation(**made_with["intensity"]),
        voxel_size_nm=made_with["voxel_size_nm"],
        halo_px=halo_px(layers(plan.network)),
        margin_px=margin_px(layers(plan.network)),
        context_sections=made_with["context_sections"],
        training_sections=tuple(sections),
        training={
            "epoch": at.best_epoch,
            "step": at.step,
            "validation_loss": at.best_loss,
            "settings": plan.settings.model_dump(mode="json"),
            "precision": plan.precision,
        },
    )
