"""Makes the patches of a cache, a block at a time."""

from unet_ray.engine.augment_plan import AugmentPlan
from unet_ray.engine.labelled_stacks import SectionMemory, SectionPlace
from unet_ray.numerics.augment import apply, whole_section
from unet_ray.numerics.draw import Drawn
from unet_ray.storage.patch_cache import Patch, PatchCache, PatchLike
from unet_ray.storage.shards import Encoded, put_encoded


class AugmentWorker:
    """Makes blocks of a cache: the validation sections first, then the training shards."""

    def __init__(self, cache: PatchCache, plan: AugmentPlan) -> None:
        self.cache, self.plan = cache, plan
        self.memory = SectionMemory(plan.stacks, plan.intensity, plan.settings.context_sections)

    def is_done(self, block: int) -> bool:
        """Whether the block's record is there."""
        return self.cache.is_done(*self.plan.cache.place(block))

    def read(self, block: int) -> None:
        """Nothing: sections are kept from patch to patch, so they are read where they are first used."""

    def compute(self, block: int, data: None) -> Patch:
        """The block's patches, stacked."""
        split, shard = self.plan.cache.place(block)
        if split == "validation":
            return Patch.stack([self.held_out(shard)])
        return Patch.stack([self.patch(self.plan.drawn(number)) for number in self.plan.cache.patches_of(shard)])

    def encode(self, block: int, result: Patch) -> Encoded:
        """The block's shards."""
        return self.cache.encode(self.plan.cache, *self.plan.cache.place(block), result)

    def write(self, block: int, encoded: Encoded) -> int:
        """Put them; returns the block's training patches."""
        put_encoded(self.cache.objects, encoded)
        return self.plan.cache.patches_in(block)

    def patch(self, drawn: Drawn) -> PatchLike:
        """One training patch."""
        image, labels = self.memory.read(SectionPlace(drawn.stack, drawn.section))
        weighting, balance = self.plan.settings.weighting, self.plan.class_weights
        return apply(drawn, image, labels, weighting=weighting, class_weights=balance)

    def held_out(self, number: int) -> PatchLike:
        """One validation section."""
        image, labels = self.memory.read(self.plan.validation[number])
        weighting, balance = self.plan.settings.weighting, self.plan.class_weights
        return whole_section(image, labels, weighting=weighting, class_weights=balance)
