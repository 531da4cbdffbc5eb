"""Data-parallel training on Ray Train, from a patch cache to a model file."""

import json
import os
import sys
import threading
import time
import uuid
from collections.abc import Mapping
from typing import Any

import ray
import ray.train
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from unet_ray.command import Summary
from unet_ray.config.network import NetworkConfig
from unet_ray.config.train import TrainConfig
from unet_ray.engine.checkpoints import CHECKPOINTS, take_off_unusable
from unet_ray.engine.cluster import cluster, memory_together, pool_size
from unet_ray.engine.patch_loader import steps_per_epoch
from unet_ray.engine.same_code import own_code
from unet_ray.engine.train_board import Board
from unet_ray.engine.train_request import (
    RUN,
    claim,
    empty,
    made_with_of,
    noted,
    require_export_target,
    require_network,
    require_scores,
    resolved_best_by,
    settings_of,
    threads_of,
)
from unet_ray.engine.train_summary import model_path, summarise_run
from unet_ray.engine.train_worker import MODEL, TrainPlan, memory_advice, train_worker
from unet_ray.errors import ConfigError, ModelFileError, TargetError, UnetRayError
from unet_ray.network.export import onnx_bytes, require_onnx
from unet_ray.network.loss import Loss
from unet_ray.network.model_file import decode
from unet_ray.network.predict import Precision, hardware_precision
from unet_ray.network.summary import PROCESS_BYTES, TRACING, NetworkSummary, summarise
from unet_ray.network.unet import network_from_state
from unet_ray.report.progress import Progress
from unet_ray.storage.arrow_store import arrow_store
from unet_ray.storage.failure import reason
from unet_ray.storage.objects import Objects, absolute
from unet_ray.storage.open_objects import open_objects
from unet_ray.storage.patch_cache import CachePlan, PatchCache

SUMMARY = "summary.json"
# A spot machine may vanish more than once in a night.
MAX_FAILURES = 8


def train(config: TrainConfig) -> Summary:
    """Train, or continue or report a training.

    Returns:
        The summary of the contract: epochs, steps, samples_per_second, best_validation_loss, model, ...

    Raises:
        InputError: inputs or settings are wrong; nothing was started.
        TrainingDivergedError: the loss became NaN; the last good model is kept.
    """
    began = time.time()
    if config.export_onnx is not None:
        require_onnx()  # now, not after hours of training
        require_export_target(config.export_onnx, config)
    run = open_objects(config.run)
    cache = PatchCache(config.cache)
    cache.require_complete()
    config = config.model_copy(update={"best_by": resolved_best_by(config, cache)})
    network = require_network(config, cache)
    made_with = made_with_of(config, network, cache)
    claimed = claim(run, config, made_with)
    remedy = "remove it, and the same command writes it again"
    finished: Summary | None = None if config.overwrite else noted(run, config, SUMMARY, remedy)
    if finished is not None:
        if run.size(MODEL) is None:
            raise ModelFileError(
                f"the run {config.run} was complete, but its {MODEL} is not there any more; put it back, or train "
                "again with --overwrite"
            )
        # The run may have been moved since, and a relative path is another one from another working directory.
        summary = finished | {"model": model_path(config)} | _export(config, run)
        return summary | {"seconds": round(time.time() - began, 2), "note": "the run was complete; nothing to do"}
    require_scores(config, cache)
    run.require_writable()
    if not config.overwrite:
        for sentence in take_off_unusable(run, config.run):
            print(f"train: {sentence}", file=sys.stderr)
    with cluster(meanwhile=TRACING):
        plan = _plan(config, network, claimed)
        if config.overwrite:
            empty(run)
        decided = {"made_with": made_with, "precision": plan.precision, "threads": plan.threads}
        run.put(RUN, json.dumps(decided, indent=1).encode())
        patches = cache.plan()
        memory = _memory_each(config, plan, patches)
        steps = config.epochs * steps_per_epoch(patches.patches, config.batch_size)
        startup_seconds = _fit(config, plan, steps, memory)
    summary = summarise_run(config, plan.precision, run, startup_seconds, began)
    run.put(SUMMARY, json.dumps(summary).encode())
    return summary | _export(config, run)


def _plan(config: TrainConfig, network: NetworkConfig, claimed: Mapping[str, Any]) -> TrainPlan:
    """What workers need to know, with what the cluster's hardware decides unless an earlier run here did.

    Raises:
        ConfigError: so many workers do not fit in the cluster at once.
    """
    gpus = 1 if config.use_gpu else 0
    threads = threads_of(config, claimed, gpus)
    fitting = pool_size(config.workers, cpus_each=threads, gpus_each=gpus)
    if fitting < config.workers:
        raise ConfigError(
            f"--workers {config.workers} of {threads} CPU and {gpus} GPU train together, but {fitting} fit in the "
            "cluster at once; take fewer, or a larger cluster"
        )
    return TrainPlan(
        cache=absolute(config.cache),
        run=absolute(config.run),
        settings=settings_of(config),
        network=network,
        precision=claimed.get("precision") or _precision(config),
        threads=threads,
        use_gpu=config.use_gpu,
        initial_model=None if config.initial_model is None else absolute(config.initial_model),
        compile=config.compile,
        checkpoint_every_steps=config.checkpoint_every_steps,
    )


def _memory_each(config: TrainConfig, plan: TrainPlan, patches: CachePlan) -> int:
    """Main memory that a worker asks for; what is trained is said on stderr."""
    about, network = _network_summary(plan, config.workers, patches), plan.network
    what = f"{network.preset} network" if network.members == 1 else f"{network.members} {network.preset} networks"
    print(f"train: {what}, {about.line()}; {plan.precision}", file=sys.stderr)
    # A GPU's memory is its own, and Ray counts GPUs.
    needed = 0 if config.use_gpu else PROCESS_BYTES + about.memory.total
    return memory_together(config.workers, needed, plan.threads, int(config.use_gpu))


def _export(config: TrainConfig, run: Objects) -> dict[str, str]:
    """Write the model as ONNX where that was asked for."""
    if config.export_onnx is None:
        return {}
    data = run.get(MODEL)
    assert data is not None, "a complete run has a model"
    network, state, metadata = decode(data, f"{config.run}/{MODEL}")
    folder, name = os.path.split(absolute(config.export_onnx))
    open_objects(folder).put(name, onnx_bytes(network_from_state(network, state), metadata))
    return {"onnx": config.export_onnx}


def _network_summary(plan: TrainPlan, workers: int, patches: CachePlan) -> NetworkSummary:
    """What is trained and about how much memory a step takes, which has no more patches than there are."""
    settings = plan.settings
    share = -(-min(settings.batch_size, patches.patches) // workers)
    return summarise(
        plan.network, patches=min(share, settings.micro_batch or share), patch_px=patches.patch_px,
        optimizer=settings.optimizer, precision=plan.precision,
        loss=Loss(cross_entropy=settings.cross_entropy_weight, dice=settings.dice_weight),
        averaged=settings.ema_decay > 0, workers=workers,
    )  # fmt: skip


def _precision(config: TrainConfig) -> Precision:
    """Asked on a worker of the kind that will compute: the head node's hardware may be another."""
    if config.precision != "auto":
        return config.precision
    device = "cuda" if config.use_gpu else "cpu"
    asked = ray.remote(num_cpus=1, num_gpus=1 if config.use_gpu else 0)(hardware_precision).remote(device)
    found: Precision = ray.get(asked)
    return found


def _fit(config: TrainConfig, plan: TrainPlan, steps: int, memory_each: int) -> float:
    """Run the trainer, with a progress line from the board; seconds until the first step."""
    name = f"unet_ray_board_{uuid.uuid4().hex}"
    # Beside the driver: an actor that asks for no CPU may land on any node, and with a lost one the training would end.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    board = Board.options(name=name, scheduling_strategy=here).remote()  # type: ignore[attr-defined]
    began, first_step = time.time(), list[float]()
    over = threading.Event()

    def watch(progress: Progress) -> None:
        shown: int | None = None
        while not over.wait(0.5):
            row, said = ray.get(board.read.remote())
            for line in said:
                progress.log(f"train: {line}")
            if not row:
                continue
            if shown is None:
                shown = row["resumed_at"]
                progress.begin_at(shown)
            if row["step"] > shown:
                if not first_step:
                    first_step.append(time.time())
                progress.advance(row["step"] - shown, note=row["note"])
                shown = row["step"]

    filesystem, place = arrow_store(plan.run)
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"plan": plan, "board": name, "code": own_code()},
        scaling_config=ScalingConfig(
            num_workers=config.workers,
            use_gpu=config.use_gpu,
            resources_per_worker={
                "CPU": plan.threads,
                **({"GPU": 1} if config.use_gpu else {}),
                **({"memory": memory_each} if memory_each else {}),
            },
        ),
        torch_config=TorchConfig(backend="nccl" if config.use_gpu else "gloo"),
        run_config=RunConfig(
            name=CHECKPOINTS,
            storage_path=place,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=MAX_FAILURES),
            checkpoint_config=CheckpointConfig(num_to_keep=config.keep_checkpoints),
        ),
    )
    # Ray Train would take over Ctrl-C for good: it ends a training with code 0 or 1, and no later stage at all.
    trainer._register_sigint_handler = lambda controller: None  # type: ignore[attr-defined]
    with Progress("train", total=steps, unit="steps") as progress:
        watcher = threading.Thread(target=watch, args=(progress,), daemon=True)
        watcher.start()
        try:
            trainer.fit()
        except ray.train.TrainingFailedError as error:
            failure = ray.get(board.failure.remote())
            raise (_store_failure(plan, failure) or failure or _memory_failure(plan, error) or error) from None
        finally:
            over.set()
            watcher.join()
    failure = ray.get(board.failure.remote())
    ray.kill(board)
    if failure is not None:
        raise _store_failure(plan, failure) or failure
    return (first_step[0] if first_step else time.time()) - began


def _store_failure(plan: TrainPlan, failure: Exception | None) -> TargetError | None:
    """The sentence where a worker could not store a checkpoint; None for anything else."""
    if not isinstance(failure, OSError):
        return None
    return TargetError(
        f"a checkpoint cannot be stored in {plan.run} ({reason(failure)}); free some room, or wait until its store "
        "answers, and run the same command again: it goes on from the newest checkpoint"
    )


def _memory_failure(plan: TrainPlan, error: Exception) -> UnetRayError | None:
    """The sentence where Ray, or the system, ended workers because memory ran out; None for anything else."""
    said = str(error)
    if "OutOfMemoryError" not in said and "memory pressure" not in said and "low on memory" not in said:
        return None
    return UnetRayError(memory_advice(plan, "a worker was ended because its machine had no memory left"))
