"""Settings of the augment job."""

from typing import Annotated, Literal, Self

from pydantic import Field

from unet_ray.config.base import Config, Place, VoxelSize
from unet_ray.config.recipe import RECIPES, Recipe, RecipeName, WeightMap

PresetName = Literal["default", "paper", "keras"]
# paper: 572 -> 388 px in one pass; keras: the notebook's whole sections.
PATCH_PX: dict[PresetName, int] = {"default": 256, "paper": 388, "keras": 512}
# The paper's raises V_rand, but moves the threshold: a quarter of the membrane's pixels are too many at 0.5. Ours keeps
# the classes as they are and raises the narrow borders alone.
WEIGHTING: dict[PresetName, WeightMap] = {
    "default": WeightMap(border_weight=3.0, class_balance=False), "paper": WeightMap(), "keras": WeightMap(),
}  # fmt: skip


class AugmentSettings(Config):
    """What decides a patch cache, apart from the labelled sections."""

    label_kind: Literal["interior", "membrane", "instances", "classes"] = "interior"
    """What labels mean: interior (bright = inside a cell, as ISBI 2012), membrane (bright = membrane), instances (ids, whose borders are membrane), classes (indices from 0 to at most 31; the weight map is then class balance alone; of two, 1 stands for membrane)."""
    ignore_label: int | None = None
    """Label value of pixels that nobody labelled; they weigh nothing in training."""
    variants: Annotated[int, Field(ge=1, le=1_000_000)] = 30
    """Augmented patches per training section; raising it later extends the cache."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed; a patch is a function of seed, stack, section and variant alone."""
    for_preset: PresetName = "default"
    """Network preset whose margin the images get around their labels."""
    patch_px: Annotated[int, Field(ge=1, le=16384)] = PATCH_PX["default"]
    """Side of a patch's label, pixels; only sides that the network can make. Unless given, the preset's: default 256, paper 388, keras 512."""
    context_sections: Annotated[int, Field(ge=0, le=8)] = 0
    """Sections below and above that become input channels, each."""
    voxel_size_nm: VoxelSize | None = None
    """Voxel size z y x in nm, stored with the model; None: what the images' file tells."""
    validation_sections: tuple[str, ...] = ()
    """Sections kept out of augmentation and stored whole, all of one size: numbers, A:B or A:B:STEP, counted through all stacks."""
    exclude_sections: tuple[str, ...] = ()
    """Sections not used at all, in the same form."""
    recipe_name: RecipeName = "default"
    """Recipe whose settings count where no --recipe.* flag is given: default, notebook or paper."""
    recipe: Recipe = RECIPES["default"]
    """The recipe's own settings."""
    weighting: WeightMap = WEIGHTING["default"]
    """Weight map of the loss. Unless given, the preset's: paper and keras the paper's, default without class balance and with a low border term."""

    def named_defaults(self) -> Self:
        """The settings with the chosen recipe's and preset's values in place of the general ones."""
        preset = self.for_preset
        named = {"recipe": RECIPES[self.recipe_name], "patch_px": PATCH_PX[preset], "weighting": WEIGHTING[preset]}
        return self.model_copy(update=named)


class AugmentConfig(AugmentSettings):
    """Make augmented, tiled image/label/weight patches from labelled sections, into a zarr patch cache."""

    images: tuple[Place, ...] = ()
    """Image stacks: TIFF, local folder or glob of TIFF or PNG images, zarr, OME-Zarr; paths or URLs. Sides and dtypes may differ: all but 8-bit stacks are stretched to 8 bits, each between the 0.1 and 99.9 percentile of its own training sections. Only --replay can do without."""
    labels: tuple[Place, ...] = ()
    """Label stacks, one per image stack, of the same shape."""
    ignore_masks: tuple[Place, ...] = ()
    """Mask stacks, one per image stack and of its shape; pixels above 0 weigh nothing in training, nor do those of --ignore-label."""
    cache: Place
    """Patch cache to write, a path or URL."""
    workers: Annotated[int, Field(ge=1)] | None = None
    """Worker processes of one CPU each; None: as many as there are CPUs."""
    patches_per_shard: Annotated[int, Field(ge=1, le=1024)] = 16
    """Patches of one shard, the unit of work and of resumption."""
    overwrite: bool = False
    """Remove the cache and start anew."""
    verify: bool = False
    """Check every shard's checksums first; what fails is made again."""
    replay: tuple[int, int] | None = None
    """Make one patch of the cache again, alone: its section (counted through all stacks) and variant; nothing else is done."""
    out: Place | None = None
    """TIFF that --replay writes: image, label and weight."""
