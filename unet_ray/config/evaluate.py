"""Settings of the evaluate job."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from unet_ray.config.base import Config, Place


class EvaluateConfig(Config):
    """Compare segmentations with labels by the metrics of the ISBI 2012 challenge, section by section."""

    prediction: tuple[Place, ...]
    """Membrane probability or mask: OME-Zarr, zarr or TIFF; a path or URL. Several are scored side by side."""
    labels: Place
    """Labels of the same shape."""
    prediction_kind: tuple[Literal["membrane", "interior"], ...] = ("membrane",)
    """What a high value of the prediction means: membrane (our output) or interior (the challenge's submissions); one for all predictions or one each."""
    label_kind: Literal["interior", "membrane", "instances", "classes"] = "interior"
    """What labels mean: interior (bright = inside a cell), membrane (bright = membrane), instances (ids), classes (indices from 0; predictions are indices, too, and the scores each class's Dice and IoU)."""
    ignore_label: int | None = None
    """Label value of pixels that nobody labelled; they are in no count, and cells end there in labels and prediction alike."""
    ignore_masks: Place | None = None
    """Mask stack of the labels' shape; pixels above 0 are in no count, nor are those of --ignore-label."""
    sections: tuple[str, ...] = ()
    """Sections to score: numbers, A:B or A:B:STEP; none: all."""
    threshold_sections: tuple[str, ...] = ()
    """Sections, such as those of validation, at whose threshold the scores are also given: the middle of the three with the highest sum of V_rand and V_info; they must not be among the scored ones."""
    model: tuple[Place, ...] = ()
    """Model file that made the prediction, one for all predictions or one each: it tells which sections it was trained on. Only where the prediction does not tell (TIFF, or not ours)."""
    images: Place | None = None
    """Raw images: for the report's pictures, and to recognise sections that a model was trained on. Our segmentations name theirs."""
    bootstrap: Annotated[int, Field(ge=0, le=1_000_000)] = 1000
    """Stacks of sections drawn with replacement for the 95 % intervals; 0: no intervals."""
    report: Place | None = None
    """Folder for report.html, metrics.json, metrics.csv and sections.png, a path or URL."""
    workers: Annotated[int, Field(ge=1)] | None = None
    """Sections scored at once; None: as many as there are CPUs."""

    @field_validator("prediction", "prediction_kind", "model", mode="before")
    @classmethod
    def _one_alone(cls, given: Any) -> Any:
        return (given,) if isinstance(given, str) else given

    @model_validator(mode="after")
    def _one_for_all_or_one_each(self) -> Self:
        count = len(self.prediction)
        if count == 0:
            raise ValueError("--prediction names nothing; name at least one prediction")
        for option, given, fewest in (("prediction-kind", self.prediction_kind, 1), ("model", self.model, 0)):
            if len(given) not in {fewest, 1, count}:
                raise ValueError(
                    f"--{option} is given {len(given)} times for {count} predictions; give one for all or one each"
                )
        if self.label_kind == "classes" and (self.threshold_sections or "interior" in self.prediction_kind):
            raise ValueError("--label-kind classes has no thresholds and no polarity; leave those options out")
        return self
