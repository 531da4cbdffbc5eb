"""All stages, one after the other, on one cluster; each resumes by itself."""

import time

from unet_ray.command import Summary
from unet_ray.config.augment import AugmentConfig
from unet_ray.config.evaluate import EvaluateConfig
from unet_ray.config.network import NetworkConfig, layers, network_config
from unet_ray.config.pipeline import PipelineConfig
from unet_ray.config.sections import parse_sections
from unet_ray.config.segment import SegmentConfig
from unet_ray.config.train import TrainConfig
from unet_ray.engine.augment import augment
from unet_ray.engine.cluster import cluster
from unet_ray.engine.evaluate import evaluate
from unet_ray.engine.evaluation import PANELS
from unet_ray.engine.labelled_stacks import LabelledStacks
from unet_ray.engine.phantom import make_phantom
from unet_ray.engine.report import Stages
from unet_ray.engine.segment import segment
from unet_ray.engine.segment_plan import resolve_tile_px
from unet_ray.engine.train import train
from unet_ray.engine.train_request import RUN, claim, fitting_network, made_with_of, resolved_best_by
from unet_ray.errors import ConfigError
from unet_ray.geometry.box import Triple
from unet_ray.geometry.receptive_field import margin_px
from unet_ray.storage.mask_volume import open_mask
from unet_ray.storage.open_objects import open_objects
from unet_ray.storage.patch_cache import CONTACT_SHEET, PatchCache
from unet_ray.storage.segmentation import Segmentation
from unet_ray.storage.targets import check_folder_target, check_tiff_targets
from unet_ray.storage.volume import open_volume

# What the stages make in the folder.
OUTPUTS = ("phantom.zarr", "cache.zarr", "run", "segmentation.zarr", "scored.zarr", "report")
# What could be taken for sections among them.
PICTURES = (f"cache.zarr/{CONTACT_SHEET}", "run/curves.png", f"report/{PANELS}")


def pipeline(config: PipelineConfig) -> Summary:
    """Augment, train, segment, evaluate.

    A stage that ends incomplete ends the pipeline where the next one needs all of it.

    Returns:
        The stages' summaries under their names, and ``report``, the folder with metrics and pictures, where it came to
        an evaluation.

    Raises:
        InputError: settings or inputs are wrong.
    """
    began = time.time()
    if (config.images is None) != (config.labels is None):
        raise ConfigError("--images and --labels go together; give both, or neither for the demo")
    if config.augment.label_kind == "classes":
        raise ConfigError(
            "--augment.label-kind classes has no membrane that the pipeline could score; run the jobs augment, train "
            "and segment one after the other"
        )
    if config.ignore_masks is not None and config.labels is None:
        raise ConfigError("--ignore-masks is for --labels, and the demo's labels are whole; give --labels as well")
    if config.mask is not None and config.volume is None:
        raise ConfigError("--mask is for --volume, and the labelled stack is segmented whole; give --volume as well")
    output = config.output.rstrip("/")
    inputs = [("--images", config.images), ("--labels", config.labels), ("--ignore-masks", config.ignore_masks)]
    inputs += [("--volume", config.volume), ("--mask", config.mask)]
    check_tiff_targets({"--tiff": config.tiff}, inputs, [f"{output}/{name}" for name in OUTPUTS])
    check_folder_target("--output", output, PICTURES, inputs)
    scored = config.score_sections or config.augment.exclude_sections or config.augment.validation_sections
    if not scored:
        raise ConfigError(
            "no sections are set apart; name some with --augment.validation-sections and --augment.exclude-sections"
        )
    shape, network = _check_stages(config)
    depth = shape[0]
    held = parse_sections(scored, depth, "--score-sections")
    # Sections that chose the model may also choose a threshold, unless they are scored themselves.
    validation = parse_sections(config.augment.validation_sections, depth, "--augment.validation-sections")
    fixing = tuple(str(section) for section in validation if section not in held)
    training = _train_config(config, output)
    excluded = parse_sections(config.augment.exclude_sections, depth, "--augment.exclude-sections")
    patches = config.augment.variants * (depth - len({*validation, *excluded}))
    _check_outputs(output, training, network, patches)
    stages: dict[str, Summary] = {}

    def ended() -> Summary:
        report = {"report": f"{output}/report"} if "evaluate" in stages else {}
        status = "complete" if report and all(s["status"] == "complete" for s in stages.values()) else "incomplete"
        seconds = {"seconds": round(time.time() - began, 2), "startup_seconds": round(ready - began, 2)}
        return {"status": status, **seconds, **stages, **report}

    with cluster():
        ready = time.time()
        images, labels = config.images, config.labels
        if images is None or labels is None:
            images, labels = make_phantom(
                f"{output}/phantom.zarr", shape, config.phantom.seed, config.workers, overwrite=config.overwrite
            )
        masks = () if config.ignore_masks is None else (config.ignore_masks,)
        stages["augment"] = augment(
            AugmentConfig(
                **dict(config.augment), images=(images,), labels=(labels,), cache=f"{output}/cache.zarr",
                ignore_masks=masks, workers=config.workers, overwrite=config.overwrite,
            )
        )  # fmt: skip
        if stages["augment"]["status"] != "complete":
            return ended()
        trained = stages["train"] = train(training)

        def segment_to(
            volume: str, path: str, sections: tuple[str, ...], tiff: str | None, mask: str | None = None
        ) -> Summary:
            return segment(
                SegmentConfig(
                    **dict(config.segment), volume=volume, model=trained["model"], output=path, sections=sections,
                    tiff=tiff, mask=mask, workers=config.workers, use_gpu=config.use_gpu,
                    accept_changed_volume=config.accept_changed_volume, overwrite=config.overwrite,
                )
            )  # fmt: skip

        segmentation, volume = f"{output}/segmentation.zarr", config.volume or images
        if config.volume is None:
            to_score = stages["segment"] = segment_to(images, segmentation, (), config.tiff)
            prediction = segmentation
        else:
            # Of the labelled stack only the sections that are scored or choose the threshold.
            prediction = f"{output}/scored.zarr"
            to_score = segment_to(images, prediction, (*scored, *fixing), None)
            stages["segment"] = segment_to(config.volume, segmentation, (), config.tiff, config.mask)
        if to_score["status"] != "complete":
            return ended()
        stages["evaluate"] = evaluate(
            EvaluateConfig(
                prediction=(prediction,), model=(trained["model"],), labels=labels,
                label_kind=config.augment.label_kind,
                ignore_label=config.augment.ignore_label, ignore_masks=config.ignore_masks, sections=scored,
                threshold_sections=fixing, images=images, report=f"{output}/report", workers=config.workers,
            ),
            Stages(
                title="Demo on a synthetic volume" if config.images is None else f"Segmentation of {volume}",
                settings=config.model_dump(mode="json"), summaries=dict(stages), cache=f"{output}/cache.zarr",
                run=f"{output}/run", volume=volume, segmentation=segmentation,
            ),
        )  # fmt: skip
    return ended()


def _train_config(config: PipelineConfig, output: str) -> TrainConfig:
    return TrainConfig(
        **dict(config.train), cache=f"{output}/cache.zarr", run=f"{output}/run", workers=config.train_workers,
        use_gpu=config.use_gpu, checkpoint_every_steps=config.checkpoint_every_steps, overwrite=config.overwrite,
    )  # fmt: skip


def _check_outputs(output: str, training: TrainConfig, network: NetworkConfig, patches: int) -> None:
    """Refuse what a stage would refuse to write into, before those in front of it work for hours.

    Above all a run that was started with something else, before the cache is extended: with more patches the command
    that started the run would not go on either.

    Args:
        output: of the pipeline.
        training: as asked for.
        network: likewise.
        patches: that the cache will have, or more.

    Raises:
        InputError: something else is there, or nothing can be written.
    """
    cache, run = PatchCache(training.cache), open_objects(training.run)
    cached = cache.attributes()
    for name in ("segmentation.zarr", "scored.zarr"):
        Segmentation(f"{output}/{name}").attributes()
    if training.overwrite or run.size(RUN) is None:
        claim(run, training, {})
    elif cached is not None:
        asked = training.model_copy(update={"best_by": resolved_best_by(training, cache)})
        made_with = made_with_of(asked, network, cache)
        claim(run, asked, made_with | {"patches": max(patches, cache.plan().patches)})
    open_objects(f"{output}/report").require_writable()


def _check_stages(config: PipelineConfig) -> tuple[Triple, NetworkConfig]:
    """Shape of the labelled stack, and the network; what a later stage would refuse is refused here, hours before it.

    Raises:
        InputError: inputs are missing or do not fit together, or settings of one stage do not fit another's.
    """
    augmenting, shape = config.augment, config.phantom.shape
    if not augmenting.validation_sections:
        raise ConfigError(
            "no validation sections are named, by which the best model is chosen; name some with "
            "--augment.validation-sections"
        )
    if config.images is not None and config.labels is not None:
        stacks = LabelledStacks.open(
            (config.images,), (config.labels,), augmenting.label_kind,
            ignore_masks=() if config.ignore_masks is None else (config.ignore_masks,),
        )  # fmt: skip
        shape = stacks.images[0].shape
    network = fitting_network(
        config.train, "the cache of --augment.for-preset and --augment.patch-px",
        margin=margin_px(layers(network_config(augmenting.for_preset))), patch_px=augmenting.patch_px,
        channels=1 + 2 * augmenting.context_sections, classes=2,
    )  # fmt: skip
    volume = None if config.volume is None else open_volume(config.volume)
    resolve_tile_px(config.segment.tile_px, shape if volume is None else volume.shape, network)
    if volume is not None and config.mask is not None:
        open_mask(config.mask, volume)
    return shape, network
