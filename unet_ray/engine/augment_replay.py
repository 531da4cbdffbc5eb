"""One patch of a cache made again, alone, from what the cache says of itself."""

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from unet_ray.command import Summary
from unet_ray.config.augment import AugmentConfig, AugmentSettings
from unet_ray.engine.augment_plan import AugmentPlan, from_cache
from unet_ray.engine.augment_worker import AugmentWorker
from unet_ray.errors import ConfigError, TargetError, VolumeError
from unet_ray.storage.fingerprint import differences, named
from unet_ray.storage.objects import absolute
from unet_ray.storage.open_objects import open_objects
from unet_ray.storage.patch_cache import ARRAYS, PatchCache, PatchLike
from unet_ray.storage.patch_tiff import encode_patch

# What a choice of patch does not depend on.
_ELSEWHERE = {"variants", "validation_sections", "exclude_sections"}


def replay(config: AugmentConfig) -> Summary:
    """Make the patch that ``config.replay`` names, write it as a TIFF and compare it with the cache's.

    Returns:
        Summary with patch, stack, section, variant, drawn, in_cache, equal and out. Where the cache holds
        the patch with other bytes the status is "incomplete": it is not the same patch.

    Raises:
        InputError: there is no such cache or section, the inputs are not what they were, or ``out`` cannot
            be written.
    """
    began = time.time()
    if config.replay is None or config.out is None:
        raise ConfigError("--replay SECTION VARIANT and --out FILE.tif go together; give both, or neither")
    for flag in ("overwrite", "verify"):
        if getattr(config, flag):
            raise ConfigError(f"--replay and --{flag} exclude each other; run the job once for each")
    section, variant = config.replay
    cache = PatchCache(config.cache)
    attributes = cache.require()
    cache.require_unchanged(attributes)
    if not attributes.get("sources"):
        raise VolumeError(
            f"cache {cache.path} does not say where its sections are; run its jobs/augment.py command again, which "
            "makes no patch twice"
        )
    plan = from_cache(attributes, config.images, config.labels, config.ignore_masks)
    _require_same_settings(config, plan, cache.path)
    out = _target(config.out, plan, cache)
    number = _patch_number(plan, section, variant, cache.path)
    drawn = plan.drawn(number)
    plan.check_section(plan.training[number % len(plan.training)])
    patch = AugmentWorker(cache, plan).patch(drawn)
    folder, name = out
    open_objects(folder).put(name, encode_patch(patch, drawn.model_dump_json()))
    in_cache, equal, why = _compare(cache, number, patch)
    if why:
        print(f"augment: {config.out} was written, but {why}", file=sys.stderr, flush=True)
    return {
        "status": "incomplete" if equal is False else "complete",
        "seconds": round(time.time() - began, 2),
        "startup_seconds": 0.0,
        "patch": number if number < plan.cache.patches else None,
        "stack": drawn.stack,
        "section": section,
        "variant": variant,
        "drawn": drawn.model_dump(mode="json"),
        "in_cache": in_cache,
        "equal": equal,
        "out": config.out,
    }


def _require_same_settings(config: AugmentConfig, plan: AugmentPlan, path: str) -> None:
    """Refuse a setting that would make another patch, instead of leaving it unheard."""
    names = AugmentSettings.model_fields.keys() - _ELSEWHERE
    usual, asked, held = (
        {name: of.model_dump(mode="json")[name] for name in names} for of in (AugmentSettings(), config, plan.settings)
    )
    given = {name: value for name, value in asked.items() if value != usual[name]}
    differing = differences({name: held[name] for name in given}, given)
    if differing:
        raise ConfigError(
            f"--replay makes a patch of cache {path} again, which was made with {named(differing)}; "
            "leave these settings out"
        )


def _target(out: str, plan: AugmentPlan, cache: PatchCache) -> tuple[str, str]:
    """Folder and name of the file to write.

    Raises:
        TargetError: it is a folder, or would replace or disturb what the patch is made from.
    """
    place = absolute(out)
    inputs = {path for stack in plan.sources()["stacks"] for path in stack.values()}
    folder, _, name = place.rpartition("/")
    if "://" not in place and Path(place).is_dir():
        raise TargetError(f"--out {out} is a folder; choose a file name in it, such as {place}/patch.tif")
    if place in inputs or f"{place}/".startswith(f"{cache.path}/"):
        raise TargetError(f"--out {out} would replace an input or lie in the cache; choose another path")
    return folder, name


def _patch_number(plan: AugmentPlan, section: int, variant: int, path: str) -> int:
    """Number of a patch; it may be beyond those that the cache holds.

    Raises:
        ConfigError: no training patch is made of the section.
    """
    places = plan.stacks.places
    if variant < 0:
        raise ConfigError(f"--replay was given variant {variant}; variants count from 0")
    if not 0 <= section < len(places):
        raise ConfigError(
            f"--replay asks for section {section}, but the stacks of cache {path} have {len(places)} "
            f"(0 to {len(places) - 1}); name a section that is there"
        )
    place = places[section]
    if place not in plan.training:
        held_out = "stored whole, for validation" if place in plan.validation else "excluded"
        raise ConfigError(
            f"--replay asks for section {section}, which in cache {path} is {held_out}; name a training section"
        )
    return variant * len(plan.training) + plan.training.index(place)


def _compare(cache: PatchCache, number: int, patch: PatchLike) -> tuple[bool, bool | None, str]:
    """Whether the cache holds the patch, whether with the same bytes, and what is wrong where it does not."""
    try:
        stored: Any = cache.find(number)
    except VolumeError as error:
        return True, False, str(error)
    if stored is None:
        return False, None, ""
    differing = [name for name in ARRAYS if not _same_bytes(getattr(stored, name), getattr(patch, name))]
    if not differing:
        return True, True, ""
    return True, False, (
        f"its {', '.join(reversed(differing))} differs from what cache {cache.path} holds, which was made with other "
        "versions of unet_ray or its libraries, or on another kind of processor"
    )  # fmt: skip


def _same_bytes(one: np.ndarray, other: np.ndarray) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
