"""The segmentation: an OME-Zarr image of probabilities with its mask as a label image."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_ray.errors import OutputMismatchError, VolumeError
from unet_ray.geometry.block_set import BlockSet
from unet_ray.geometry.box import Box, Triple, triple
from unet_ray.geometry.tiles import BlockGrid, TileGrid
from unet_ray.storage.fingerprint import differences
from unet_ray.storage.ome_image import AXES, VERSION, ome_image
from unet_ray.storage.owned_group import OwnedGroup
from unet_ray.storage.shards import (
    ArraySpec,
    Encoded,
    ShardCodec,
    present_shards,
    put_array,
    put_encoded,
    put_group,
    put_new_group,
    read_document,
    set_aside_damaged,
    shard_key,
)

FORMAT_VERSION = 1
ATTRIBUTE = "unet_ray_segmentation"
LABELS = "labels"
MASK = "labels/membrane"
LEVEL = "0"


def mask_of(probability: npt.NDArray[np.uint8], threshold: float) -> npt.NDArray[np.uint8]:
    """1 where the stored probability (0..255 = 0..1) is above ``threshold``.

    From the stored bytes, not from the network's floats: a later threshold
    then gives what it would have given at once.
    """
    return (probability > threshold * 255).astype(np.uint8)


@dataclass(frozen=True, slots=True)
class SegmentationLayout:
    """Sides of a segmentation's arrays.

    Attributes:
        blocks: one shard of each array per block.
        chunk: sides of a chunk, dividing the shard.
        voxel_size_nm: (z, y, x), None where nobody knows it.
        factors: by which each further level of the pyramid divides the one before, (z, y, x).
    """

    blocks: BlockGrid
    chunk: Triple
    voxel_size_nm: tuple[float, float, float] | None
    factors: tuple[Triple, ...] = ()

    @property
    def levels(self) -> range:
        """Numbers of the levels of resolution; 0 is the volume's own."""
        return range(1 + len(self.factors))

    def scale(self, level: int) -> Triple:
        """Sides of a voxel of ``level`` in voxels of the volume."""
        return triple([prod(factor[axis] for factor in self.factors[:level]) for axis in range(3)])

    def grid(self, level: int) -> BlockGrid:
        """Blocks of a level; all levels have shards of the same sides."""
        if level == 0:
            return self.blocks
        shape = self.blocks.tiles.volume
        for factor in self.factors[:level]:
            shape = triple([-(-side // f) for side, f in zip(shape, factor, strict=True)])
        return BlockGrid(TileGrid(shape, self.blocks.shard), (1, 1, 1))

    def source(self, level: int, block: int) -> Box:
        """What a block of a level above 0 is made from: voxels of the level below."""
        below, box = self.grid(level - 1).tiles.volume, self.grid(level).write_box(block)
        factor = self.factors[level - 1]
        start = triple([a * f for a, f in zip(box.start, factor, strict=True)])
        stop = triple([min(b * f, s) for b, f, s in zip(box.stop, factor, below, strict=True)])
        return Box(start, stop)

    def spec(self, level: int = 0) -> ArraySpec:
        """Sides of a level's probability and mask."""
        return ArraySpec(self.grid(level).tiles.volume, self.blocks.shard, self.chunk, "uint8", AXES)


class Segmentation(OwnedGroup):
    """A segmentation at a local path or URL."""

    noun = "segmentation"
    attribute = ATTRIBUTE

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._codec: ShardCodec | None = None

    def refuse_other(self, asked: Mapping[str, Any]) -> dict[str, Any] | None:
        """Attributes of an output that ``asked`` continues, None where there is no output yet.

        Args:
            asked: what decides the bytes, as far as it was asked for; ``auto`` values are left out.

        Raises:
            OutputMismatchError: the output was made with something else.
        """
        stored = self.attributes()
        if stored is None:
            return None
        differing = differences({key: stored["made_with"].get(key) for key in asked}, asked)
        if differing:
            advice = "choose a new path or pass --overwrite"
            if all(phrase.startswith("volume.") for phrase in differing):
                advice = f"{advice}, or --accept-changed-volume where the volume was only mended"
            if any(phrase.split(maxsplit=1)[0].split(".")[0] == "mask" for phrase in differing):
                advice = f"{advice}, or give the --mask that it was begun with, if any"
            raise OutputMismatchError(f"output {self.path} was made with {', '.join(differing)}; {advice}")
        return stored

    def claim(self, layout: SegmentationLayout, attributes: Mapping[str, Any]) -> None:
        """`create` an output that is not there yet.

        Raises:
            OutputMismatchError: another job has created it in the meantime.
        """
        if not put_new_group(self.objects, "", self._root(layout, attributes)):
            raise OutputMismatchError(
                f"another job has just started output {self.path}; run the same command again to continue it, or "
                "choose a new path"
            )
        self.create(layout, attributes)

    def _root(self, layout: SegmentationLayout, attributes: Mapping[str, Any]) -> dict[str, Any]:
        scales = [layout.scale(level) for level in layout.levels]
        return {"ome": ome_image("membrane probability", scales, layout.voxel_size_nm), ATTRIBUTE: dict(attributes)}

    def create(self, layout: SegmentationLayout, attributes: Mapping[str, Any]) -> None:
        """Put all metadata; shards stay as they are. The root goes first and claims the place."""
        scales = [layout.scale(level) for level in layout.levels]
        put_group(self.objects, "", self._root(layout, attributes))
        put_group(self.objects, LABELS, {"ome": {"version": VERSION, "labels": ["membrane"]}})
        label = ome_image("membrane", scales, layout.voxel_size_nm) | {
            "image-label": {
                "version": VERSION,
                "colors": [{"label-value": 1, "rgba": [230, 159, 0, 255]}],
                "source": {"image": "../../"},
            }
        }
        put_group(self.objects, MASK, {"ome": label})
        for level in layout.levels:
            put_array(self.objects, str(level), layout.spec(level))
            put_array(self.objects, f"{MASK}/{level}", layout.spec(level))

    def unwritten_blocks(self, sections: Sequence[int]) -> int:
        """Blocks that touch ``sections`` and have no probability yet; they would read as 0."""
        document = read_document(self.objects, LEVEL)
        assert document is not None
        shard = document["chunk_grid"]["configuration"]["chunk_shape"]
        blocks = BlockGrid(TileGrid(triple(document["shape"]), triple(shard)), (1, 1, 1))
        done = self.done(blocks)
        layers = {z // blocks.shard[0] for z in sections}
        return sum(blocks.position(block)[0] in layers for block in done.missing())

    def set_attributes(self, attributes: Mapping[str, Any]) -> None:
        """Replace what the output says of itself; everything else in its metadata stays."""
        document = read_document(self.objects)
        assert document is not None
        document["attributes"][ATTRIBUTE] = dict(attributes)
        self.objects.put("zarr.json", json.dumps(document, indent=1).encode())

    def done(self, blocks: BlockGrid, array: str = LEVEL) -> BlockSet:
        """Blocks whose shard of ``array`` is there."""
        return BlockSet(
            blocks.num_blocks,
            (
                blocks.number((z, y, x))
                for z, y, x in present_shards(self.objects, array)
                if all(p < c for p, c in zip((z, y, x), blocks.counts, strict=True))
            ),
        )

    def is_done(self, blocks: BlockGrid, block: int, array: str = LEVEL) -> bool:
        """Whether the record of one block is there, with at least one byte."""
        return bool(self.objects.size(shard_key(array, blocks.position(block))))

    def encode(
        self,
        layout: SegmentationLayout,
        block: int,
        probability: npt.NDArray[np.uint8],
        threshold: float,
        level: int = 0,
    ) -> Encoded:
        """A block's mask and then its probability, the record."""
        key = shard_key(str(level), layout.grid(level).position(block))
        record = self._encoder(layout).encode(probability)
        return self.encode_mask(layout, block, probability, threshold, level) | {key: record}

    def encode_mask(
        self,
        layout: SegmentationLayout,
        block: int,
        probability: npt.NDArray[np.uint8],
        threshold: float,
        level: int = 0,
    ) -> Encoded:
        """A block's mask alone."""
        key = shard_key(f"{MASK}/{level}", layout.grid(level).position(block))
        return {key: self._encoder(layout).encode(mask_of(probability, threshold))}

    def put(self, encoded: Encoded) -> None:
        """Put what `encode` or `encode_mask` made."""
        put_encoded(self.objects, encoded)

    def read_block(self, layout: SegmentationLayout, block: int, level: int = 0) -> npt.NDArray[np.uint8]:
        """Stored probability of a block that is done, clipped to the volume.

        Raises:
            VolumeError: the shard is missing or damaged.
        """
        grid = layout.grid(level)
        data = self.objects.get(shard_key(str(level), grid.position(block)))
        try:
            whole = ShardCodec(layout.spec(level)).decode(data or b"")
        except ValueError as error:
            raise VolumeError(
                f"block {block} of level {level} of {self.path} is damaged ({error}); run the same command with "
                "--verify to repair it"
            ) from error
        clipped: npt.NDArray[np.uint8] = whole[tuple(slice(0, n) for n in grid.write_box(block).shape)]
        return clipped

    def read_source(self, layout: SegmentationLayout, level: int, block: int) -> npt.NDArray[np.uint8]:
        """Probability of the level below that a block of ``level`` is made from.

        Raises:
            VolumeError: a shard of it is missing or damaged.
        """
        box, below = layout.source(level, block), layout.grid(level - 1)
        found = np.empty(box.shape, np.uint8)
        for child in below.blocks_touching(box):
            found[below.write_box(child).relative_to(box.start).slices] = self.read_block(layout, child, level - 1)
        return found

    def forget_above(self, layout: SegmentationLayout, blocks: Iterable[int]) -> None:
        """Remove what was made from blocks of level 0 that will be made again, in every level above.

        Before they are: so a level never tells more than those below it.
        """
        changed = set(blocks)
        for level in layout.levels[1:]:
            grid, factor = layout.grid(level), layout.factors[level - 1]
            places = (layout.grid(level - 1).position(block) for block in changed)
            changed = {grid.number(triple([p // f for p, f in zip(place, factor, strict=True)])) for place in places}
            done = self.done(grid, str(level)) if changed else BlockSet(0)
            for block in changed:
                if block in done:
                    self.objects.delete(shard_key(str(level), grid.position(block)))

    def ready(self, layout: SegmentationLayout, level: int) -> list[int]:
        """Blocks of a level above 0 that are not there although all they are made from is."""
        grid, below = layout.grid(level), layout.grid(level - 1)
        done, there = self.done(grid, str(level)), self.done(below, str(level - 1))
        return [
            block
            for block in done.missing()
            if all(child in there for child in below.blocks_touching(layout.source(level, block)))
        ]

    def drop_masks(self, layout: SegmentationLayout) -> None:
        """Remove the mask's shards, so that they are made again from the stored probability."""
        for level in layout.levels:
            self.objects.delete_all(f"{MASK}/{level}/c/")

    def verify(self, layout: SegmentationLayout) -> Iterator[tuple[int, int]]:
        """Check every shard of every array; set aside what fails.

        Yields:
            Level and number of the blocks that the run will repair.
        """
        for level in layout.levels:
            grid = layout.grid(level)
            for array in (str(level), f"{MASK}/{level}"):
                positions = [grid.position(block) for block in self.done(grid, array)]
                for z, y, x in set_aside_damaged(self.objects, array, layout.spec(level), positions):
                    yield level, grid.number((z, y, x))

    def _encoder(self, layout: SegmentationLayout) -> ShardCodec:
        if self._codec is None:
            self._codec = ShardCodec(layout.spec())
        return self._codec
