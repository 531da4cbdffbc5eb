"""Settings of the segment job."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from unet_ray.config.base import Config, Place, VoxelSize


class SegmentSettings(Config):
    """What decides a segmentation, apart from volume and model."""

    tile_px: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Output side of a tile, pixels, a multiple of the network's pooling factor; auto: the fastest for this volume by a short measurement on the hardware; where it takes under five minutes, the side with the fewest pixels to compute."""
    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Membrane where the probability is above this, 0 to 1; several classes have none, there the likeliest is taken."""
    probability_dtype: Literal["uint8", "float16"] = "uint8"
    """Of the stored probabilities: uint8 (0..255 = 0..1), or float16 (0..1; twice the bytes, for thresholds close to 0 or 1)."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the network; auto: bfloat16 where the hardware computes with it and the seam probe passes."""
    tta: Literal["none", "flips", "dihedral"] = "none"
    """Test-time augmentation: predict each tile once, with its flips (4 times the work) or in all 8 symmetries of the square, and average."""
    normalise: Literal["model", "volume"] = "model"
    """Grey levels by the mapping stored with the model, or by percentiles of a sample of this volume."""
    voxel_size_nm: VoxelSize | None = None
    """Voxel size z y x in nm; None: what the volume's file tells, the rest from the model; an output that is continued keeps its own."""
    accept_voxel_size: bool = False
    """Segment a volume whose voxel size is more than 20 % off the model's."""


class SegmentConfig(SegmentSettings):
    """Segment a volume tile by tile, exactly, into OME-Zarr and TIFF; running it again resumes."""

    volume: Place
    """Volume: TIFF, local folder or glob of TIFF or PNG images, zarr, OME-Zarr; a path or URL."""
    model: Place
    """Model file that the train job wrote (model.safetensors)."""
    output: Place
    """OME-Zarr image to write (P.zarr), a path or URL: membrane probability with the mask as label image; of several classes, each one's probability with the likeliest as label image."""
    mask: Place | None = None
    """Volume that is above 0 where to segment, such as to leave out empty resin: of the volume's shape, or of that divided by a whole factor per axis and rounded up. Outside, probability and mask are 0."""
    sections: tuple[str, ...] = ()
    """Sections to segment: numbers, A:B or A:B:STEP; none: all. A larger choice later continues the same output."""
    roi: str | None = None
    """Region to segment, z0:z1,y0:y1,x0:x1 in voxels, stops excluded, an empty end the volume's own; None: all. The output keeps the whole volume's shape; TIFF files hold the region alone."""
    tiff: Place | None = None
    """Mask as TIFF, a local file, 255 = membrane; of several classes the index of the likeliest."""
    probability_tiff: Place | None = None
    """Membrane probability as TIFF, a local file, 0..255 = 0..1 whatever is stored, of several classes a channel each; challenge format: float32, 1 = cell."""
    tiff_format: Literal["plain", "challenge"] = "plain"
    """challenge: --probability-tiff becomes the ISBI 2012 submission, 32-bit float, 1 = cell."""
    workers: Annotated[int, Field(ge=1)] | None = None
    """Worker processes that hold the model; None: as many as fit."""
    threads: Annotated[int, Field(ge=1)] | None = None
    """CPUs of each worker; None: 1, more where memory does not hold a worker per CPU, where --workers are fewer than CPUs, or beside a GPU, up to 4; resolved once and stored in the output."""
    use_gpu: bool = False
    """Predict on GPUs."""
    workers_per_gpu: Annotated[int, Field(ge=1, le=16)] | None = None
    """Workers that share a GPU: one reads, compresses and copies while another computes; None: one for every 4 CPUs beside it, up to 4."""
    tiles_at_once: Annotated[int, Field(ge=1, le=10_000)] | Literal["auto"] = "auto"
    """Tiles of one forward pass; auto: 1 on a CPU, measured on a GPU; resolved once and stored in the output."""
    accept_changed_volume: bool = False
    """Continue the output although the volume's files have changed, as after mending a damaged chunk."""
    dry_run: bool = False
    """Only tell how long it will take, its memory, bytes and cost, from a few real blocks; nothing is written."""
    price_per_node_hour: Annotated[float, Field(ge=0)] | None = None
    """Price of a node for an hour, in any currency, for the cost that --dry-run tells."""
    verify: bool = False
    """Check every shard's checksums first; what fails is renamed *.damaged and made again, whatever sections and region are chosen."""
    overwrite: bool = False
    """Remove the output and start anew."""

    @model_validator(mode="after")
    def _formats_a_file_that_it_writes(self) -> Self:
        if self.tiff_format == "challenge" and self.probability_tiff is None:
            raise ValueError(
                "tiff_format challenge is that of --probability-tiff, which names no file; name one, or leave "
                "--tiff-format out"
            )
        return self

    @model_validator(mode="after")
    def _shares_gpus_that_it_uses(self) -> Self:
        if self.workers_per_gpu is not None and not self.use_gpu:
            raise ValueError(
                f"workers_per_gpu {self.workers_per_gpu} has no effect without a GPU; add --use-gpu, or on CPUs say "
                "how many workers with --workers"
            )
        return self
