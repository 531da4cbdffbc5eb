"""Settings of the train job."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field

from unet_ray.config.base import Config

# What each preset's source trains with; default: a recipe that is known to do well on ISBI 2012 in half an hour.
PRESET_TRAINING: dict[str, dict[str, Any]] = {
    "paper": {
        "epochs": 30, "batch_size": 1, "learning_rate": 1e-3, "optimizer": "sgd",
        "schedule": "plateau", "weighted": True, "random_dihedral": False,
    },
    "keras": {
        "epochs": 30, "batch_size": 2, "learning_rate": 1e-4, "optimizer": "adam",
        "schedule": "plateau", "weighted": False, "random_dihedral": False,
    },
    "default": {
        "epochs": 10, "batch_size": 4, "learning_rate": 2e-3, "optimizer": "adamw",
        "schedule": "one_cycle", "weighted": False, "random_dihedral": True,
    },
}  # fmt: skip


class TrainSettings(Config):
    """What decides a model, apart from its patch cache."""

    preset: Literal["default", "paper", "keras"] = "default"
    """Network and recipe: default (ours), paper (Ronneberger et al. 2015) or keras (the notebook)."""
    base_channels: Annotated[int, Field(ge=1)] | None = None
    """Channels of the first level; None: the preset's (default 16, paper and keras 64)."""
    depth: Annotated[int, Field(ge=1, le=8)] | None = None
    """Levels of resolution, the bottom one included; None: the preset's (5)."""
    epochs: Annotated[int, Field(ge=1)] = PRESET_TRAINING["default"]["epochs"]
    """Passes over the cache at most. Unless given, like the next six, the preset's."""
    batch_size: Annotated[int, Field(ge=1)] = PRESET_TRAINING["default"]["batch_size"]
    """Patches of one step over all workers."""
    learning_rate: Annotated[float, Field(gt=0)] = PRESET_TRAINING["default"]["learning_rate"]
    """Highest learning rate."""
    optimizer: Literal["adam", "adamw", "sgd"] = PRESET_TRAINING["default"]["optimizer"]
    """adam, adamw, or sgd with momentum 0.99."""
    schedule: Literal["constant", "plateau", "one_cycle"] = PRESET_TRAINING["default"]["schedule"]
    """plateau: x 0.1 after 3 epochs without a better validation loss; one_cycle: a function of the step."""
    weighted: bool = PRESET_TRAINING["default"]["weighted"]
    """Weigh the loss by the cache's weight map; unlabelled pixels weigh 0 in any case."""
    random_dihedral: bool = PRESET_TRAINING["default"]["random_dihedral"]
    """Flip and turn each patch by one of the 8 symmetries of the square when it is read."""
    early_stop_epochs: Annotated[int, Field(ge=1)] = 10
    """Epochs without a better validation loss after which training ends."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the forward and backward pass; auto: bfloat16 where the hardware computes with it."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the first weights, of the order of patches and of dropout."""

    def named_defaults(self) -> Self:
        """The settings with the chosen preset's recipe."""
        return self.model_copy(update=PRESET_TRAINING[self.preset])


class TrainConfig(TrainSettings):
    """Train a U-Net on a patch cache, data-parallel over workers, and keep the best by validation loss."""

    cache: str
    """Patch cache that the augment job wrote."""
    run: str
    """Run directory to write: model.safetensors, checkpoints, metrics.jsonl, curves.png."""
    workers: Annotated[int, Field(ge=1)] = 1
    """Data-parallel workers."""
    threads: Annotated[int, Field(ge=1)] | None = None
    """CPUs of each worker; None: the cluster's, shared among the workers."""
    use_gpu: bool = False
    """One GPU per worker."""
    initial_model: str | None = None
    """Model file whose weights training starts from (fine-tuning); its network must be the same."""
    overwrite: bool = False
    """Remove the run and start anew."""
