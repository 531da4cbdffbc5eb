"""Whether scored sections were held out: their images beside the fingerprints of what a model was trained on."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from unet_ray.config.sections import written
from unet_ray.engine.model_source import read_model_file
from unet_ray.errors import ModelFileError, UnetRayError
from unet_ray.storage.fingerprint import differences, digest
from unet_ray.storage.objects import absolute
from unet_ray.storage.segmentation import Segmentation
from unet_ray.storage.volume import Volume, open_volume

Status = Literal["held out", "trained", "chose the model", "unknown"]
STATUS: Mapping[str, Status] = {"train": "trained", "validation": "chose the model"}


@dataclass(frozen=True)
class Training:
    """What is known of the sections that a prediction's model has seen.

    Attributes:
        statuses: by what tells an image section from others, its pixels or the order of its grey levels.
        images: volumes that may show what the network saw; a section is recognised in any of them.
        unknown: why nothing can be told, "" where it can.
    """

    statuses: Mapping[str, Status]
    images: tuple[Volume, ...]
    unknown: str = ""

    def status(self, z: int) -> Status:
        """What section ``z`` was to the model; reads its images.

        An image that was stored anew with other grey levels is recognised as long as none of them became one; see
        `unet_ray.storage.volume.Volume.order_digest`. Models from before that was noted know the very pixels alone.
        """
        if self.unknown:
            return "unknown"
        found = {self._in(volume, z) for volume in self.images}
        return next(status for status in ("trained", "chose the model", "held out") if status in found)

    def _in(self, volume: Volume, z: int) -> Status:
        for digest_of in (volume.section_digest, volume.order_digest):
            status = self.statuses.get(digest_of(z) or "")
            if status is not None:
                return status
        return "held out"


def known_training(path: str, segmentation: Segmentation | None, model: str | None, images: Volume | None) -> Training:
    """What can be told of the training behind a prediction.

    Args:
        path: of the prediction, for errors.
        segmentation: of ours that the prediction is or is part of; it knows its model's training sections.
        model: file of the model that made the prediction, where the user names it.
        images: that the user names.

    Raises:
        ModelFileError: the model cannot be read, or did not make the prediction.
    """
    attributes = {} if segmentation is None else segmentation.attributes() or {}
    sections: Sequence[Mapping[str, Any]] | None = attributes.get("training_sections")
    if model is not None:
        from unet_ray.network.model_file import decode  # loads PyTorch, which nothing else of an evaluation needs

        data = read_model_file(model)
        made_by = attributes.get("made_with", {}).get("model")
        if made_by not in (None, digest(data)):
            raise ModelFileError(
                f"--model {model} did not make --prediction {path}, which names another model; give the one that did"
            )
        sections = [section.model_dump() for section in decode(data, model)[2].training_sections]
    if sections is None:
        return Training({}, (), "nothing tells which model made it; name the model with --model")
    if not sections:
        return Training({}, (), "its model does not tell which sections it was trained on")
    shown = _volumes(attributes, images)
    if not shown:
        return Training({}, (), "the images that it was made from are not at hand; name them with --images")
    # A section in both roles, as that of a model it was begun from, was trained on.
    ordered = sorted(sections, key=lambda section: section["role"] == "train")
    statuses = {
        digest: STATUS[section["role"]]
        for section in ordered
        for digest in (section["fingerprint"], section.get("grey_order"))
        if digest is not None
    }
    return Training(statuses, shown)


def _volumes(attributes: Mapping[str, Any], images: Volume | None) -> tuple[Volume, ...]:
    """The images named, and the volume that was segmented if it is still where it was, and unchanged."""
    named = () if images is None else (images,)
    source = attributes.get("sources", {}).get("volume")
    if source is None or (images is not None and absolute(images.path) == source):
        return named
    try:
        volume = open_volume(source)
        changed = differences(attributes["made_with"]["volume"], volume.identity())
    except (UnetRayError, OSError):
        return named
    return named if changed else (*named, volume)


def holdout(statuses: Mapping[int, Status], unknown: str) -> dict[str, Any]:
    """What `Training.status` gave for each scored section, joined.

    Returns:
        ``status``, the worst of the sections'; ``trained_sections`` and ``chose_the_model``, their numbers; and
        ``sentence``, the same for people.
    """
    trained, chose = (_with(statuses, status) for status in ("trained", "chose the model"))
    told = [
        *([f"trained on sections {written(trained)}"] if trained else []),
        *([f"sections {written(chose)} chose the model"] if chose else []),
    ]
    status: Status = "trained" if trained else "chose the model" if chose else "held out"
    if unknown:
        status, told = "unknown", [f"unknown: {unknown}"]
    return {
        "status": status,
        "trained_sections": trained,
        "chose_the_model": chose,
        "sentence": "; ".join(told) or "held out",
    }


def holdout_warnings(name: str, found: Mapping[str, Any]) -> Iterable[str]:
    """A sentence for scores that are better than on sections the model has not seen."""
    if trained := found["trained_sections"]:
        yield (
            f"{name} was TRAINED on {len(trained)} of the scored sections ({written(trained)}): its scores tell what "
            "it remembers, not how it does on others; score sections that were held out, with --sections"
        )
    if chose := found["chose_the_model"]:
        yield (
            f"{name}'s model was chosen by {len(chose)} of the scored sections ({written(chose)}), which makes its "
            "scores rather too good; score sections that were excluded, with --sections"
        )


def _with(statuses: Mapping[int, Status], wanted: str) -> list[int]:
    return sorted(z for z, status in statuses.items() if status == wanted)
