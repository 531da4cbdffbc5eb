"""Settings of the evaluate job."""

from typing import Annotated, Literal

from pydantic import Field

from unet_ray.config.base import Config


class EvaluateConfig(Config):
    """Compare a segmentation with labels by the metrics of the ISBI 2012 challenge, section by section."""

    prediction: str
    """Membrane probability or mask: OME-Zarr, zarr or TIFF; a path or URL."""
    labels: str
    """Labels of the same shape."""
    prediction_kind: Literal["membrane", "interior"] = "membrane"
    """What a high value of the prediction means: membrane (our output) or interior (the challenge's submissions)."""
    label_kind: Literal["interior", "membrane", "instances"] = "interior"
    """What labels mean: interior (bright = inside a cell), membrane (bright = membrane), instances (ids)."""
    sections: tuple[str, ...] = ()
    """Sections to score: numbers, A:B or A:B:STEP; none: all."""
    threshold_sections: tuple[str, ...] = ()
    """Sections, such as those of validation, whose best common threshold the scores are also given at; they must not be among the scored ones."""
    images: str | None = None
    """Raw images, for the report's pictures alone."""
    report: str | None = None
    """Folder for metrics.json and pictures, a path or URL."""
    workers: Annotated[int, Field(ge=1)] | None = None
    """Sections scored at once; None: as many as there are CPUs."""
