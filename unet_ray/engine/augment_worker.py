"""Makes the patches of a cache, a block at a time."""

from unet_ray.engine.augment_plan import AugmentPlan
from unet_ray.engine.labelled_stacks import SectionMemory, SectionPlace
from unet_ray.numerics.augment import apply, whole_section
from unet_ray.storage.patch_cache import Patch, PatchCache


class AugmentWorker:
    """Makes blocks of a cache: the validation sections first, then the training shards."""

    def __init__(self, cache: PatchCache, plan: AugmentPlan) -> None:
        self.cache, self.plan = cache, plan
        self.memory = SectionMemory(plan.stacks, plan.intensity, plan.settings.context_sections)

    def _split(self, block: int) -> tuple[str, int]:
        held_out = len(self.plan.validation)
        return ("validation", block) if block < held_out else ("train", block - held_out)

    def is_done(self, block: int) -> bool:
        """Whether the block's record is there."""
        split, shard = self._split(block)
        return self.cache.is_done(split, shard)

    def read(self, block: int) -> None:
        """Nothing: sections are kept from patch to patch, so they are read where they are first used."""

    def compute(self, block: int, data: None) -> Patch:
        """The block's patches, stacked."""
        split, shard = self._split(block)
        plan = self.plan
        weighting, balance = plan.settings.weighting, plan.class_weights
        if split == "validation":
            image, labels = self.memory.read(plan.validation[shard])
            return Patch.stack([whole_section(image, labels, weighting=weighting, class_weights=balance)])
        patches = []
        for number in plan.cache.patches_of(shard):
            drawn = plan.drawn(number)
            image, labels = self.memory.read(SectionPlace(drawn.stack, drawn.section))
            patches.append(apply(drawn, image, labels, weighting=weighting, class_weights=balance))
        return Patch.stack(patches)

    def write(self, block: int, result: Patch) -> int:
        """Put the block's shards; returns its training patches."""
        split, shard = self._split(block)
        self.cache.put(self.plan.cache, split, shard, result)
        return len(result.label) if split == "train" else 0
