"""What one training worker does: steps, validation, checkpoints; rank 0 also writes the run directory."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import ray.train
import ray.train.torch
import torch

from unet_ray.config.network import NetworkConfig, layers
from unet_ray.config.train import TrainSettings
from unet_ray.engine.model_source import read_model_file
from unet_ray.engine.patch_loader import LoadedBatch, PatchLoader
from unet_ray.engine.process_memory import keep_freed_memory, peak_rss_bytes
from unet_ray.engine.ranks import averaging, gather, sum_over_ranks
from unet_ray.engine.run_writer import RunWriter
from unet_ray.engine.same_code import require_code
from unet_ray.engine.train_state import Progressed, TrainState
from unet_ray.engine.validation import Gather, validate
from unet_ray.errors import ModelFileError, TrainingDivergedError, UnetRayError
from unet_ray.geometry.receptive_field import halo_px, margin_px
from unet_ray.network.ema import WeightAverage
from unet_ray.network.loss import Loss
from unet_ray.network.model_file import ModelMetadata, Normalisation, TrainingSection, decode, encode
from unet_ray.network.out_of_memory import is_out_of_memory
from unet_ray.network.predict import Predictor, fast_layout
from unet_ray.network.schedule import Schedule
from unet_ray.network.step import Batch, Precision, make_optimizer, make_scaler, train_step
from unet_ray.network.unet import Network, add_descriptors, new_network, without_descriptors
from unet_ray.report.progress import duration
from unet_ray.storage.objects import Objects
from unet_ray.storage.open_objects import open_objects
from unet_ray.storage.patch_cache import PatchCache

MODEL = "model.safetensors"
POST_EVERY_SECONDS = 0.5
# Steps until the time of a step says something of those to come: the first ones compile and fill caches.
FORECAST_AFTER = (5, 25)


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
    compile: bool = False
    checkpoint_every_steps: int | None = None


def train_worker(given: dict[str, Any]) -> None:
    """One rank's training loop, as Ray Train calls it; continues from the newest registered checkpoint."""
    board = ray.get_actor(given["board"])
    if ray.get(board.failure.remote()) is not None:
        return  # Ray Train tries again after every error; one that would come again is left to the driver.
    context = ray.train.get_context()
    world_size = context.get_world_size()
    plan: TrainPlan = given["plan"]
    try:
        require_code(given["code"])
        _Rank(plan, board, context.get_world_rank(), world_size).train()
    except Exception as error:
        if is_out_of_memory(error):
            ray.get(board.fail.remote(UnetRayError(memory_advice(plan, " ".join(str(error).split())[:200]))))
        # A rank whose neighbour died gets a RuntimeError from the process group: that is worth another try.
        elif world_size == 1 or not isinstance(error, RuntimeError | ConnectionError):
            ray.get(board.fail.remote(error))
        raise


def memory_advice(plan: TrainPlan, found: str) -> str:
    """The sentence for a training that does not fit into memory."""
    settings, members = plan.settings, plan.network.members
    fewer = "" if members == 1 else f", --members {members}"
    return (
        f"training ran out of memory ({found}); lower --batch-size {settings.batch_size}{fewer} or --base-channels "
        f"{plan.network.base_channels}, set --micro-batch below a worker's part of the batch, make a cache of "
        "smaller patches, or give a worker more memory"
    )


def passes(settings: TrainSettings, world_size: int) -> int:
    """Pieces in which a worker takes its part of a batch."""
    share = -(-settings.batch_size // world_size)
    return -(-share // (settings.micro_batch or share))


class _Rank:
    """One rank of a training: made, resumed, and taken through its epochs."""

    def __init__(self, plan: TrainPlan, board: Any, rank: int, world_size: int) -> None:
        torch.set_num_threads(plan.threads)
        keep_freed_memory()
        self.plan, self.board, self.rank, self.world_size = plan, board, rank, world_size
        self.settings = settings = plan.settings
        self.device = ray.train.torch.get_device() if plan.use_gpu else torch.device("cpu")
        self.run, self.cache = open_objects(plan.run), PatchCache(plan.cache)
        self.loader = PatchLoader(
            self.cache, batch_size=settings.batch_size, seed=settings.seed, rank=rank, world_size=world_size,
            random_dihedral=settings.random_dihedral, describe=settings.descriptor_weight > 0,
        )  # fmt: skip
        layout = fast_layout(self.device, plan.precision)
        network = _start_network(plan).to(self.device).to(memory_format=layout)  # type: ignore[call-overload]
        self.state = TrainState(
            network=network,
            optimizer=make_optimizer(
                network, settings.optimizer, settings.learning_rate,
                weight_decay=settings.weight_decay, momentum=settings.momentum,
            ),
            schedule=Schedule(
                settings.schedule, settings.learning_rate, total_steps=settings.epochs * self.loader.steps,
                warm_up=settings.warm_up,
            ),
            average=WeightAverage(network, settings.ema_decay) if settings.ema_decay else None,
            scaler=make_scaler(plan.precision, self.device),
            at=Progressed(),
        )  # fmt: skip
        self.state.resume()
        if rank == 0:
            require_model(self.run, self.state.at)
        self.reduce = sum_over_ranks if world_size > 1 else None
        self.gather: Gather | None = gather if world_size > 1 else None
        self.wrapped: torch.nn.Module = network
        if world_size > 1:
            self.wrapped = averaging(network, self.device, compiled=plan.compile)
        if plan.compile:
            self.wrapped = torch.compile(self.wrapped)  # type: ignore[assignment]
        self.writer = RunWriter(self.run, self.state.at.step) if rank == 0 else None
        self.pieces = passes(settings, world_size)
        self.resumed_at, self.posted, self.clock = self.state.at.step, 0.0, _Clock()

    def train(self) -> None:
        """All epochs that are left.

        Raises:
            TrainingDivergedError: a loss or a gradient is no finite number; the rows up to there are written.
        """
        at, settings = self.state.at, self.settings
        if self.writer is not None:
            self._post("")
        while at.epoch < settings.epochs and at.epoch - 1 - at.best_epoch < settings.early_stop_epochs:
            # In the middle of an epoch after a resume: the order is known, so the steps taken are left out.
            patches = self.loader.epoch(at.epoch, first_step=at.step - at.epoch * self.loader.steps)
            for loaded, waited in _with_wait(patches):
                try:
                    self._step(loaded, waited)
                except TrainingDivergedError as error:
                    if self.writer is not None:
                        self.writer.flush()
                    raise TrainingDivergedError(f"{error}; {kept(at, self.plan.run)}") from None
                taken = at.step - at.epoch * self.loader.steps
                every = self.plan.checkpoint_every_steps
                if every is not None and at.step % every == 0 and taken < self.loader.steps:
                    self._checkpoint()
            self._end_epoch()
            self._checkpoint()
        if self.writer is not None:
            self.writer.close()

    def _step(self, loaded: LoadedBatch, waited: float) -> None:
        began = time.perf_counter()
        at, settings = self.state.at, self.settings
        rate = self.state.schedule.apply(self.state.optimizer, at.step)
        found = train_step(
            self.wrapped, batch_of(loaded, settings.weighted).to(self.device), self.state.optimizer,
            step=at.step, seed=settings.seed, loss=_loss(settings), precision=self.plan.precision,
            pieces=self.pieces, max_gradient_norm=settings.max_gradient_norm, scaler=self.state.scaler,
            world_size=self.world_size, reduce=self.reduce,
        )  # fmt: skip
        if self.state.average is not None and found.stepped:
            self.state.average.update()
        seconds = time.perf_counter() - began
        row = {
            "event": "step", "step": at.step, "epoch": at.epoch, "loss": found.loss, "learning_rate": rate,
            "gradient_norm": found.gradient_norm, "samples": found.samples,
            **({f"loss_{name}": value for name, value in found.terms.items()} if len(found.terms) > 1 else {}),
            "seconds": round(seconds, 4), "wait_seconds": round(waited, 4), "ended": time.time(),
        }  # fmt: skip
        at.step += 1
        if self.writer is None:
            return
        self.writer.add(row)
        last = at.step == settings.epochs * self.loader.steps
        if last or time.monotonic() - self.posted > POST_EVERY_SECONDS:
            self.posted = time.monotonic()
            rate_now = f"{found.samples / max(seconds + waited, 1e-9):.3g} samples/s"
            note = f"epoch {at.epoch + 1} of {settings.epochs}, loss {found.loss:.4f}, {rate_now}"
            self._post(note)
        usual = self.clock.tick(seconds + waited)
        if usual is not None:
            self._say(self._forecast(usual))

    def _end_epoch(self) -> None:
        state, at, settings = self.state, self.state.at, self.settings
        assert settings.best_by is not None, "the driver resolves it"
        with state.judged() as trained:
            network = without_descriptors(trained)
            predictor = Predictor(self.plan.network, network.state_dict(), self.device, self.plan.precision)
            found, shown = validate(
                predictor, self.cache, weighted=settings.weighted, rank=self.rank, gather=self.gather
            )
            state.schedule.end_epoch(found.loss)
            row = {"event": "validation", "step": at.step - 1, "epoch": at.epoch, **found._asdict()}
            if at.take(found, settings.best_by) and self.rank == 0:
                self.run.put(MODEL, encode(network, _metadata(self.plan, self.cache, at, found._asdict())))
        if self.writer is not None:
            self.writer.add(row | {"ended": time.time()})
            if shown is not None:
                self.writer.add_pictures(shown, at.step - 1)

    def _checkpoint(self) -> None:
        if self.writer is not None:
            self.writer.flush()
        self.state.report(self.rank)

    def _post(self, note: str) -> None:
        self.board.post.remote({"step": self.state.at.step, "resumed_at": self.resumed_at, "note": note})

    def _say(self, line: str) -> None:
        self.board.say.remote(line)

    def _forecast(self, seconds_per_step: float) -> str:
        """Time and memory that the training will take, from its first steps."""
        steps = self.loader.steps
        left = self.settings.epochs * steps - self.state.at.step
        memory = torch.cuda.max_memory_allocated(self.device) if self.plan.use_gpu else peak_rss_bytes()
        return (
            f"forecast: {duration(seconds_per_step * steps)} per epoch of {steps:,} steps and its validation apart, "
            f"{duration(seconds_per_step * left)} in all; {memory / 1e9:.2f} GB of "
            f"{'device' if self.plan.use_gpu else 'main'} memory per worker"
        )


def require_model(run: Objects, at: Progressed) -> None:
    """Check that the best model so far is there: a training that finds no better one would end without any.

    Raises:
        ModelFileError: it is not.
    """
    if at.best is not None and not run.size(MODEL):
        raise ModelFileError(
            f"the run {run.url} goes on from its checkpoint, but the best model until then, its {MODEL}, is not there "
            "any more; put it back, or train again with --overwrite"
        )


def kept(at: Progressed, run: str) -> str:
    """What a training that ends before its time leaves."""
    if at.best is None:
        return "there is no model yet"
    return f"the best model so far is kept in {run}/{MODEL}"


def _with_wait(patches: Iterator[LoadedBatch]) -> Iterator[tuple[LoadedBatch, float]]:
    """Batches, and for how many seconds each was waited for."""
    while True:
        asked = time.perf_counter()
        loaded = next(patches, None)
        if loaded is None:
            return
        yield loaded, time.perf_counter() - asked


class _Clock:
    """Seconds per step from the first steps, said once."""

    def __init__(self) -> None:
        self._steps, self._seconds = 0, 0.0

    def tick(self, seconds: float) -> float | None:
        """One more step is over, in so many seconds; seconds per step when they are known, else None."""
        self._steps += 1
        first, last = FORECAST_AFTER
        if self._steps > first:
            self._seconds += seconds
        return self._seconds / (last - first) if self._steps == last else None


def batch_of(loaded: LoadedBatch, weighted: bool) -> Batch:
    """Tensors of a batch; without the weight map only unlabelled pixels, which weigh 0, keep a weight."""
    patch = loaded.patch
    weight = patch.weight if weighted else patch.weight > 0
    return Batch(
        torch.from_numpy(patch.image),
        torch.from_numpy(patch.label),
        torch.from_numpy(weight.astype(np.float32)),
        torch.from_numpy(loaded.positions),
        torch.from_numpy(loaded.numbers),
        None if loaded.described is None else torch.from_numpy(loaded.described),
    )


def _loss(settings: TrainSettings) -> Loss:
    return Loss(
        cross_entropy=settings.cross_entropy_weight, dice=settings.dice_weight,
        label_smoothing=settings.label_smoothing, descriptors=settings.descriptor_weight,
    )  # fmt: skip


def _start_network(plan: TrainPlan) -> Network:
    network = new_network(plan.network, plan.settings.seed)
    if plan.initial_model is not None:
        network.load_state_dict(decode(read_model_file(plan.initial_model), plan.initial_model)[1])
    if plan.settings.descriptor_weight:
        add_descriptors(network, plan.settings.seed)
    return network


def _metadata(plan: TrainPlan, cache: PatchCache, at: Progressed, scores: dict[str, float | None]) -> ModelMetadata:
    """What segmentation and honest evaluation need to know of a model."""
    attributes = cache.require()
    made_with = attributes["made_with"]
    orders = attributes["sources"].get("grey_order", {})
    return ModelMetadata(
        network=plan.network,
        normalisation=Normalisation(**made_with["intensity"]),
        voxel_size_nm=made_with["voxel_size_nm"],
        halo_px=halo_px(layers(plan.network)),
        margin_px=margin_px(layers(plan.network)),
        context_sections=made_with["context_sections"],
        training_sections=_sections(plan, made_with["sections"], orders),
        training={
            "epoch": at.best_epoch,
            "step": at.step,
            "validation": dict(scores),
            "settings": plan.settings.model_dump(mode="json"),
            "precision": plan.precision,
        },
    )


def _sections(
    plan: TrainPlan, fingerprints: dict[str, dict[str, str]], orders: dict[str, str]
) -> tuple[TrainingSection, ...]:
    """Sections of the cache, and those that the model was trained on before it was begun from."""
    sections = []
    for key, of in fingerprints.items():
        role, stack, section = key.split("/")
        found = {
            "fingerprint": of["image"],
            "grey_order": orders.get(f"{stack}/{section}"),
            "stack": int(stack),
            "section": int(section),
            "role": role,
        }
        sections.append(TrainingSection.model_validate(found))
    if plan.initial_model is not None:
        known = {(section.fingerprint, section.role) for section in sections}
        before = decode(read_model_file(plan.initial_model), plan.initial_model)[2].training_sections
        sections += [section for section in before if (section.fingerprint, section.role) not in known]
    return tuple(sections)
