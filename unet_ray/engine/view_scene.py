"""What the viewer shows, as its page, neuroglancer and its server each need it."""

from dataclasses import dataclass, field, replace

from unet_ray.colours import class_colour
from unet_ray.config.view import ViewConfig
from unet_ray.engine.view_layers import ViewLayer, grey_range
from unet_ray.errors import ConfigError, VolumeError
from unet_ray.report.neuroglancer import LinkedLayer
from unet_ray.report.tile_png import grey, numbered, overlay
from unet_ray.storage.image_levels import ImageLevels, open_levels
from unet_ray.storage.ome_image import AXES, CHANNEL
from unet_ray.storage.open_objects import open_objects
from unet_ray.storage.segmentation import Segmentation
from unet_ray.storage.segmentation_layout import CLASSES, MASK
from unet_ray.storage.served_zarr import ServedZarr, StoredZarr, VirtualZarr

RAW, OUTPUT = "raw.zarr", "segmentation.zarr"
# Okabe and Ito's sky blue: beside the orange of the mask, told apart with any kind of colour vision.
_PROBABILITY_COLOUR = (86, 180, 233)
VoxelSize = tuple[float, float, float] | None


@dataclass
class Scene:
    """What is shown.

    Attributes:
        voxel_size_nm: (z, y, x); None: unknown.
        layers: of the page, from the lowest to the highest.
        linked: layers of neuroglancer; the ``url`` of each is its path on the server.
        groups: what is served as zarr, by the first part of its path.
        remarks: what the user should know, a sentence each.
    """

    voxel_size_nm: VoxelSize = None
    layers: list[ViewLayer] = field(default_factory=list)
    linked: list[LinkedLayer] = field(default_factory=list)
    groups: dict[str, ServedZarr] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)


def open_scene(config: ViewConfig) -> Scene:
    """Open everything; no voxel but a sample for the grey levels is read.

    Raises:
        InputError: nothing to show, or it cannot be opened, or the two are not of one shape.
    """
    if config.volume is None and config.segmentation is None:
        raise ConfigError("neither --volume nor --segmentation was given; name what is to be shown")
    raw = None if config.volume is None else open_levels(config.volume)
    output = None if config.segmentation is None else _open_segmentation(config.segmentation)
    images = [image for image in (raw, None if output is None else output[0][0]) if image is not None]
    volumes = [image.volumes[0] for image in images]
    if len({volume.shape for volume in volumes}) > 1:
        raise VolumeError(
            f"--volume {config.volume} has shape {volumes[0].shape} but --segmentation {config.segmentation} "
            f"{volumes[1].shape} (z, y, x); give the volume that was segmented"
        )
    known = [volume.voxel_size_nm for volume in volumes if volume.voxel_size_nm is not None]
    scene = Scene(config.voxel_size_nm or (known[0] if known else None))
    if scene.voxel_size_nm is None:
        scene.remarks.append("the voxel size is not known, so lengths are in voxels; give it with --voxel-size-nm")
    if raw is not None:
        _add_raw(scene, raw)
    if output is not None and config.segmentation is not None:
        _add_segmentation(scene, config.segmentation, *output)
    return scene


def _open_segmentation(path: str) -> tuple[list[ImageLevels], ImageLevels]:
    """Probabilities, one per class, and the label image."""
    segmentation = Segmentation(path)
    if segmentation.attributes() is None:
        raise VolumeError(f"cannot find a segmentation at {path}; check --segmentation")
    classes = segmentation.classes()
    channels = (None,) if classes == 1 else tuple(range(classes))
    label = MASK if classes == 1 else CLASSES
    return [open_levels(path, channel) for channel in channels], open_levels(f"{path.rstrip('/')}/{label}")


def _add_raw(scene: Scene, raw: ImageLevels) -> None:
    value_range = grey_range(raw)
    scene.layers.append(ViewLayer("raw", "grey", raw, grey(), value_range, 1.0, "#7f7f7f"))
    if raw.group is None:
        scene.groups[RAW] = VirtualZarr(raw.volumes[0], scene.voxel_size_nm)
        scene.linked.append(LinkedLayer("raw", "image", RAW, value_range=value_range))
        return
    scene.groups[RAW] = StoredZarr(raw.group)
    version = 2 if open_objects(raw.group).size("zarr.json") is None else 3
    scene.linked.append(LinkedLayer("raw", "image", RAW, version, value_range, voxel_size_nm=_corrected(scene, raw)))


def _add_segmentation(scene: Scene, path: str, probabilities: list[ImageLevels], labels: ImageLevels) -> None:
    scene.groups[OUTPUT] = StoredZarr(path)
    classes, dtype = len(probabilities), probabilities[0].volumes[0].dtype
    value_range = (0.0, 255.0 if dtype == "uint8" else 1.0)
    # All at once would mix their colours. The mask lies over the volume; without one the probability says more.
    mask_first = bool(scene.layers) or classes > 1
    for index, image in enumerate(probabilities):
        name = "probability" if classes == 1 else f"probability of class {index}"
        colour = _PROBABILITY_COLOUR if classes == 1 else class_colour(index)
        scene.layers.append(
            ViewLayer(name, "probability", image, overlay(colour), value_range, 0.6, _css(colour), not mask_first)
        )
        if dtype == "uint8":
            linked = LinkedLayer(name, "image", OUTPUT, 3, value_range, colour, visible=not mask_first)
            channel = None if classes == 1 else index
            scene.linked.append(replace(linked, channel=channel, voxel_size_nm=_corrected(scene, image)))
    if dtype != "uint8":
        scene.remarks.append(f"neuroglancer does not show {dtype}, so its link leaves the probability out")
    name, numbers = ("membrane", [1]) if classes == 1 else ("classes", list(range(classes)))
    colours = {number: class_colour(number) for number in numbers}
    swatch = _css(colours[numbers[-1]]) if classes == 1 else _stripes([*colours.values()])
    scene.layers.append(ViewLayer(name, "label", labels, numbered(colours), (0, 255), 0.4, swatch, mask_first))
    group = f"{OUTPUT}/{MASK if classes == 1 else CLASSES}"
    linked = LinkedLayer(name, "segmentation", group, segments=colours, voxel_size_nm=_corrected(scene, labels))
    scene.linked.append(replace(linked, visible=mask_first or dtype != "uint8"))


def _corrected(scene: Scene, image: ImageLevels) -> VoxelSize:
    """The scene's voxel size where the image's own metadata tells another."""
    if image.volumes[0].voxel_size_nm == scene.voxel_size_nm:
        return None
    if image.axes not in (AXES, (CHANNEL, *AXES)):
        remark = f"neuroglancer shows {image.group} in the voxel size of its own metadata"
        scene.remarks.append(f"{remark}, whose axes are {' '.join(image.axes)}")
        return None
    return scene.voxel_size_nm


def _css(colour: tuple[int, int, int]) -> str:
    return "rgb({} {} {})".format(*colour)


def _stripes(colours: list[tuple[int, int, int]]) -> str:
    step = 100 / len(colours)
    stops = ", ".join(f"{_css(c)} {k * step:.4g}% {(k + 1) * step:.4g}%" for k, c in enumerate(colours))
    return f"linear-gradient(90deg, {stops})"
