"""The phantom as a volume on disk: an OME-Zarr image and its membrane labels, made block by block."""

from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_ray.engine.blocks import run_blocks
from unet_ray.engine.cluster import cluster
from unet_ray.errors import OutputMismatchError, UnetRayError
from unet_ray.geometry.block_set import BlockSet
from unet_ray.geometry.box import Triple
from unet_ray.geometry.tiles import BlockGrid, TileGrid
from unet_ray.numerics.phantom import VOXEL_SIZE_NM, phantom_block
from unet_ray.report.progress import Progress
from unet_ray.storage.array_spec import ArraySpec
from unet_ray.storage.ome_image import AXES, ome_image
from unet_ray.storage.open_objects import open_objects
from unet_ray.storage.owned_group import remove_group
from unet_ray.storage.shard_codec import ShardCodec
from unet_ray.storage.shards import (
    Encoded,
    present_shards,
    put_array,
    put_encoded,
    put_group,
    read_attributes,
    shard_key,
)

ATTRIBUTE = "unet_ray_phantom"
IMAGE, LABELS = "image", "labels"
BLOCK: Triple = (4, 256, 256)
CHUNK: Triple = (1, 256, 256)


class PhantomWorker:
    """Makes blocks of image and membrane labels; the image's shard is the record."""

    def __init__(self, path: str, blocks: BlockGrid, seed: int) -> None:
        self.root, self.blocks, self.seed = open_objects(path), blocks, seed
        self.codec = ShardCodec(_spec(blocks))

    def is_done(self, block: int) -> bool:
        """Whether the block's record is there."""
        return bool(self.root.size(shard_key(f"{IMAGE}/0", self.blocks.position(block))))

    def read(self, block: int) -> None:
        """Nothing is read."""

    def compute(self, block: int, data: None) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        """Image and labels (255 = membrane) of the block."""
        made = phantom_block(self.blocks.write_box(block), self.seed)
        return made.image, made.membrane * np.uint8(255)

    def encode(self, block: int, result: tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]) -> Encoded:
        """Shards of labels, then image."""
        image, labels = result
        place = self.blocks.position(block)
        return {
            shard_key(f"{name}/0", place): self.codec.encode(values)
            for name, values in ((LABELS, labels), (IMAGE, image))
        }

    def write(self, block: int, encoded: Encoded) -> int:
        """Put them; returns the block's voxels."""
        put_encoded(self.root, encoded)
        return self.blocks.write_box(block).voxels


def _spec(blocks: BlockGrid) -> ArraySpec:
    return ArraySpec(blocks.tiles.volume, blocks.shard, CHUNK, "uint8", AXES)


def make_phantom(
    path: str, shape: Triple, seed: int, workers: int | None = None, *, overwrite: bool = False
) -> tuple[str, str]:
    """Make, or finish, the phantom at a path or URL.

    Args:
        path: a zarr group; the image is at ``path/image``, the labels (255 = membrane) at ``path/labels``.
        shape: (z, y, x) voxels.
        seed: of the phantom.
        workers: of one CPU each; None: as many as there are CPUs.
        overwrite: remove another phantom that is there.

    Returns:
        Paths of image and labels.

    Raises:
        OutputMismatchError: another phantom is there.
    """
    root = open_objects(path)
    made_with: dict[str, Any] = {"shape": list(shape), "seed": seed}
    stored = read_attributes(root)
    if stored is not None and stored.get(ATTRIBUTE) != made_with:
        if not overwrite or ATTRIBUTE not in stored:
            remedy = "choose another path" + (" or pass --overwrite" if ATTRIBUTE in stored else "")
            raise OutputMismatchError(f"{path} holds another volume than the phantom {made_with}; {remedy}")
        remove_group(root)
    blocks = BlockGrid(TileGrid(shape, BLOCK), (1, 1, 1))
    done = BlockSet(blocks.num_blocks, (blocks.number((z, y, x)) for z, y, x in present_shards(root, f"{IMAGE}/0")))
    # A finished phantom stays untouched: by the time of its files others know it again.
    if len(done) < blocks.num_blocks:
        put_group(root, "", {ATTRIBUTE: made_with})
        for name in (IMAGE, LABELS):
            put_group(root, name, {"ome": ome_image(name, [(1, 1, 1)], VOXEL_SIZE_NM)})
            put_array(root, f"{name}/0", _spec(blocks))
        total = np.prod(shape) / 1e6
        before = sum(blocks.write_box(block).voxels for block in done) / 1e6
        with cluster(), Progress("phantom", total=total, unit="Mvox", already_done=before) as progress:
            outcome = run_blocks(
                partial(PhantomWorker, path, blocks, seed),
                done,
                workers=workers,
                cpus_each=1,
                run_length=max(1, blocks.num_blocks // 32),
                stage="phantom",
                on_row=lambda row: progress.advance(row["units"] / 1e6),
            )
        if outcome.failures:
            block, reason = min(outcome.failures.items())
            raise UnetRayError(f"{len(outcome.failures)} blocks of the phantom failed; first, block {block}: {reason}")
    return f"{path}/{IMAGE}", f"{path}/{LABELS}"
