"""The segmentation: an OME-Zarr image of probabilities with its mask as a label image."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_ray.errors import OutputMismatchError, VolumeError
from unet_ray.geometry.block_set import BlockSet
from unet_ray.geometry.box import triple
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
    """

    blocks: BlockGrid
    chunk: tuple[int, int, int]
    voxel_size_nm: tuple[float, float, float] | None

    @property
    def spec(self) -> ArraySpec:
        """Sides of the probability and of the mask."""
        return ArraySpec(self.blocks.tiles.volume, self.blocks.shard, self.chunk, "uint8", AXES)


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
            raise OutputMismatchError(f"output {self.path} was made with {', '.join(differing)}; {advice}")
        return stored

    def create(self, layout: SegmentationLayout, attributes: Mapping[str, Any]) -> None:
        """Put all metadata; shards stay as they are. The root goes first and claims the place."""
        image = ome_image("membrane probability", [LEVEL], layout.voxel_size_nm)
        put_group(self.objects, "", {"ome": image, ATTRIBUTE: dict(attributes)})
        put_array(self.objects, LEVEL, layout.spec)
        put_group(self.objects, LABELS, {"ome": {"version": VERSION, "labels": ["membrane"]}})
        label = ome_image("membrane", [LEVEL], layout.voxel_size_nm) | {
            "image-label": {
                "version": VERSION,
                "colors": [{"label-value": 1, "rgba": [230, 159, 0, 255]}],
                "source": {"image": "../../"},
            }
        }
        put_group(self.objects, MASK, {"ome": label})
        put_array(self.objects, f"{MASK}/{LEVEL}", layout.spec)

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

    def is_done(self, blocks: BlockGrid, block: int) -> bool:
        """Whether the record of one block is there, with at least one byte."""
        return bool(self.objects.size(shard_key(LEVEL, blocks.position(block))))

    def encode(
        self, layout: SegmentationLayout, block: int, probability: npt.NDArray[np.uint8], threshold: float
    ) -> Encoded:
        """A block's mask and then its probability, the record."""
        key = shard_key(LEVEL, layout.blocks.position(block))
        return self.encode_mask(layout, block, probability, threshold) | {
            key: self._encoder(layout).encode(probability)
        }

    def encode_mask(
        self, layout: SegmentationLayout, block: int, probability: npt.NDArray[np.uint8], threshold: float
    ) -> Encoded:
        """A block's mask alone."""
        key = shard_key(f"{MASK}/{LEVEL}", layout.blocks.position(block))
        return {key: self._encoder(layout).encode(mask_of(probability, threshold))}

    def put(self, encoded: Encoded) -> None:
        """Put what `encode` or `encode_mask` made."""
        put_encoded(self.objects, encoded)

    def read_block(self, layout: SegmentationLayout, block: int) -> npt.NDArray[np.uint8]:
        """Stored probability of a block that is done, clipped to the volume.

        Raises:
            VolumeError: the shard is missing or damaged.
        """
        place = layout.blocks.position(block)
        data = self.objects.get(shard_key(LEVEL, place))
        try:
            whole = ShardCodec(layout.spec).decode(data or b"")
        except ValueError as error:
            raise VolumeError(
                f"block {block} of {self.path} is damaged ({error}); run the same command with --verify to repair it"
            ) from error
        clipped: npt.NDArray[np.uint8] = whole[tuple(slice(0, n) for n in layout.blocks.write_box(block).shape)]
        return clipped

    def drop_masks(self) -> None:
        """Remove the mask's shards, so that they are made again from the stored probability."""
        self.objects.delete_all(f"{MASK}/{LEVEL}/c/")

    def verify(self, layout: SegmentationLayout) -> Iterator[int]:
        """Check every shard of every array; set aside what fails.

        Yields:
            Blocks that the run will repair.
        """
        positions: Sequence[tuple[int, int, int]]
        for array in (LEVEL, f"{MASK}/{LEVEL}"):
            positions = [layout.blocks.position(block) for block in self.done(layout.blocks, array)]
            for z, y, x in set_aside_damaged(self.objects, array, layout.spec, positions):
                yield layout.blocks.number((z, y, x))

    def _encoder(self, layout: SegmentationLayout) -> ShardCodec:
        if self._codec is None:
            self._codec = ShardCodec(layout.spec)
        return self._codec
