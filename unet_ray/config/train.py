"""Settings of the train job."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from unet_ray.config.base import Config, Place

BestBy = Literal["loss", "pixel_mismatch", "v_rand", "v_info", "dice"]
# What each preset's source trains with; default: a recipe that is known to do well on ISBI 2012 in half an hour.
# paper: the schedule and its epochs are ours, for it names none; keras: the notebook's callbacks.
PRESET_TRAINING: dict[str, dict[str, Any]] = {
    "paper": {
        "epochs": 30, "batch_size": 1, "learning_rate": 1e-3, "optimizer": "sgd", "momentum": 0.99,
        "schedule": "plateau", "early_stop_epochs": 10, "best_by": "loss", "weighted": True, "ema_decay": 0.0,
        "random_dihedral": False,
    },
    "keras": {
        "epochs": 30, "batch_size": 2, "learning_rate": 1e-4, "optimizer": "adam", "momentum": 0.99,
        "schedule": "plateau", "early_stop_epochs": 10, "best_by": "loss", "weighted": False, "ema_decay": 0.0,
        "random_dihedral": False,
    },
    "default": {
        "epochs": 10, "batch_size": 4, "learning_rate": 2e-3, "optimizer": "adamw", "momentum": 0.99,
        "schedule": "one_cycle", "early_stop_epochs": 10, "best_by": None, "weighted": True, "ema_decay": 0.99,
        "random_dihedral": True,
    },
}  # fmt: skip


class TrainSettings(Config):
    """What decides a model, apart from its patch cache."""

    preset: Literal["default", "paper", "keras"] = "default"
    """Network and recipe: default (ours), paper (Ronneberger et al. 2015) or keras (the notebook)."""
    base_channels: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Channels of the first level; None: the preset's (default 16, paper and keras 64)."""
    depth: Annotated[int, Field(ge=1, le=8)] | None = None
    """Levels of resolution, the bottom one included; None: the preset's (5)."""
    members: Annotated[int, Field(ge=1, le=64)] = 1
    """Networks trained together on the same patches, from different first weights; the mean of their logits is the prediction. So many times the work and memory, in training and in segmentation, for fewer mistakes."""
    epochs: Annotated[int, Field(ge=1)] = PRESET_TRAINING["default"]["epochs"]
    """Passes over the cache at most. Unless given, the preset's; so are batch size, learning rate, optimizer, momentum, schedule, early stop, best by, weighted, ema decay and random dihedral."""
    batch_size: Annotated[int, Field(ge=1, le=1_000_000)] = PRESET_TRAINING["default"]["batch_size"]
    """Patches of one step over all workers."""
    micro_batch: Annotated[int, Field(ge=1)] | None = None
    """Patches of one pass on a worker; None: its whole part of the batch. Fewer need less memory and give the same step, but for batch normalisation, whose statistics are then each pass's (over all workers)."""
    learning_rate: Annotated[float, Field(gt=0)] = PRESET_TRAINING["default"]["learning_rate"]
    """Highest learning rate."""
    optimizer: Literal["adam", "adamw", "sgd"] = PRESET_TRAINING["default"]["optimizer"]
    """adam (the notebook's), adamw, or sgd with momentum (the paper's)."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = PRESET_TRAINING["default"]["momentum"]
    """Of sgd alone (paper: 0.99)."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Of adamw alone, on convolution kernels; adam and sgd have none, as in their sources."""
    schedule: Literal["constant", "plateau", "cosine", "one_cycle"] = PRESET_TRAINING["default"]["schedule"]
    """plateau: x 0.1 after 3 epochs without a better validation loss; cosine (after a straight warm-up) and one_cycle: functions of the step."""
    warm_up: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Share of all steps in which the rate of cosine and one_cycle rises; None: 0.05 and 0.3."""
    early_stop_epochs: Annotated[int, Field(ge=1)] = PRESET_TRAINING["default"]["early_stop_epochs"]
    """Epochs without a better validation, by what best_by names, after which training ends."""
    best_by: BestBy | None = PRESET_TRAINING["default"]["best_by"]
    """Score of the validation sections that chooses the model to keep: the lowest loss or mismatch, the highest of the others; None: v_info, or the loss where the cache holds more than two classes."""
    weighted: bool = PRESET_TRAINING["default"]["weighted"]
    """Weigh the cross-entropy by the cache's weight map; unlabelled pixels weigh 0 in any case."""
    cross_entropy_weight: Annotated[float, Field(ge=0)] = 1.0
    """Coefficient of the cross-entropy in the loss (with one logit: binary cross-entropy)."""
    dice_weight: Annotated[float, Field(ge=0)] = 0.0
    """Coefficient of the Dice loss, the mean over patches of 1 - soft Dice; 0: none."""
    descriptor_weight: Annotated[float, Field(ge=0)] = 0.0
    """Coefficient of the squared error of local shape descriptors (Sheridan et al. 2023), which the network then learns to tell of each cell beside its membrane; 0: none. The model keeps the membrane alone."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of each label that the cross-entropy spreads evenly over the classes; 0: none."""
    max_gradient_norm: Annotated[float, Field(gt=0)] | None = None
    """Norm to which the gradient of a step, of all members together, is cut down; None: never."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = PRESET_TRAINING["default"]["ema_decay"]
    """Validate and keep a moving average of the weights: the share kept at each step, such as 0.999; 0: the weights themselves."""
    random_dihedral: bool = PRESET_TRAINING["default"]["random_dihedral"]
    """Flip and turn each patch by one of the 8 symmetries of the square when it is read."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of the forward and backward pass; auto: bfloat16 where the hardware computes with it. float16, with loss scaling, is for GPUs without bfloat16."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the first weights, of the order of patches and of dropout."""

    @model_validator(mode="after")
    def _has_a_loss(self) -> Self:
        if not self.cross_entropy_weight + self.dice_weight:
            raise ValueError("cross_entropy_weight and dice_weight are both 0, so there is no loss; raise one")
        return self

    def named_defaults(self) -> Self:
        """The settings with the chosen preset's recipe."""
        return self.model_copy(update=PRESET_TRAINING[self.preset])


class TrainConfig(TrainSettings):
    """Train a U-Net on a patch cache, data-parallel over workers, and keep the best by its validation."""

    cache: Place
    """Patch cache that the augment job wrote."""
    run: Place
    """Run directory to write: model.safetensors, checkpoints, metrics.jsonl, curves.png."""
    workers: Annotated[int, Field(ge=1)] = 1
    """Data-parallel workers."""
    threads: Annotated[int, Field(ge=1)] | None = None
    """CPUs of each worker; None: the cluster's, shared among the workers."""
    use_gpu: bool = False
    """One GPU per worker."""
    compile: bool = False
    """Compile the network with torch.compile: minutes at the start, faster steps after it on some hardware."""
    checkpoint_every_steps: Annotated[int, Field(ge=1)] | None = None
    """Steps between checkpoints, for epochs that are too long to lose; None: one at the end of each epoch."""
    export_onnx: Place | None = None
    """ONNX file to write of the best model once the run is complete: grey levels in, probability out."""
    keep_checkpoints: Annotated[int, Field(ge=1)] = 2
    """Newest checkpoints to keep; the best model is kept in any case."""
    initial_model: Place | None = None
    """Model file whose weights training starts from (fine-tuning); its network must be the same."""
    overwrite: bool = False
    """Remove the run and start anew."""

    @model_validator(mode="after")
    def _fits_the_hardware(self) -> Self:
        if self.precision == "float16" and not self.use_gpu:
            raise ValueError("precision float16 needs a GPU; add --use-gpu, or take bfloat16 or float32")
        return self
