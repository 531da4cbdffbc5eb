"""A training as it is asked for, checked against its cache and its run directory before anything is started."""

import contextlib
import json
from collections.abc import Mapping
from typing import Any

from unet_ray.config.network import NetworkConfig, layers, network_config
from unet_ray.config.train import BestBy, TrainConfig, TrainSettings
from unet_ray.engine.cluster import threads_each
from unet_ray.engine.machines import machines
from unet_ray.engine.model_source import read_model_file
from unet_ray.engine.train_worker import passes
from unet_ray.errors import ConfigError, ModelFileError, OutputMismatchError, TargetError
from unet_ray.geometry.receptive_field import margin_px, nearest_output_sides
from unet_ray.network.model_file import decode
from unet_ray.storage.fingerprint import differences, digest, named
from unet_ray.storage.objects import Objects, absolute
from unet_ray.storage.patch_cache import PatchCache
from unet_ray.storage.targets import require_file_target

RUN = "run.json"
# That runs of earlier versions do not tell of.
ADDED_SETTINGS = {"descriptor_weight"}


def settings_of(config: TrainConfig) -> TrainSettings:
    """What decides a model, of all that was asked for."""
    return TrainSettings(**{name: getattr(config, name) for name in TrainSettings.model_fields})


def resolved_best_by(config: TrainConfig, cache: PatchCache) -> BestBy:
    """The score that chooses the model.

    Raises:
        ConfigError: it scores membranes, and the cache has classes.
    """
    classes = _classes(cache)
    if config.best_by is None:
        return "v_info" if classes <= 2 else "loss"
    if classes > 2 and config.best_by in ("v_rand", "v_info"):
        raise ConfigError(
            f"--best-by {config.best_by} scores cells between membranes, but cache {config.cache} holds {classes} "
            "classes; choose loss, pixel_mismatch or dice"
        )
    return config.best_by


def require_network(config: TrainConfig, cache: PatchCache) -> NetworkConfig:
    """The network, checked against the cache's margin, patch side and context.

    Raises:
        ConfigError: they do not fit together.
    """
    plan = cache.plan()
    if not plan.validation:
        raise ConfigError(
            f"cache {config.cache} has no validation sections, by which the best model is chosen; "
            "make one with jobs/augment.py --validation-sections"
        )
    return fitting_network(
        settings_of(config), f"cache {config.cache}", margin=plan.margin_px, patch_px=plan.patch_px,
        channels=plan.channels, classes=_classes(cache),
    )  # fmt: skip


def fitting_network(
    settings: TrainSettings, made: str, *, margin: int, patch_px: int, channels: int, classes: int
) -> NetworkConfig:
    """The network for patches of a cache that is there, or that will be made.

    Args:
        settings: of the training.
        made: how an error calls the cache.
        margin: of its images around their labels, pixels.
        patch_px: side of its labels.
        channels: of its images.
        classes: in its labels.

    Raises:
        ConfigError: they do not fit together, or the loss does not fit the classes.
    """
    preset = settings.preset
    if settings.descriptor_weight and classes > 2:
        raise ConfigError(
            f"--descriptor-weight {settings.descriptor_weight:g} describes cells between membranes, but {made} has "
            f"{classes} classes; leave it out"
        )
    network = network_config(
        preset, base_channels=settings.base_channels, depth=settings.depth, in_channels=channels,
        classes=classes if classes > 2 else None, members=settings.members,
    )  # fmt: skip
    wanted = margin_px(layers(network))
    if margin != wanted:
        of_depth = margin == margin_px(layers(network_config(preset)))
        remedy = "leave --depth out" if of_depth else f"make a cache with jobs/augment.py --for-preset {preset}"
        raise ConfigError(
            f"{made} has images with a margin of {margin} px, but a {preset} network of depth {network.depth} needs "
            f"{wanted}; {remedy}"
        )
    sides = nearest_output_sides(layers(network), patch_px)
    if sides != (patch_px,):
        raise ConfigError(
            f"{made} has patches of {patch_px} px, which a network of depth {network.depth} cannot make; the nearest "
            f"sides are {' and '.join(str(s) for s in sides)}: change --depth or the cache"
        )
    return network


def made_with_of(config: TrainConfig, network: NetworkConfig, cache: PatchCache) -> dict[str, Any]:
    """All that decides the model.

    Workers, threads and devices do not, beyond rounding; but where a worker takes its part of a batch in pieces, batch
    normalisation sees other pieces with other workers.
    """
    initial = None
    pieces = passes(settings_of(config), config.workers)
    if config.initial_model is not None:
        data = read_model_file(config.initial_model)
        found, _, _ = decode(data, config.initial_model)
        differing = differences(found.model_dump(exclude={"preset"}), network.model_dump(exclude={"preset"}))
        if differing:
            raise ModelFileError(
                f"--initial-model {config.initial_model} holds another network: {named(differing)}; "
                "choose the same preset, base channels, depth, members and context"
            )
        initial = digest(data)
    attributes = cache.require()
    return {
        "cache": attributes["fingerprint"],
        "patches": cache.plan().patches,
        "network": network.model_dump(mode="json"),
        "settings": {
            name: getattr(config, name)
            for name in TrainSettings.model_fields
            if name not in {"preset", "base_channels", "depth", "members", "precision"}
        },
        "initial_model": initial,
        # Batch normalisation takes its statistics over what all workers pass at once.
        "workers_x_passes": [config.workers, pieces] if network.batch_norm and pieces > 1 else None,
    }


def require_export_target(target: str, config: TrainConfig) -> None:
    """Refuse, before the training, an ONNX file that could not be written after it or would replace a part of it.

    Args:
        target: path or URL of the file.
        config: whose run and cache it must leave alone.

    Raises:
        TargetError: it is a folder, in a place where no file can be made, or something else of the run or the cache.
    """
    place = absolute(target)
    if "://" not in place:
        require_file_target(target.removeprefix("file://"), "--export-onnx", "model.onnx")
    inside = any(f"{place}/".startswith(f"{absolute(folder)}/") for folder in (config.run, config.cache))
    if inside and not place.endswith(".onnx"):
        raise TargetError(
            f"--export-onnx {target} might replace a part of --run {config.run} or --cache {config.cache}; "
            "choose a name that ends with .onnx, or another folder"
        )


def claim(run: Objects, config: TrainConfig, made_with: dict[str, Any]) -> dict[str, Any]:
    """What an earlier run here decided; nothing where there is none or where it is to be overwritten.

    Raises:
        OutputMismatchError: the directory belongs to another run or to something else.
        ConfigError: the model to begin from would be removed.
    """
    if run.size(RUN) is None:
        foreign = next(iter(run.list()), None)
        if foreign is not None:
            raise OutputMismatchError(
                f"{config.run} is not a run directory (it holds {foreign.key}); choose a new or empty directory"
            )
        return {}
    if config.overwrite:
        initial = config.initial_model
        if initial is not None and absolute(initial).startswith(f"{absolute(config.run)}/"):
            raise ConfigError(
                f"--initial-model {initial} is part of --run {config.run}, which --overwrite would empty; "
                "copy it elsewhere first, or choose a new --run"
            )
        return {}
    earlier = noted(run, config, RUN, "choose a new directory or pass --overwrite") or {}
    # A setting that its version did not have is at its default.
    before = NetworkConfig.model_validate(earlier["made_with"]["network"])
    earlier["made_with"]["network"] = before.model_dump(mode="json")
    defaults = {name: field.default for name, field in TrainSettings.model_fields.items() if name in ADDED_SETTINGS}
    earlier["made_with"]["settings"] = defaults | earlier["made_with"]["settings"]
    differing = differences(earlier["made_with"], made_with)
    if config.precision not in ("auto", earlier["precision"]):
        differing.append(f"precision {earlier['precision']} (now {config.precision})")
    if differing:
        raise OutputMismatchError(
            f"run {config.run} was started with {named(differing)}; choose a new directory or pass --overwrite"
        )
    return earlier


def noted(run: Objects, config: TrainConfig, name: str, remedy: str) -> dict[str, Any] | None:
    """What a JSON file of the run directory holds; None where it is not there.

    Raises:
        OutputMismatchError: it was cut off or edited.
    """
    data = run.get(name)
    if data is None:
        return None
    found: Any = None
    with contextlib.suppress(ValueError):
        found = json.loads(data)
    if not isinstance(found, dict):
        raise OutputMismatchError(f"{name} of run {config.run} is empty or damaged; copy it again, or {remedy}")
    return found


def require_scores(config: TrainConfig, cache: PatchCache) -> None:
    """Find out before an epoch is over whether the validation sections can tell models apart.

    Raises:
        ConfigError: nothing in them is labelled, or no pixel is of a cell where cells are scored.
        VolumeError: a shard of them is missing or damaged.
    """
    labelled = False
    for number in range(cache.plan().validation):
        section = cache.read_checked("validation", number)
        known = section.weight > 0
        labelled = labelled or bool(known.any())
        if (known & (section.label == 0)).any() or (labelled and config.best_by not in ("v_rand", "v_info")):
            return
    remedy = "make a cache with other jobs/augment.py --validation-sections"
    if not labelled:
        raise ConfigError(
            f"no pixel of the validation sections of cache {config.cache} is labelled, so no model can be chosen; "
            f"{remedy}"
        )
    raise ConfigError(
        f"--best-by {config.best_by} scores cells, but all that is labelled in the validation sections of cache "
        f"{config.cache} is membrane; choose --best-by loss, or {remedy}"
    )


def threads_of(config: TrainConfig, claimed: Mapping[str, Any], gpus: int) -> int:
    """CPUs of each worker: as asked for, else as an earlier run here had, where so many fit: sums keep their order."""
    if config.threads is not None:
        return config.threads
    before: int | None = claimed.get("threads")
    if before is not None and sum(node.fits(before, gpus) for node in machines()) >= config.workers:
        return before
    return threads_each(config.workers, gpus_each=gpus)


def empty(run: Objects) -> None:
    """Remove all of a run; what makes the folder one last, so that the same command can go on after an interruption."""
    for info in list(run.list()):
        if info.key != RUN:
            run.delete(info.key)
    run.delete(RUN)


def _classes(cache: PatchCache) -> int:
    return int(cache.require()["made_with"].get("classes", 2))
