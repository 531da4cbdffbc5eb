"""What an actor of a segmentation does: read a block, predict its tiles, write it; and the probe before."""

import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import ray
import torch
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from unet_ray.config.network import layers
from unet_ray.engine.block_input import BlockInput
from unet_ray.engine.calibration import Calibration, calibrate
from unet_ray.engine.cluster import KILLED, fetched
from unet_ray.engine.constant_windows import ConstantWindows, is_constant
from unet_ray.engine.mask_survey import place_inside
from unet_ray.engine.process_memory import keep_freed_memory, peak_rss_bytes
from unet_ray.engine.seam_probe import SeamCertificate, probe
from unet_ray.engine.segment_plan import probe_box
from unet_ray.errors import UnetRayError
from unet_ray.geometry.box import Box
from unet_ray.geometry.receptive_field import margin_px, pooling_factor
from unet_ray.network.model_file import decode
from unet_ray.network.out_of_memory import is_out_of_memory
from unet_ray.network.predict import OutputDtype, Precision, Predictor, Tta, hardware_precision
from unet_ray.numerics.intensity import IntensityMap
from unet_ray.storage.mask_volume import MaskVolume
from unet_ray.storage.segmentation import Segmentation
from unet_ray.storage.segmentation_layout import SegmentationLayout
from unet_ray.storage.shards import Encoded
from unet_ray.storage.volume import Volume


@dataclass(frozen=True)
class Job:
    """All that an actor needs to segment any block."""

    volume: Volume
    model: bytes
    intensity: IntensityMap
    output: Segmentation
    layout: SegmentationLayout
    threshold: float
    threads: int
    gpus_each: float
    tta: Tta = "none"
    tiles_at_once: int = 1
    mask: MaskVolume | None = None

    @property
    def device(self) -> Literal["cpu", "cuda"]:
        """Where its workers compute."""
        return "cuda" if self.gpus_each else "cpu"

    @property
    def crop(self) -> int:
        """Pixels between the edge of a network's output and its tile: halo - margin."""
        config = decode(self.model)[0]
        return self.layout.blocks.tiles.halo[1] - margin_px(layers(config))

    def read(self, box: Box) -> npt.NDArray[np.uint8]:
        """Grey values of a box, mirrored outside the volume."""
        return self.intensity.apply(self.volume.read(box))

    def predictor(self, precision: Precision, crop: int = 0, dtype: OutputDtype = "float32") -> Predictor:
        """The model on this worker's device; what it returns is cropped, and of the dtype."""
        torch.set_num_threads(self.threads)
        keep_freed_memory()
        config, state, _ = decode(self.model)
        return Predictor(config, state, self.device, precision, self.tta, crop, dtype)

    def predictor_of_tiles(self, precision: Precision) -> Predictor:
        """What it returns is the tile alone, as it is stored."""
        return self.predictor(precision, self.crop, self.layout.dtype)


class SegmentWorker:
    """Reads, predicts and writes blocks; each tile is a forward pass (or several, turned) of the same shape."""

    def __init__(self, job: Job, precision: Precision) -> None:
        self.job, self.precision = job, precision
        self.most, self.halved = job.tiles_at_once, 0
        self._constant = ConstantWindows()
        self._counts: dict[int, Counter[str]] = {}

    @classmethod
    def in_actor(cls, job: "ray.ObjectRef[Job]", precision: Precision) -> "SegmentWorker":
        """A worker whose job, with the model, is taken from the object store once per node."""
        return cls(ray.get(job), precision)

    @cached_property
    def predictor(self) -> Predictor:
        """The model, loaded when the first block is computed."""
        return self.job.predictor_of_tiles(self.precision)

    def is_done(self, block: int) -> bool:
        """Whether the block's record is there."""
        return self.job.output.is_done(self.job.layout, block)

    def read(self, block: int) -> BlockInput:
        """Grey values of all that the block's tiles read, and which of its voxels are segmented."""
        blocks = self.job.layout.blocks
        inside = None if self.job.mask is None else self.job.mask.inside(blocks.write_box(block))
        if inside is not None and not inside.any():
            return BlockInput(np.empty((0, 0, 0), np.uint8), inside)
        return BlockInput(self.job.read(blocks.shard_box(block).grow(blocks.tiles.halo)), inside)

    def compute(self, block: int, data: BlockInput) -> npt.NDArray[Any]:
        """Probability of the block as it is stored, ((k,) z, y, x), clipped to the volume; 0 outside the mask."""
        blocks = self.job.layout.blocks
        whole = blocks.write_box(block)
        origin = blocks.shard_box(block).grow(blocks.tiles.halo).start
        found = np.zeros((*self.job.layout.channels, *whole.shape), self.job.layout.dtype)
        counts = self._counts[block] = Counter(tiles=0, tiles_masked=0, tiles_constant=0)

        def put(tile: int, probability: npt.NDArray[Any]) -> None:
            write = blocks.tiles.write_box(tile)
            _, height, width = write.shape
            found[(..., *write.relative_to(whole.start).slices)] = probability[..., None, :height, :width]

        waiting: list[tuple[int, npt.NDArray[np.uint8]]] = []

        def put_waiting() -> None:
            for (tile, _), probability in zip(waiting, self._predict([w for _, w in waiting]), strict=True):
                put(tile, probability)
            waiting.clear()

        for tile in blocks.tiles_of(block):
            counts["tiles"] += 1
            if not data.has_any(blocks.tiles.write_box(tile).relative_to(whole.start)):
                counts["tiles_masked"] += 1
                continue
            window = data.grey[blocks.tiles.read_box(tile).relative_to(origin).slices]
            if is_constant(window):
                counts["tiles_constant"] += 1
                probability = self._constant.known(window)
                if probability is None:
                    probability = self._predict([window])[0]
                    self._constant.keep(window, probability)
                put(tile, probability)
                continue
            waiting.append((tile, window))
            if len(waiting) == self.job.tiles_at_once:
                put_waiting()
        put_waiting()
        data.clear_outside(found)
        counts["blocks_masked"] = int(counts["tiles_masked"] == counts["tiles"])
        counts["passes_halved"], self.halved = self.halved, 0
        return found

    def counts(self, block: int) -> Counter[str]:
        """Tiles of the block: all, those with nothing inside the mask, those of one grey value; whether all are out.

        And how often memory ran out, so that fewer tiles go through the network at once since.
        """
        return self._counts.pop(block)

    def _predict(self, windows: Sequence[npt.NDArray[np.uint8]]) -> npt.NDArray[Any]:
        """Probability of each window's tile as it is stored; in halves where they do not fit into memory together.

        Once it was so, all that follow are halved, too.

        Raises:
            UnetRayError: not even one fits.
        """
        if len(windows) == 0:
            return np.empty((0, 0, 0), self.job.layout.dtype)
        # A short pass is filled up: passes of one shape give the same bits.
        filled = np.stack([*windows, *[windows[0]] * (self.job.tiles_at_once - len(windows))])
        while True:
            try:
                parts = [self.predictor(part) for part in np.split(filled, range(self.most, len(filled), self.most))]
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                if self.most == 1:
                    raise too_large(self.job, error) from error
            else:
                return np.concatenate(parts)[: len(windows)]
            # Outside of the except clause, whose traceback keeps the pass's tensors alive.
            self.most, self.halved = -(-self.most // 2), self.halved + 1
            print(f"segment: out of memory; from now on {self.most} tiles at once", file=sys.stderr)

    def encode(self, block: int, result: npt.NDArray[Any]) -> Encoded:
        """Shards of label image and probability."""
        return self.job.output.encode(self.job.layout, block, result, self.job.threshold)

    def write(self, block: int, encoded: Encoded) -> int:
        """Put them; returns the block's voxels."""
        self.job.output.put(encoded)
        return self.job.layout.blocks.write_box(block).voxels


def too_large(job: Job, error: BaseException) -> UnetRayError:
    """The sentence for an error that says that memory ran out over one tile."""
    found = " ".join(str(error).split())[:200]
    return UnetRayError(
        f"one tile of {job.layout.blocks.tiles.tile[2]} px does not fit into a worker's memory ({found}); give it "
        "more, or start anew with a smaller --tile-px"
    )


def block_seconds(job: Job, pixels_per_second: float) -> float:
    """What a usual block takes at a rate of window pixels."""
    blocks = job.layout.blocks
    _, height, width = blocks.tiles.read_box(0).shape
    return sum(1 for _ in blocks.tiles_of(0)) * height * width / pixels_per_second


def on_worker(job: Job, function: Callable[..., Any], *arguments: Any, last: bool = False) -> Any:
    """What a function returns on a worker of the kind that will compute; more in `on_workers`."""
    return on_workers(job, function, [arguments], last=last)[0]


def on_workers(
    job: Job,
    function: Callable[..., Any],
    calls: Sequence[tuple[Any, ...]],
    node: str | None = None,
    *,
    last: bool = False,
) -> list[Any]:
    """What a function returns for each call, at once on as many workers of the kind that will compute.

    Args:
        job: of the segmentation.
        function: picklable.
        calls: arguments of each call.
        node: Ray's id of one that holds all of them; None: wherever there is room.
        last: end the workers' processes, and with them the memory that they keep, instead of leaving them to the next
            call.

    Raises:
        UnetRayError: memory ran out, or a process was killed; other errors as they were raised.
    """
    options: dict[str, Any] = {"num_cpus": job.threads, "num_gpus": job.gpus_each}
    if last:
        options["max_calls"] = 1  # on a GPU Ray has it so of itself
    task = ray.remote(**options)(function)
    if node is not None:
        task = task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=True))
    references = [task.remote(*arguments) for arguments in calls]
    try:
        return [fetched(reference) for reference in references]
    except Exception as error:
        if is_out_of_memory(error) or isinstance(error, KILLED):
            raise too_large(job, error) from error
        raise


def calibrate_on_worker(
    job: Job, precision: str, tile_px: int | Literal["auto"], tiles_at_once: int | Literal["auto"], largest_px: int
) -> Calibration:
    """Tile side, up to the largest, and tiles at once that suit this worker's hardware; what is given is kept."""
    resolved: Precision = hardware_precision(job.device) if precision == "auto" else precision  # type: ignore[assignment]
    predictor = job.predictor_of_tiles(resolved)
    return calibrate(
        predictor, job.volume.shape, predictor.config, job.device,
        tile_px=None if tile_px == "auto" else tile_px,
        tiles_at_once=None if tiles_at_once == "auto" else tiles_at_once,
        largest_px=largest_px,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Probed:
    """What a worker of the kind that will compute found out before it starts.

    Attributes:
        certificate: precision and seam.
        hardware: that they were found on.
        pixels_per_second: of windows, halo included, in the last pass of a tile: the first ones warm up.
        rss_bytes: main memory that it took.
    """

    certificate: SeamCertificate
    hardware: str
    pixels_per_second: float
    rss_bytes: int


def probe_on_worker(job: Job, asked: str) -> Probed:
    """Precision, seam certificate, hardware and a first idea of the speed."""
    wanted: Precision = hardware_precision(job.device) if asked == "auto" else asked  # type: ignore[assignment]
    predictors: dict[tuple[Precision, int], Predictor] = {}
    rates: dict[Precision, float] = {}

    def predict(precision: Precision, window: npt.NDArray[np.uint8], crop: int) -> npt.NDArray[np.float32]:
        if (precision, crop) not in predictors:
            predictors[precision, crop] = job.predictor(precision, crop)
        start = time.perf_counter()
        found = predictors[precision, crop](np.ascontiguousarray(window))
        rates[precision] = window.shape[-1] * window.shape[-2] / (time.perf_counter() - start)
        return found

    tiles = job.layout.blocks.tiles
    # What is outside the mask is not used, need not be readable, and may be too blank to tell anything.
    near = None if job.mask is None else place_inside(job.mask, job.layout.blocks)
    box = probe_box(tiles, pooling_factor(layers(decode(job.model)[0])), near)
    certificate = probe(
        predict, job.read, tiles, box, crop=job.crop, threshold=job.threshold, precision=wanted,
        may_fall_back=asked == "auto",
    )  # fmt: skip
    name = torch.cuda.get_device_name() if job.gpus_each else torch.backends.cpu.get_cpu_capability()
    hardware = f"{name}, torch {torch.__version__}"
    return Probed(certificate, hardware, rates[certificate.precision], peak_rss_bytes())
