"""What an actor of a segmentation does: read a block, predict its tiles, write it; and the probe before."""

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Literal

import numpy as np
import numpy.typing as npt
import ray
import torch

from unet_ray.config.network import layers
from unet_ray.engine.calibration import Calibration, calibrate
from unet_ray.engine.process_memory import keep_freed_memory
from unet_ray.engine.seam_probe import SeamCertificate, probe
from unet_ray.engine.segment_plan import probe_box
from unet_ray.errors import UnetRayError
from unet_ray.geometry.box import Box
from unet_ray.geometry.receptive_field import margin_px, pooling_factor
from unet_ray.network.model_file import decode
from unet_ray.network.out_of_memory import is_out_of_memory
from unet_ray.network.predict import Precision, Predictor, Tta, hardware_precision
from unet_ray.numerics.intensity import IntensityMap
from unet_ray.storage.segmentation import Segmentation, SegmentationLayout
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
    use_gpu: bool
    tta: Tta = "none"
    tiles_at_once: int = 1

    @property
    def crop(self) -> int:
        """Pixels between the edge of a network's output and its tile: halo - margin."""
        config = decode(self.model)[0]
        return self.layout.blocks.tiles.halo[1] - margin_px(layers(config))

    def read(self, box: Box) -> npt.NDArray[np.uint8]:
        """Grey values of a box, mirrored outside the volume."""
        return self.intensity.apply(self.volume.read(box))

    def predictor(self, precision: Precision) -> Predictor:
        """The model on this worker's device."""
        torch.set_num_threads(self.threads)
        keep_freed_memory()
        config, state, _ = decode(self.model)
        return Predictor(config, state, "cuda" if self.use_gpu else "cpu", precision, self.tta)


class SegmentWorker:
    """Reads, predicts and writes blocks; each tile is a forward pass (or several, turned) of the same shape."""

    def __init__(self, job: Job, precision: Precision) -> None:
        self.job, self.precision, self.crop = job, precision, job.crop
        self.most = job.tiles_at_once

    @classmethod
    def in_actor(cls, job: "ray.ObjectRef[Job]", precision: Precision) -> "SegmentWorker":
        """A worker whose job, with the model, is taken from the object store once per node."""
        return cls(ray.get(job), precision)

    @cached_property
    def predictor(self) -> Predictor:
        """The model, loaded when the first block is computed."""
        return self.job.predictor(self.precision)

    def is_done(self, block: int) -> bool:
        """Whether the block's record is there."""
        return self.job.output.is_done(self.job.layout.blocks, block)

    def read(self, block: int) -> npt.NDArray[np.uint8]:
        """Grey values of all that the block's tiles read."""
        blocks = self.job.layout.blocks
        return self.job.read(blocks.shard_box(block).grow(blocks.tiles.halo))

    def compute(self, block: int, data: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Membrane probability of the block, 0..255 = 0..1, clipped to the volume."""
        blocks = self.job.layout.blocks
        whole = blocks.write_box(block)
        origin = blocks.shard_box(block).grow(blocks.tiles.halo).start
        found = np.empty(whole.shape, np.uint8)
        for tiles in batched(blocks.tiles_of(block), self.job.tiles_at_once):
            windows = [data[blocks.tiles.read_box(tile).relative_to(origin).slices] for tile in tiles]
            # A short batch is filled up: passes of one shape give the same bits.
            windows += windows[:1] * (self.job.tiles_at_once - len(tiles))
            for tile, probability in zip(tiles, self._predict(np.stack(windows)), strict=False):
                write = blocks.tiles.write_box(tile)
                _, height, width = write.shape
                inside = probability[self.crop : self.crop + height, self.crop : self.crop + width]
                found[write.relative_to(whole.start).slices] = np.rint(inside * 255)
        return found

    def _predict(self, windows: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Probability of windows; in halves, from then on, where they do not fit into memory together.

        Raises:
            UnetRayError: not even one fits.
        """
        while True:
            try:
                parts = [self.predictor(part) for part in np.split(windows, range(self.most, len(windows), self.most))]
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                if self.most == 1:
                    raise UnetRayError(_memory_advice(self.job, error)) from error
            else:
                return parts[0] if len(parts) == 1 else np.concatenate(parts)
            # Outside of the except clause, whose traceback keeps the pass's tensors alive.
            self.most = -(-self.most // 2)
            print(f"segment: out of memory; from now on {self.most} tiles at once", file=sys.stderr)

    def encode(self, block: int, result: npt.NDArray[np.uint8]) -> Encoded:
        """Shards of mask and probability."""
        return self.job.output.encode(self.job.layout, block, result, self.job.threshold)

    def write(self, block: int, encoded: Encoded) -> int:
        """Put them; returns the block's voxels."""
        self.job.output.put(encoded)
        return self.job.layout.blocks.write_box(block).voxels


def batched(numbers: Iterable[int], size: int) -> Iterator[list[int]]:
    """Lists of ``size`` numbers, the last one perhaps shorter (`itertools.batched` of Python 3.12)."""
    left = iter(numbers)
    while some := list(islice(left, size)):
        yield some


def _memory_advice(job: Job, error: BaseException) -> str:
    found = " ".join(str(error).split())[:200]
    return (
        f"one tile of {job.layout.blocks.tiles.tile[2]} px does not fit into a worker's memory ({found}); give it "
        "more, or start anew with a smaller --tile-px"
    )


def calibrate_on_worker(
    job: Job, precision: str, tile_px: int | Literal["auto"], tiles_at_once: int | Literal["auto"]
) -> Calibration:
    """Tile side and tiles at once that suit this worker's hardware; what is given is kept."""
    device = "cuda" if job.use_gpu else "cpu"
    resolved: Precision = hardware_precision(device) if precision == "auto" else precision  # type: ignore[assignment]
    predictor = job.predictor(resolved)
    return calibrate(
        predictor, job.volume.shape, predictor.config, device,
        tile_px=None if tile_px == "auto" else tile_px,
        tiles_at_once=None if tiles_at_once == "auto" else tiles_at_once,
    )  # fmt: skip


def probe_on_worker(job: Job, asked: str) -> tuple[SeamCertificate, str]:
    """Precision and seam certificate of a job, and the hardware that they were found on."""
    device = "cuda" if job.use_gpu else "cpu"
    wanted: Precision = hardware_precision(device) if asked == "auto" else asked  # type: ignore[assignment]
    predictors: dict[Precision, Predictor] = {}

    def predict(precision: Precision, window: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        if precision not in predictors:
            predictors[precision] = job.predictor(precision)
        return predictors[precision](np.ascontiguousarray(window))

    tiles = job.layout.blocks.tiles
    box = probe_box(tiles, pooling_factor(layers(decode(job.model)[0])))
    certificate = probe(
        predict, job.read, tiles, box, crop=job.crop, threshold=job.threshold, precision=wanted,
        may_fall_back=asked == "auto",
    )  # fmt: skip
    name = torch.cuda.get_device_name() if job.use_gpu else torch.backends.cpu.get_cpu_capability()
    return certificate, f"{name}, torch {torch.__version__}"
