"""Settings of the pipeline job: every stage's, under its name."""

from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from unet_ray.config.augment import AugmentSettings
from unet_ray.config.base import Config, Place
from unet_ray.config.segment import SegmentSettings
from unet_ray.config.train import TrainSettings

_Side = Annotated[int, Field(ge=1, le=1_000_000)]


class PhantomSettings(Config):
    """The synthetic volume of the demo."""

    shape: tuple[_Side, _Side, _Side] = (16, 512, 512)
    """Sides (z, y, x), voxels of 50 x 4 x 4 nm."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Another seed is another volume."""


# What 2 CPU cores do in under five minutes: 12 of 16 sections for training, 2 for validation, 2 scored.
DEMO_AUGMENT: dict[str, Any] = {
    "label_kind": "membrane",
    "variants": 20,
    "validation_sections": ("3", "11"),
    "exclude_sections": ("7", "15"),
}
DEMO_TRAIN: dict[str, Any] = {"base_channels": 8, "epochs": 5}


class PipelineConfig(Config):
    """Augment, train, segment and evaluate from one config; with no arguments, a demo on a synthetic volume."""

    output: Place = "demo"
    """Folder for everything: cache.zarr, run, segmentation.zarr, report; with --volume also scored.zarr, the scored sections of the labelled stack; in the demo phantom.zarr."""
    images: Place | None = None
    """Labelled image stack; None: the synthetic volume of the demo."""
    labels: Place | None = None
    """Its labels."""
    ignore_masks: Place | None = None
    """Mask stack of their shape, above 0 at pixels that nobody labelled; see the augment job."""
    volume: Place | None = None
    """Volume to segment; None: the labelled stack itself."""
    mask: Place | None = None
    """Volume that is above 0 where to segment --volume; see the segment job. The labelled stack is segmented whole."""
    score_sections: tuple[str, ...] = ()
    """Sections of the labelled stack to score; none: the excluded sections, else the validation sections."""
    workers: Annotated[int, Field(ge=1)] | None = None
    """Workers of augmentation, segmentation and evaluation; None: as many as fit."""
    train_workers: Annotated[int, Field(ge=1)] = 1
    """Data-parallel training workers."""
    use_gpu: bool = False
    """Train and segment on GPUs."""
    checkpoint_every_steps: Annotated[int, Field(ge=1)] | None = None
    """Steps between training's checkpoints, for epochs that are too long to lose; None: one at the end of each epoch."""
    accept_changed_volume: bool = False
    """Continue segmentations although the volumes' files have changed, as after mending a damaged chunk."""
    overwrite: bool = False
    """Start anew in the output folder."""
    tiff: Place | None = None
    """Mask of the segmented volume as TIFF, a local file, 255 = membrane."""
    phantom: PhantomSettings = PhantomSettings()
    """Synthetic volume of the demo."""
    augment: AugmentSettings = AugmentSettings()
    """Settings of the augment job."""
    train: TrainSettings = TrainSettings()
    """Settings of the train job."""
    segment: SegmentSettings = SegmentSettings()
    """Settings of the segment job."""

    @model_validator(mode="after")
    def _fits_the_hardware(self) -> Self:
        if self.train.precision == "float16" and not self.use_gpu:
            raise ValueError("train.precision float16 needs a GPU; add --use-gpu, or take bfloat16 or float32")
        return self

    def named_defaults(self) -> Self:
        """Each stage's presets, the patches made for the network's, and over them the demo's where no data are named."""
        augment = self.augment.model_copy(update={"for_preset": self.train.preset}).named_defaults()
        train = self.train.named_defaults()
        if self.images is None:
            augment, train = augment.model_copy(update=DEMO_AUGMENT), train.model_copy(update=DEMO_TRAIN)
        return self.model_copy(update={"augment": augment, "train": train})
