"""What a segment command asks for, opened and checked before a cluster is touched."""

import sys
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from unet_ray.config.sections import parse_roi, parse_sections
from unet_ray.config.segment import SegmentConfig
from unet_ray.engine.model_fit import check_classes, check_fit, grey_levels, voxel_size
from unet_ray.engine.model_source import read_model_file
from unet_ray.engine.segment_plan import CUT, layout_for, resolve_tile_px
from unet_ray.engine.segment_worker import Job
from unet_ray.errors import ConfigError
from unet_ray.geometry.block_set import BlockSet
from unet_ray.geometry.box import Box, triple
from unet_ray.network.model_file import ModelMetadata, decode
from unet_ray.report.progress import Progress
from unet_ray.storage.fingerprint import digest
from unet_ray.storage.mask_volume import open_mask
from unet_ray.storage.objects import absolute
from unet_ray.storage.owned_group import ROOT
from unet_ray.storage.segmentation import FORMAT_VERSION, Segmentation
from unet_ray.storage.segmentation_layout import SegmentationLayout
from unet_ray.storage.targets import check_folder_target, check_tiff_targets
from unet_ray.storage.volume import open_volume


@dataclass(frozen=True)
class Request:
    """What a command asks for.

    Attributes:
        config: as it was given.
        job: what workers need; of a new output the layout may change with its calibration.
        asked: what decides the output's voxels, as far as it is known beforehand.
        stored: attributes of the output that is continued; None: it is a new one.
        sections: that are chosen, ascending.
        region: that is chosen, voxels (z, y, x).
        metadata: of the model.
        lost: blocks that a verification found missing; they are made again wherever they are.
    """

    config: SegmentConfig
    job: Job
    asked: dict[str, Any]
    stored: dict[str, Any] | None
    sections: tuple[int, ...]
    region: Box
    metadata: ModelMetadata
    lost: tuple[int, ...] = ()

    def chosen(self) -> BlockSet:
        """Blocks that the chosen sections of the region touch, and those that were lost."""
        blocks = self.job.layout.blocks
        _, height, width = blocks.tiles.volume
        chosen = BlockSet(blocks.num_blocks)
        for layer in sorted({z // blocks.shard[0] for z in self.sections}):
            z = layer * blocks.shard[0]
            for start, stop in blocks.runs_touching(self.region.intersect(Box((z, 0, 0), (z + 1, height, width)))):
                chosen.add_run(start, stop)
        for block in self.lost:
            chosen.add(block)
        return chosen


def open_request(config: SegmentConfig) -> Request:
    """Open and check volume, mask, model and output.

    Raises:
        InputError: one of them is wrong, the output was made otherwise, or a TIFF file is asked for in a wrong place.
    """
    inputs = [("--volume", config.volume), ("--mask", config.mask), ("--model", config.model)]
    tiffs = {"--tiff": config.tiff, "--probability-tiff": config.probability_tiff}
    check_tiff_targets(tiffs, inputs, [config.output])
    check_folder_target("--output", config.output, (ROOT,), inputs)
    volume = open_volume(config.volume)
    mask = None if config.mask is None else open_mask(config.mask, volume)
    region = parse_roi(config.roi, volume.shape, "--roi")
    named = parse_sections(config.sections, volume.shape[0], "--sections") or range(volume.shape[0])
    sections = tuple(z for z in named if region.start[0] <= z < region.stop[0])
    if not sections:
        raise ConfigError(f"--sections names no section of --roi {config.roi}; widen one of them")
    model = read_model_file(config.model)
    network, _, metadata = decode(model, config.model)
    check_classes(config, network.classes)
    check_fit(config, volume, metadata)
    output = Segmentation(config.output)
    intensity = grey_levels(config, volume, metadata)
    asked = {
        "format_version": FORMAT_VERSION,
        "shape": list(volume.shape),
        "volume": volume.identity(),
        "model": digest(model),
        "intensity": intensity.model_dump(),
        "tta": config.tta,
        "probability_dtype": config.probability_dtype,
        **{key: value for key in ("tile_px", "precision") if (value := getattr(config, key)) != "auto"},
        # Only where there is one, so that outputs from before masks were known go on.
        **({} if mask is None else {"mask": mask.identity()}),
    }
    expected = asked.keys() - ({"volume"} if config.accept_changed_volume else set())
    stored = None if config.overwrite else output.refuse_other({"mask": None} | {key: asked[key] for key in expected})
    tile_px = stored["made_with"]["tile_px"] if stored else resolve_tile_px(config.tile_px, volume.shape, network)
    factors = None if stored is None else tuple(triple(factor) for factor in stored["pyramid"])
    continued = stored is not None and config.voxel_size_nm is None
    voxel_nm = output.voxel_size_nm() if continued else voxel_size(config, volume, metadata)
    cut = CUT if stored is None else stored.get("cut", 1)
    layout = layout_for(volume.shape, tile_px, network, voxel_nm, factors, config.probability_dtype, cut)
    job = Job(
        volume, model, intensity, output, layout, config.threshold, threads=1, gpus_each=float(config.use_gpu),
        tta=config.tta, tiles_at_once=1 if stored is None else stored.get("tiles_at_once", 1), mask=mask,
    )  # fmt: skip
    return Request(config, job, asked, stored, sections, region, metadata)


def take_over(request: Request) -> Request:
    """Make the output ready to be written: remove it, check it, or bring its attributes up to what is asked for.

    Raises:
        InputError: nothing can be written there.
    """
    config, output, layout, stored = request.config, request.job.output, request.job.layout, request.stored
    if stored is None:  # one that is complete may be read-only
        output.objects.require_writable()
    if config.overwrite:
        output.overwrite()  # only now: a wrong setting must not cost the old output
    if stored is None:
        return request
    if config.verify:
        request = replace(request, lost=_verified(output, layout, config.output))
    if layout.classes == 1 and stored["threshold"] != config.threshold:
        told = f"{config.threshold:g}, which was {stored['threshold']:g}"
        print(f"segment: all of the mask of {config.output} is made again with --threshold {told}", file=sys.stderr)
        output.drop_masks(layout)
        stored = stored | {"threshold": config.threshold}
        output.set_attributes(stored)
    if config.accept_changed_volume:
        stored = stored | {
            "made_with": stored["made_with"] | {"volume": request.asked["volume"]},
            "sources": {"volume": absolute(config.volume)},
        }
        output.set_attributes(stored)
    if config.voxel_size_nm is not None and config.voxel_size_nm != output.voxel_size_nm():
        output.create(layout, stored)
        told = " ".join(f"{side:g}" for side in config.voxel_size_nm)
        print(f"segment: the voxel size of {config.output} is {told} nm from now on", file=sys.stderr)
    return replace(request, stored=stored)


def _verified(output: Segmentation, layout: SegmentationLayout, path: str) -> tuple[int, ...]:
    """Set aside and name what is damaged; the blocks of level 0 that are missing since, now or after an earlier run."""
    with Progress("segment --verify", total=output.shards(layout), unit="shards") as progress:
        damaged = sorted(set(output.verify(layout, on_checked=partial(progress.advance, 1))))
    for level, block in damaged:
        where = f"block {block}" if level == 0 else f"block {block} of level {level}"
        print(f"segment: {where} of {path} is damaged and will be made again", file=sys.stderr)
    lost = output.lost(layout)
    for block in lost:
        if (0, block) not in damaged:
            print(f"segment: block {block} of {path} was there and will be made again", file=sys.stderr)
    return tuple(lost)
