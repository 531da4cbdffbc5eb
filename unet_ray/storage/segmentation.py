"""The segmentation: an OME-Zarr image of probabilities with its mask, or its classes, as a label image."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_ray.errors import OutputMismatchError, VolumeError
from unet_ray.geometry.block_set import BlockSet
from unet_ray.geometry.box import Box, triple
from unet_ray.geometry.tiles import BlockGrid, TileGrid
from unet_ray.storage.array_spec import ArraySpec
from unet_ray.storage.fingerprint import differences, named
from unet_ray.storage.ome_image import AXES, VERSION, label_colours, ome_image
from unet_ray.storage.ome_metadata import find_level
from unet_ray.storage.owned_group import OwnedGroup
from unet_ray.storage.segmentation_layout import SegmentationLayout
from unet_ray.storage.shard_codec import ShardCodec
from unet_ray.storage.shard_reader import ShardReader
from unet_ray.storage.shards import (
    DAMAGED,
    Encoded,
    present_shards,
    put_array,
    put_encoded,
    put_group,
    put_new_group,
    read_attributes,
    read_document,
    set_aside_damaged,
    shard_key,
)

FORMAT_VERSION = 1
ATTRIBUTE = "unet_ray_segmentation"
LABELS = "labels"
LEVEL = "0"
REPAIR = "run the same command with --verify to repair it"
# Keys that ``made_with`` has only where they are not this: outputs from before there was a choice say nothing of it.
UNSAID: Mapping[str, Any] = {"probability_dtype": "uint8"}


class Segmentation(OwnedGroup):
    """A segmentation at a local path or URL."""

    noun = "segmentation"
    attribute = ATTRIBUTE

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._codecs: dict[ArraySpec, ShardCodec] = {}

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
        made_with = {**UNSAID, **stored["made_with"]}
        differing = differences({key: made_with.get(key) for key in asked}, asked)
        if differing:
            advice = "choose a new path or pass --overwrite"
            if all(phrase.startswith("volume.") for phrase in differing):
                advice = f"{advice}, or --accept-changed-volume where the volume was only mended"
            if any(phrase.split(maxsplit=1)[0].split(".")[0] == "mask" for phrase in differing):
                advice = f"{advice}, or give the --mask that it was begun with, if any"
            raise OutputMismatchError(f"output {self.path} was made with {named(differing)}; {advice}")
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
        self._create_below(layout)

    def _root(self, layout: SegmentationLayout, attributes: Mapping[str, Any]) -> dict[str, Any]:
        scales = [layout.scale(level) for level in layout.levels]
        name = f"{'membrane' if layout.classes == 1 else 'class'} probability"
        image = ome_image(name, scales, layout.voxel_size_nm, layout.classes, layout.dtype)
        return {"ome": image, ATTRIBUTE: dict(attributes)}

    def create(self, layout: SegmentationLayout, attributes: Mapping[str, Any]) -> None:
        """Put all metadata; shards stay as they are. The root, by which others see what is to be changed, goes last."""
        self._create_below(layout)
        put_group(self.objects, "", self._root(layout, attributes))

    def lacks_metadata(self, layout: SegmentationLayout) -> bool:
        """Whether metadata below the root are missing, without which readers see no array where shards are."""
        arrays = [array for level in layout.levels for array in (str(level), f"{layout.label}/{level}")]
        return any(not self.objects.size(f"{place}/zarr.json") for place in (LABELS, layout.label, *arrays))

    def _create_below(self, layout: SegmentationLayout) -> None:
        scales = [layout.scale(level) for level in layout.levels]
        name = layout.label.removeprefix(f"{LABELS}/")
        put_group(self.objects, LABELS, {"ome": {"version": VERSION, "labels": [name]}})
        label = ome_image(name, scales, layout.voxel_size_nm) | {
            "image-label": {
                "version": VERSION,
                "colors": label_colours(layout.classes),
                "source": {"image": "../../"},
            }
        }
        put_group(self.objects, layout.label, {"ome": label})
        for level in layout.levels:
            put_array(self.objects, str(level), layout.spec(level))
            put_array(self.objects, f"{layout.label}/{level}", layout.label_spec(level))

    def voxel_size_nm(self) -> tuple[float, float, float] | None:
        """Voxel size (z, y, x) that the metadata tell; None where they tell none."""
        level = find_level(self.path, read_attributes(self.objects) or {})
        return None if level is None else level.voxel_size_nm

    def classes(self) -> int:
        """Probabilities of a voxel: 1 is the membrane's, more are one per class; 1 where no array is there yet."""
        document = read_document(self.objects, LEVEL)
        shape: list[int] = [] if document is None else document["shape"]
        return shape[0] if len(shape) > len(AXES) else 1

    def probability_readers(
        self, layout: SegmentationLayout, pool: Executor
    ) -> list[Callable[[Box], npt.NDArray[Any]]]:
        """What reads boxes of the membrane's stored probability, or of that of each class, by the pool's threads.

        They raise VolumeError where a shard is missing or damaged.
        """
        reader = ShardReader(self.objects, LEVEL, layout.spec(), REPAIR)

        def read(box: Box, channel: tuple[int, ...]) -> npt.NDArray[Any]:
            after = tuple(number + 1 for number in channel)
            return reader.read((*channel, *box.start), (*after, *box.stop), pool).reshape(box.shape)

        channels = [(number,) for number in range(layout.classes)] if layout.channels else [()]
        return [partial(read, channel=channel) for channel in channels]

    def label_reader(self, layout: SegmentationLayout, pool: Executor) -> Callable[[Box], npt.NDArray[Any]]:
        """What reads boxes of the mask, or of the likeliest classes; as `probability_readers`."""
        reader = ShardReader(self.objects, f"{layout.label}/{LEVEL}", layout.label_spec(), REPAIR)
        return lambda box: reader.read(box.start, box.stop, pool)

    def unwritten_blocks(self, sections: Sequence[int]) -> int:
        """Blocks that touch ``sections`` and have no probability yet; they would read as 0."""
        blocks = self._stored_blocks()
        done = self.done(blocks)
        layers = {z // blocks.shard[0] for z in sections}
        return sum(blocks.position(block)[0] in layers for block in done.missing())

    def blocks_done(self) -> int:
        """Blocks of the volume's own resolution that are there."""
        return len(self.done(self._stored_blocks()))

    def _stored_blocks(self) -> BlockGrid:
        """The grid of shards as the metadata tell it."""
        document = read_document(self.objects, LEVEL)
        if document is None:
            raise VolumeError(
                f"segmentation {self.path} has lost {LEVEL}/zarr.json, or has none yet; run the same jobs/segment.py "
                "command again, or copy the segmentation whole"
            )
        shard = document["chunk_grid"]["configuration"]["chunk_shape"]
        # Before z y x there may be classes, of which every shard holds all.
        return BlockGrid(TileGrid(triple(document["shape"][-3:]), triple(shard[-3:])), (1, 1, 1))

    def set_attributes(self, attributes: Mapping[str, Any]) -> None:
        """Replace what the output says of itself; everything else in its metadata stays."""
        document = read_document(self.objects)
        assert document is not None
        document["attributes"][ATTRIBUTE] = dict(attributes)
        self.objects.put("zarr.json", json.dumps(document, indent=1).encode())

    def done(self, blocks: BlockGrid, array: str = LEVEL, ending: str = "") -> BlockSet:
        """Blocks whose shard of ``array`` is there; with the ending `DAMAGED`, those of which one was set aside."""
        return BlockSet(
            blocks.num_blocks,
            (
                blocks.number(triple(place[-3:]))
                for place in present_shards(self.objects, array, ending)
                if all(p < c for p, c in zip(place[-3:], blocks.counts, strict=True))
            ),
        )

    def is_done(self, layout: SegmentationLayout, block: int, level: int = 0) -> bool:
        """Whether the record of one block is there, with at least one byte."""
        return bool(self.objects.size(layout.record(level, block)))

    def encode(
        self,
        layout: SegmentationLayout,
        block: int,
        probability: npt.NDArray[Any],
        threshold: float,
        level: int = 0,
    ) -> Encoded:
        """A block's label image and then its probability, the record."""
        record = self._encoder(layout.spec(level)).encode(probability)
        label = self.encode_label(layout, block, probability, threshold, level)
        return label | {layout.record(level, block): record}

    def encode_label(
        self,
        layout: SegmentationLayout,
        block: int,
        probability: npt.NDArray[Any],
        threshold: float,
        level: int = 0,
    ) -> Encoded:
        """A block's label image alone, from its stored probability."""
        key = shard_key(f"{layout.label}/{level}", layout.grid(level).position(block))
        return {key: self._encoder(layout.label_spec(level)).encode(layout.label_of(probability, threshold))}

    def put(self, encoded: Encoded) -> None:
        """Put what `encode` or `encode_label` made."""
        put_encoded(self.objects, encoded)

    def read_block(self, layout: SegmentationLayout, block: int, level: int = 0) -> npt.NDArray[Any]:
        """Stored probability of a block that is done, ((k,) z, y, x), clipped to the volume.

        Raises:
            VolumeError: the shard is missing or damaged.
        """
        grid = layout.grid(level)
        data = self.objects.get(layout.record(level, block))
        try:
            whole = ShardCodec(layout.spec(level)).decode(data or b"")
        except ValueError as error:
            raise VolumeError(
                f"block {block} of level {level} of {self.path} is damaged ({error}); {REPAIR}"
            ) from error
        depth, height, width = grid.write_box(block).shape
        clipped: npt.NDArray[Any] = whole[..., :depth, :height, :width]
        return clipped

    def read_source(self, layout: SegmentationLayout, level: int, block: int) -> npt.NDArray[Any]:
        """Probability of the level below that a block of ``level`` is made from, ((k,) z, y, x).

        Raises:
            VolumeError: a shard of it is missing or damaged.
        """
        box, below = layout.source(level, block), layout.grid(level - 1)
        found = np.empty((*layout.channels, *box.shape), layout.dtype)
        for child in below.blocks_touching(box):
            inside = below.write_box(child).relative_to(box.start).slices
            found[(..., *inside)] = self.read_block(layout, child, level - 1)
        return found

    def forget_above(self, layout: SegmentationLayout, blocks: Iterable[int]) -> None:
        """Remove what was made from blocks of level 0 that will be made again, in every level above.

        Before they are: so a level never tells more than those below it.
        """
        changed = set(blocks)
        for level in layout.levels[1:]:
            changed = layout.above(level, changed)
            done = self.done(layout.grid(level), str(level)) if changed else BlockSet(0)
            for block in changed:
                if block in done:
                    self.objects.delete(layout.record(level, block))

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
            self.objects.delete_all(f"{layout.label}/{level}/c/")

    def shards(self, layout: SegmentationLayout) -> int:
        """Shards that are there, of all arrays."""
        levels = [(layout.grid(level), level) for level in layout.levels]
        arrays = [(grid, array) for grid, level in levels for array in (str(level), f"{layout.label}/{level}")]
        return sum(len(self.done(grid, array)) for grid, array in arrays)

    def verify(
        self, layout: SegmentationLayout, on_checked: Callable[[], None] = lambda: None
    ) -> Iterator[tuple[int, int]]:
        """Check every shard of every array; set aside what fails.

        Args:
            layout: of the output.
            on_checked: called after each shard, whole or not.

        Yields:
            Level and number of the blocks that the run will repair.
        """

        def counted(places: list[tuple[int, ...]]) -> Iterator[tuple[int, ...]]:
            for place in places:
                yield place
                on_checked()

        for level in layout.levels:
            grid = layout.grid(level)
            records = [layout.place(level, block) for block in self.done(grid, str(level))]
            label = f"{layout.label}/{level}"
            labels: list[tuple[int, ...]] = [grid.position(block) for block in self.done(grid, label)]
            for place in (
                *set_aside_damaged(self.objects, str(level), layout.spec(level), counted(records)),
                *set_aside_damaged(self.objects, label, layout.label_spec(level), counted(labels)),
            ):
                yield level, grid.number(triple(place[-3:]))

    def lost(self, layout: SegmentationLayout) -> list[int]:
        """Blocks of level 0 that were there once: set aside by `verify`, or what a block of level 1 was made from.

        Told from the files alone, so that a run which is killed before it has made them again does not forget them.
        """
        done = self.done(layout.blocks)
        found = {block for block in self.done(layout.blocks, ending=DAMAGED) if block not in done}
        if layout.factors:
            for above in self.done(layout.grid(1), "1"):
                found.update(b for b in layout.blocks.blocks_touching(layout.source(1, above)) if b not in done)
        return sorted(found)

    def _encoder(self, spec: ArraySpec) -> ShardCodec:
        if spec not in self._codecs:
            self._codecs[spec] = ShardCodec(spec)
        return self._codecs[spec]
