"""What an evaluation compares: predictions and labels, opened and checked before anything is started."""

import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from unet_ray.config.evaluate import EvaluateConfig
from unet_ray.config.sections import parse_sections
from unet_ray.engine.holdout import Training, known_training
from unet_ray.engine.labelled_stacks import read_section, stack_names
from unet_ray.errors import ConfigError, LabelError, OutputMismatchError, VolumeError
from unet_ray.numerics.labels import LabelKind, class_map
from unet_ray.numerics.thresholds import Polarity, cell_probability
from unet_ray.storage.segmentation import Segmentation
from unet_ray.storage.segmentation_layout import CLASSES, MASK
from unet_ray.storage.volume import Volume, open_volume


@dataclass(frozen=True)
class Labels:
    """The truth: its volume, what its values mean, and which pixels nobody labelled.

    Attributes:
        volume: of labels.
        kind: what its values mean.
        ignore_label: the value of pixels that nobody labelled.
        masks: volume of the labels' shape, above 0 at other pixels that nobody labelled.
    """

    volume: Volume
    kind: LabelKind
    ignore_label: int | None = None
    masks: Volume | None = None

    def read(self, z: int) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_] | None]:
        """Where section ``z`` is cell interior, and where nobody labelled it; errors are `read_classes`'."""
        classes, ignore = self.read_classes(z)
        return classes == 0, ignore

    def read_classes(self, z: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_] | None]:
        """Class map of section ``z`` (1 = membrane, or indices), and where nobody labelled it (None: nowhere), (y, x).

        Raises:
            LabelError: the labels do not fit their kind, or no pixel is labelled.
        """
        name = f"labels of {self.volume.path}, section {z},"
        mask = None if self.masks is None else read_section(self.masks, z) > 0
        classes, ignore = class_map(
            read_section(self.volume, z), self.kind, ignore_label=self.ignore_label, ignore_mask=mask, name=name
        )
        if ignore is not None and ignore.all():
            left_out = [] if self.ignore_label is None else [f"--ignore-label {self.ignore_label}"]
            left_out += [] if self.masks is None else [f"above 0 in --ignore-masks {self.masks.path}"]
            raise LabelError(
                f"{name} have no pixel that is not {' or '.join(left_out)}; leave the section out with --sections"
            )
        return classes, ignore


@dataclass(frozen=True)
class Prediction:
    """One of the predictions that are scored.

    Attributes:
        name: short, and another for each prediction.
        path: as the user gave it.
        volume: probability or mask.
        kind: what a high value means; that of classes means nothing.
        training: what is known of its model's.
        full_scale: the value that means 1; None: the largest of its integer type, or 1.
    """

    name: str
    path: str
    volume: Volume
    kind: Polarity
    training: Training
    full_scale: float | None = None

    def read(self, z: int) -> npt.NDArray[np.float32]:
        """Probability of cell interior in section ``z``, (y, x), 0 to 1.

        Raises:
            VolumeError: the values are no probabilities.
        """
        values = read_section(self.volume, z)
        try:
            return cell_probability(values, self.kind, self.full_scale)
        except VolumeError as error:
            raise VolumeError(f"--prediction {self.path}, section {z}: {error}") from error


@dataclass(frozen=True)
class Inputs:
    """Everything that an evaluation reads; nothing of it is in memory.

    Attributes:
        predictions: at least one.
        labels: of the same shape as each prediction.
        images: of that shape, too; None where the user names none.
        sections: that are scored, ascending.
        fixing: others, that fix a threshold; may be none.
    """

    predictions: tuple[Prediction, ...]
    labels: Labels
    images: Volume | None
    sections: tuple[int, ...]
    fixing: tuple[int, ...]


def open_inputs(config: EvaluateConfig) -> Inputs:
    """Open and check all that `config` names.

    Raises:
        InputError: something is missing, damaged, incomplete, or does not fit the rest.
    """
    labels = open_volume(config.labels)
    volumes = []
    for path in config.prediction:
        volumes.append(_open_classes(path) if config.label_kind == "classes" else _open_membrane(path, config))
        if volumes[-1].shape != labels.shape:
            raise LabelError(
                f"--prediction {path} has shape {volumes[-1].shape} but --labels {config.labels} "
                f"{labels.shape} (z, y, x); give labels of the same sections"
            )
    masks = None if config.ignore_masks is None else open_volume(config.ignore_masks)
    if masks is not None and masks.shape != labels.shape:
        raise LabelError(
            f"ignore masks {masks.path} have shape {masks.shape} but labels {labels.path} {labels.shape} (z, y, x); "
            "give ignore masks of the same sections"
        )
    images = None if config.images is None else open_volume(config.images)
    if images is not None and images.shape != labels.shape:
        raise VolumeError(
            f"--images {config.images} has shape {images.shape} but --labels {labels.shape}; give the same sections"
        )
    depth = labels.shape[0]
    sections = parse_sections(config.sections, depth, "--sections") or tuple(range(depth))
    fixing = parse_sections(config.threshold_sections, depth, "--threshold-sections")
    if shared := sorted(set(fixing) & set(sections)):
        raise ConfigError(
            f"--threshold-sections names section {shared[0]}, which is scored itself; a threshold that was fixed "
            "before has to come from other sections: take it out there or name the others with --sections"
        )
    predictions = []
    each = len(config.prediction)
    kinds = config.prediction_kind * (each // len(config.prediction_kind))
    models = config.model * (each // len(config.model)) if config.model else (None,) * each
    for name, path, volume, kind, model in zip(
        stack_names(config.prediction), config.prediction, volumes, kinds, models, strict=True
    ):
        segmentation = segmentation_at(path)
        _refuse_unwritten(path, segmentation, (*sections, *fixing))
        training = known_training(path, segmentation, model, images)
        predictions.append(Prediction(name, path, volume, kind, training))
    truth = Labels(labels, config.label_kind, config.ignore_label, masks)
    return Inputs(tuple(predictions), truth, images, sections, fixing)


def segmentation_at(path: str) -> Segmentation | None:
    """The segmentation of ours that is at a path, or that the array or label image at the path is part of."""
    try:
        segmentation = Segmentation(re.sub(rf"(/({MASK}|{CLASSES}))?(/\d+)?/*$", "", path))
        return None if segmentation.attributes() is None else segmentation
    except OutputMismatchError:
        return None  # another's zarr, or a file


def _open_membrane(path: str, config: EvaluateConfig) -> Volume:
    """Several classes have no membrane to score; as a mask their indices would be read as probabilities."""
    segmentation = segmentation_at(path)
    if segmentation is not None and segmentation.classes() > 1:
        raise ConfigError(
            f"--prediction {path} tells {segmentation.classes()} classes apart, but --label-kind {config.label_kind} "
            "scores membranes; give labels that are class indices and --label-kind classes, or a segmentation by a "
            "model of at most 2 classes"
        )
    return open_volume(path)


def _open_classes(path: str) -> Volume:
    """Class indices: of a segmentation of ours its label image, whichever part of it is named."""
    segmentation = segmentation_at(path)
    if segmentation is None:
        return open_volume(path)
    return open_volume(f"{segmentation.path}/{CLASSES if segmentation.classes() > 1 else MASK}")


def _refuse_unwritten(path: str, segmentation: Segmentation | None, sections: tuple[int, ...]) -> None:
    """A segmentation of ours must be complete where it is scored: unwritten blocks would read as 0."""
    missing = 0 if segmentation is None else segmentation.unwritten_blocks(sections)
    if missing:
        raise VolumeError(
            f"--prediction {path} has {missing} blocks unwritten in the chosen sections; run the same jobs/segment.py "
            "command again to finish them"
        )
