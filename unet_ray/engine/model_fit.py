"""Whether a model fits a volume, and what it makes of the volume's values and voxel size."""

from unet_ray.config.base import VoxelSize
from unet_ray.config.segment import SegmentConfig
from unet_ray.engine.labelled_stacks import sample_volume
from unet_ray.errors import ConfigError, ModelFileError, VolumeError
from unet_ray.network.model_file import ModelMetadata
from unet_ray.numerics.intensity import IntensityMap
from unet_ray.storage.volume import Volume

# Their indices are stored in 8 bits.
MOST_CLASSES = 256


def check_classes(config: SegmentConfig, classes: int) -> None:
    """Whether what is asked for makes sense for as many classes as the model tells apart; up to 2 are membrane or not.

    Raises:
        ConfigError: a mask's threshold or the challenge's format for several classes.
        ModelFileError: more classes than can be stored.
    """
    if classes <= 2:
        return
    tells = f"model {config.model} tells {classes} classes apart"
    if config.threshold != SegmentConfig.model_fields["threshold"].default:
        raise ConfigError(
            f"--threshold {config.threshold:g} is for a mask of membrane, but {tells}, of which the likeliest is "
            "taken; leave --threshold out"
        )
    if config.tiff_format == "challenge":
        raise ConfigError(
            f"--tiff-format challenge is a submission of membranes, but {tells}; leave it out to have every class's "
            "probability as a channel of --probability-tiff"
        )
    if classes > MOST_CLASSES:
        raise ModelFileError(f"{tells}, but segmentation stores at most {MOST_CLASSES}; train on fewer classes")


def check_fit(config: SegmentConfig, volume: Volume, metadata: ModelMetadata) -> None:
    """Whether the model was trained on such voxels.

    Raises:
        VolumeError: dtype or voxel size differ.
    """
    if config.normalise == "model" and volume.dtype.name != metadata.normalisation.dtype:
        raise VolumeError(
            f"{config.volume} has {volume.dtype.name} voxels but model {config.model} was trained on "
            f"{metadata.normalisation.dtype}; pass --normalise volume to take grey levels from its own percentiles"
        )
    ours, models = config.voxel_size_nm or volume.voxel_size_nm or volume.pixel_size_nm, metadata.voxel_size_nm
    if config.accept_voxel_size or ours is None or models is None:
        return
    # TIFF resolution tags tell y and x alone.
    if any(abs(a / b - 1) > 0.2 for a, b in zip(ours, models[-len(ours) :], strict=True)):
        raise VolumeError(
            f"{config.volume} has voxels of {ours} nm ((z,) y, x) but model {config.model} was trained on {models} nm, "
            "more than 20 % off; rescale the volume or pass --accept-voxel-size"
        )


def voxel_size(config: SegmentConfig, volume: Volume, metadata: ModelMetadata) -> VoxelSize | None:
    """Voxel size (z, y, x) in nm: the one asked for, else the volume's; what that does not tell is the model's."""
    told, models = config.voxel_size_nm or volume.voxel_size_nm, metadata.voxel_size_nm
    if told is not None or models is None or volume.pixel_size_nm is None:
        return told or models
    return (models[0], *volume.pixel_size_nm)


def grey_levels(config: SegmentConfig, volume: Volume, metadata: ModelMetadata) -> IntensityMap:
    """How the volume's values become grey levels."""
    if config.normalise == "volume":
        return IntensityMap.of_sample(sample_volume(volume, range(volume.shape[0])), name=config.volume)
    return IntensityMap(**metadata.normalisation.model_dump())
