"""The patch cache: training patches and whole validation sections in one sharded zarr group."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import zarr

from unet_ray.errors import CacheMismatchError, VolumeError
from unet_ray.geometry.block_set import BlockSet
from unet_ray.storage.array_spec import ArraySpec
from unet_ray.storage.failure import reason
from unet_ray.storage.fingerprint import differences, fingerprint, named
from unet_ray.storage.owned_group import OwnedGroup
from unet_ray.storage.shard_codec import ShardCodec
from unet_ray.storage.shards import (
    DAMAGED,
    Encoded,
    keep_array,
    keep_group,
    present_shards,
    put_encoded,
    shard_key,
)

FORMAT_VERSION = 1
ATTRIBUTE = "unet_ray_patch_cache"
# The image goes last: its shard is the record that the block is done.
ARRAYS = ("weight", "label", "image")
RECORD = "image"
DTYPES = {"image": "uint8", "label": "uint8", "weight": "float16"}
AXES = {"image": ("n", "c", "y", "x"), "label": ("n", "y", "x"), "weight": ("n", "y", "x")}
SPLITS = ("train", "validation")
CONTACT_SHEET = "contact-sheet.png"
"""Beside the arrays: a picture of some patches."""


class PatchLike(Protocol):
    """Anything with the three arrays of a patch."""

    @property
    def image(self) -> npt.NDArray[np.uint8]: ...
    @property
    def label(self) -> npt.NDArray[np.uint8]: ...
    @property
    def weight(self) -> npt.NDArray[np.float16]: ...


@dataclass(frozen=True, slots=True)
class Patch:
    """One patch, a stack of them, or a whole section, as the arrays of a cache.

    Attributes:
        image: uint8, (..., c, h + 2m, w + 2m), m the network's margin.
        label: uint8, (..., h, w); 1 = membrane, or a class index.
        weight: float16, (..., h, w).
    """

    image: npt.NDArray[np.uint8]
    label: npt.NDArray[np.uint8]
    weight: npt.NDArray[np.float16]

    @classmethod
    def stack(cls, patches: Sequence["PatchLike"]) -> "Patch":
        """Patches of one shape as one with a leading axis."""
        return cls(*(np.stack([getattr(p, name) for p in patches]) for name in ("image", "label", "weight")))


@dataclass(frozen=True, slots=True)
class CachePlan:
    """Sides and counts of a patch cache; everything else is in its made-with attributes.

    Attributes:
        patches: training patches; patch = variant x sections + section.
        patch_px: side of a label.
        margin_px: margin of the image around the label.
        channels: sections per image: 1 + 2 x context sections.
        patches_per_shard: patches of one block of work.
        validation: un-augmented sections, each a block of its own.
        section_px: (y, x) sides of a validation section.
    """

    patches: int
    patch_px: int
    margin_px: int
    channels: int
    patches_per_shard: int
    validation: int
    section_px: tuple[int, int]

    def spec(self, split: str, name: str) -> ArraySpec:
        """Sides of one array; ``split`` is "train" or "validation"."""
        margin = 2 * self.margin_px if name == "image" and split == "train" else 0
        count = self.patches if split == "train" else self.validation
        sides = (self.patch_px, self.patch_px) if split == "train" else self.section_px
        inner = ((self.channels,) if name == "image" else ()) + tuple(s + margin for s in sides)
        per_shard = self.patches_per_shard if split == "train" else 1
        return ArraySpec((count, *inner), (per_shard, *inner), (1, *inner), DTYPES[name], AXES[name])

    @property
    def shards(self) -> int:
        """Shards of every training array."""
        return -(-self.patches // self.patches_per_shard)

    def patches_of(self, shard: int) -> range:
        """Patch numbers of a training shard."""
        first = shard * self.patches_per_shard
        return range(first, min(first + self.patches_per_shard, self.patches))

    @property
    def blocks(self) -> int:
        """Blocks of work: the validation sections first, then the training shards."""
        return self.validation + self.shards

    def place(self, block: int) -> tuple[str, int]:
        """Split and shard of a block."""
        return ("validation", block) if block < self.validation else ("train", block - self.validation)

    def patches_in(self, block: int) -> int:
        """Training patches of a block: none in a validation section."""
        split, shard = self.place(block)
        return len(self.patches_of(shard)) if split == "train" else 0


class PatchCache(OwnedGroup):
    """A patch cache at a local path or URL."""

    noun = "patch cache"
    attribute = ATTRIBUTE
    foreign_error = VolumeError

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._arrays: dict[str, Any] = {}
        self._codecs: dict[tuple[str, str], ShardCodec] = {}

    def require(self) -> dict[str, Any]:
        """Attributes of a cache that has to be there.

        Raises:
            VolumeError: there is none.
        """
        found = self.attributes()
        if found is None:
            raise VolumeError(f"there is no patch cache at {self.path}; make it with jobs/augment.py --cache")
        return found

    def plan(self) -> CachePlan:
        """The cache's sides and counts, as its attributes hold them."""
        stored = self.require()["plan"]
        return CachePlan(**{**stored, "section_px": tuple(stored["section_px"])})

    def agreed(self, plan: CachePlan, made_with: Mapping[str, Any]) -> CachePlan:
        """The plan in force if the cache were made with ``plan`` now; nothing is written.

        Returns:
            ``plan``, or that of the cache where it holds more patches: it keeps them.

        Raises:
            CacheMismatchError: the cache was made with something else, or its record of that was changed.
        """
        stored = self.attributes()
        if stored is None:
            return plan
        self.require_unchanged(stored)
        differing = differences(
            {"format_version": stored["format_version"], **stored["made_with"]},
            {"format_version": FORMAT_VERSION, **made_with},
        )
        if differing:
            raise CacheMismatchError(
                f"cache {self.path} was made with {named(differing)}; choose a new path or pass --overwrite"
            )
        held = self.plan()
        return held if held.patches >= plan.patches else plan

    def require_unchanged(self, stored: Mapping[str, Any]) -> None:
        """Check that what the attributes say made the cache is what they said when it was made.

        Raises:
            CacheMismatchError: it does not have the fingerprint that was stored with it.
        """
        if fingerprint(stored["made_with"]) != stored["fingerprint"]:
            raise CacheMismatchError(
                f"cache {self.path} does not say any more what made it: made_with in its zarr.json was changed "
                "afterwards, as its fingerprint shows; put the file back as it was, or pass --overwrite"
            )

    def create_or_extend(
        self, plan: CachePlan, made_with: Mapping[str, Any], sources: Mapping[str, Any] | None = None
    ) -> CachePlan:
        """Put the cache's metadata where they differ, or extend it to more variants; shards stay as they are.

        Args:
            plan: sides and counts wanted.
            made_with: all that decides the patches' bytes, but not how many there are.
            sources: where the inputs were found this time; files may move, so no fingerprint covers it.

        Returns:
            The plan in force: a cache that holds more patches than asked for keeps them.

        Raises:
            CacheMismatchError: the cache was made with something else.
        """
        plan = self.agreed(plan, made_with)
        part_filled = self._part_filled(plan)
        if part_filled is not None:
            # Without its record it is made again, whole.
            self.objects.delete(self.shard_key("train", RECORD, part_filled))
        attributes = {
            "format_version": FORMAT_VERSION,
            "plan": {name: getattr(plan, name) for name in CachePlan.__slots__},
            "made_with": dict(made_with),
            "fingerprint": fingerprint(made_with),
            "sources": dict(sources or {}),
        }
        # First the root, which claims the place; at every start it is seen to that the arrays' metadata are there.
        keep_group(self.objects, "", {ATTRIBUTE: attributes})
        for split in SPLITS:
            keep_group(self.objects, split)
            for name in ARRAYS:
                keep_array(self.objects, f"{split}/{name}", plan.spec(split, name))
        return plan

    def _part_filled(self, plan: CachePlan) -> int | None:
        """The last shard of the cache as it is, where ``plan`` has more patches for it."""
        if self.attributes() is None:
            return None
        held = self.plan()
        return held.shards - 1 if held.patches < plan.patches and held.patches % held.patches_per_shard else None

    def shard_key(self, split: str, name: str, shard: int) -> str:
        """Key of one shard of an array."""
        return shard_key(f"{split}/{name}", (shard, *(0 for _ in AXES[name][1:])))

    def is_done(self, split: str, shard: int) -> bool:
        """Whether the record of one shard is there, with at least one byte."""
        return bool(self.objects.size(self.shard_key(split, RECORD, shard)))

    def done(self, split: str, plan: CachePlan) -> BlockSet:
        """Shards of a split whose record is there."""
        count = plan.spec(split, RECORD).counts[0]
        places = present_shards(self.objects, f"{split}/{RECORD}")
        return BlockSet(count, (place[0] for place in places if place[0] < count))

    def done_blocks(self, plan: CachePlan) -> BlockSet:
        """Blocks of ``plan`` that are done, before `create_or_extend` as after it.

        A part-filled last shard that ``plan`` has more patches for is not among them.
        """
        done = BlockSet(plan.blocks)
        part_filled = self._part_filled(plan)
        for split, first in (("validation", 0), ("train", plan.validation)):
            for shard in self.done(split, plan):
                if split != "train" or shard != part_filled:
                    done.add(first + shard)
        return done

    def put(self, plan: CachePlan, split: str, shard: int, patches: Patch) -> int:
        """Put one shard of every array of a split, the record last.

        Returns:
            Bytes put.
        """
        return put_encoded(self.objects, self.encode(plan, split, shard, patches))

    def encode(self, plan: CachePlan, split: str, shard: int, patches: Patch) -> Encoded:
        """One shard of every array of a split."""
        encoded: Encoded = {}
        for name in ARRAYS:
            spec = plan.spec(split, name)
            if (split, name) not in self._codecs:
                self._codecs[split, name] = ShardCodec(spec)
            codec = self._codecs[split, name]
            encoded[self.shard_key(split, name, shard)] = codec.encode(getattr(patches, name))
        return encoded

    def read(self, split: str, number: int) -> Patch:
        """One training patch or validation section."""
        return Patch(*(self._array(split, name)[number] for name in ("image", "label", "weight")))

    def find(self, number: int) -> Patch | None:
        """One training patch as it is stored, or None where its block is not done.

        Raises:
            VolumeError: the block is done, but a shard of it is missing or damaged.
        """
        plan = self.plan()
        shard = number // plan.patches_per_shard
        if number >= plan.patches or not self.is_done("train", shard):
            return None
        return self.read_checked("train", number)

    def read_checked(self, split: str, number: int) -> Patch:
        """One training patch or validation section, where its shards may have been lost.

        Raises:
            VolumeError: one of them is missing or damaged.
        """
        shard = number // self.plan().patches_per_shard if split == "train" else number
        damaged = f"{split} shard {shard} of patch cache {self.path} is damaged"
        remedy = "run its jobs/augment.py command again with --verify"
        for name in ARRAYS:
            # zarr reads what is missing or empty as fill values.
            if not self.objects.size(self.shard_key(split, name, shard)):
                raise VolumeError(f"{damaged} (its {name} is missing); {remedy}")
        try:
            return self.read(split, number)
        except Exception as error:  # zarr and its codecs raise many kinds; all mean that the bytes are bad
            raise VolumeError(f"{damaged} ({reason(error)}); {remedy}") from error

    def _array(self, split: str, name: str) -> Any:
        key = f"{split}/{name}"
        if key not in self._arrays:
            self._arrays[key] = zarr.open_array(self.objects.zarr_store(), path=key, mode="r", zarr_format=3)
        return self._arrays[key]

    def require_complete(self) -> None:
        """Check by listing that every shard is there.

        Raises:
            VolumeError: some are not.
        """
        plan = self.plan()
        for split in ("train", "validation"):
            done = self.done(split, plan)
            if len(done) < done.num_blocks:
                raise VolumeError(
                    f"patch cache {self.path} has {len(done)} of {done.num_blocks} {split} shards; "
                    "run the same jobs/augment.py command again to finish it"
                )

    def bytes_of(self, plan: CachePlan, blocks: BlockSet) -> int:
        """Bytes of the shards of ``blocks``, all arrays, by one listing of each split."""
        total = 0
        for split, first in (("validation", 0), ("train", plan.validation)):
            for info in self.objects.list(f"{split}/"):
                _, _, place = info.key.partition("/c/")
                number = place.partition("/")[0]
                if number.isdigit() and not place.endswith(DAMAGED) and first + int(number) in blocks:
                    total += info.size
        return total
