"""Tile by tile equals the whole mirrored section, for every preset and any side; no cluster needed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import zarr

from unet_ray.config.network import layers
from unet_ray.engine.seam_probe import SeamCertificate, probe
from unet_ray.engine.segment_plan import layout_for, probe_box
from unet_ray.engine.segment_worker import Job
from unet_ray.errors import SeamError
from unet_ray.geometry.box import Box, Triple
from unet_ray.geometry.receptive_field import margin_px, pooling_factor
from unet_ray.geometry.tiles import TileGrid
from unet_ray.network.model_file import decode
from unet_ray.network.predict import Precision, Predictor, Tta
from unet_ray.storage.probability import Dtype
from unet_ray.storage.segmentation import LEVEL
from unet_ray.storage.segmentation_layout import CLASSES, MASK
from unet_ray.storage.volume import open_volume

THRESHOLD = 0.53


def in_one_piece(job: Job) -> npt.NDArray[np.float32]:
    """Probabilities of whole sections: one window each, mirrored, up to the next multiple of the pooling factor."""
    config, state, _ = decode(job.model)
    depth, height, width = job.volume.shape
    factor = pooling_factor(layers(config))
    halo, predict = job.layout.blocks.tiles.halo, Predictor(config, state)
    crop = halo[1] - margin_px(layers(config))
    found = np.zeros((*job.layout.channels, *job.volume.shape), np.float32)
    for z in range(depth):
        whole = Box((z, 0, 0), (z + 1, -(-height // factor) * factor, -(-width // factor) * factor))
        window = np.ascontiguousarray(job.read(whole.grow(halo))[None])
        for axes in VIEWS[job.tta]:
            seen = view(window, axes)
            turned_back = view(predict(seen), axes, back=True)[0]
            found[..., z, :, :] += turned_back[..., crop : crop + height, crop : crop + width]
    return found / len(VIEWS[job.tta])


# Whether y and x are exchanged first, and what is flipped then: every symmetry of a square by other words.
VIEWS = {
    "none": [(False, ())],
    "flips": [(False, axes) for axes in ((), (-2,), (-1,), (-2, -1))],
    "dihedral": [(exchanged, axes) for exchanged in (False, True) for axes in ((), (-2,), (-1,), (-2, -1))],
}


def view(values: npt.NDArray[Any], of: tuple[bool, tuple[int, ...]], back: bool = False) -> npt.NDArray[Any]:
    exchanged, axes = of
    if back:
        values = np.flip(values, axes)
    if exchanged:
        values = np.swapaxes(values, -2, -1)
    return np.ascontiguousarray(values if back else np.flip(values, axes))


@pytest.mark.parametrize(
    ("preset", "depth", "context", "shape", "tile_px", "tta"),
    [
        ("default", 5, 0, (2, 97, 131), 48, "none"),
        ("paper", 5, 0, (2, 97, 131), 48, "none"),
        ("keras", 5, 0, (2, 97, 131), 48, "none"),
        ("default", 3, 1, (3, 61, 47), 20, "none"),
        ("paper", 3, 2, (2, 61, 47), 20, "none"),
        ("keras", 3, 0, (15, 61, 47), 12, "none"),
        ("default", 3, 0, (20, 13, 7), 4, "none"),
        ("default", 3, 0, (1, 1, 1), 4, "none"),
        ("paper", 3, 1, (1, 1, 1), 4, "none"),
        ("paper", 5, 0, (1, 1, 37), 16, "none"),
        ("default", 4, 0, (2, 61, 47), 24, "flips"),
        ("default", 4, 0, (2, 61, 47), 24, "dihedral"),
        ("paper", 3, 1, (2, 61, 47), 20, "dihedral"),
        ("keras", 3, 0, (1, 61, 47), 20, "dihedral"),
    ],
)
def test_tiles_equal_the_whole_section(
    preset: str,
    depth: int,
    context: int,
    shape: Triple,
    tile_px: int,
    tta: Tta,
    tmp_path: Path,
    write_model: Callable[..., str],
    write_zarr: Callable[..., str],
    phantom_image: Callable[..., npt.NDArray[np.uint8]],
    by_plain_loop: Callable[..., Job],
    read_all: Callable[..., npt.NDArray[Any]],
) -> None:
    volume = write_zarr(tmp_path / "volume.zarr", phantom_image(shape, 5))
    model = write_model(tmp_path / "m", preset, depth=depth, base_channels=4, in_channels=1 + 2 * context, seed=3)
    job = by_plain_loop(volume, model, tmp_path / "out.zarr", tile_px, THRESHOLD, tta=tta)
    found = read_all(job.output.path)
    tiles = job.layout.blocks.tiles
    # Not trivial: something overhangs; where the volume is not one voxel, more than one tile and shard, and a picture.
    assert any(side % tile for side, tile in zip(shape, tiles.tile, strict=True))
    if max(shape) > 1:
        assert tiles.num_tiles > 1
        assert job.layout.blocks.tiles_per_block == {15: (1, 2, 2), 20: (2, 1, 1)}.get(shape[0], (1, 1, 1))
        assert job.layout.blocks.num_blocks > 1
        assert np.ptp(found) >= 10
    whole = in_one_piece(job)
    # Within the rounding to 8 bits of what one piece gives; another shape of window may differ by 1e-7.
    assert np.abs(found - 255 * whole.astype(np.float64)).max() < 0.5 + 1e-3
    assert (np.abs(found - np.rint(whole * 255)) > 0).mean() < 1e-3
    assert np.array_equal(read_all(f"{job.output.path}/{MASK}"), found > THRESHOLD * 255)
    assert (job.output.objects.size(f"{LEVEL}/c/0/0/0") or 0) > 0


def test_tiles_of_an_ensemble_equal_the_whole_section(
    tmp_path: Path,
    write_model: Callable[..., str],
    write_zarr: Callable[..., str],
    phantom_image: Callable[..., npt.NDArray[np.uint8]],
    by_plain_loop: Callable[..., Job],
    read_all: Callable[..., npt.NDArray[Any]],
) -> None:
    volume = write_zarr(tmp_path / "volume.zarr", phantom_image((2, 61, 47), 5))
    model = write_model(tmp_path / "m", base_channels=4, members=3, seed=3)
    job = by_plain_loop(volume, model, tmp_path / "out.zarr", 20, THRESHOLD)
    found = read_all(job.output.path)
    assert job.layout.blocks.tiles.num_tiles > 1
    assert np.ptp(found) >= 10
    assert np.abs(found - 255 * in_one_piece(job).astype(np.float64)).max() < 0.5 + 1e-3


@pytest.mark.parametrize(
    ("preset", "depth", "context", "classes", "seed", "shape", "tile_px", "tta", "dtype"),
    [  # the seeds give weights of which more than one class comes out
        ("default", 4, 0, 3, 5, (2, 61, 77), 24, "none", "uint8"),
        ("paper", 3, 1, 4, 7, (2, 61, 47), 20, "none", "uint8"),
        ("keras", 3, 0, 5, 0, (15, 61, 47), 12, "none", "float16"),
        ("default", 4, 0, 3, 5, (2, 61, 47), 24, "dihedral", "uint8"),
        ("paper", 3, 0, 3, 7, (1, 1, 37), 16, "flips", "float16"),
        ("default", 3, 0, 2, 3, (2, 61, 47), 20, "none", "float16"),  # two are membrane or not
        ("paper", 3, 0, 1, 3, (2, 61, 47), 20, "dihedral", "float16"),
    ],
)
def test_classes_and_half_precision_equal_the_whole_section(
    preset: str,
    depth: int,
    context: int,
    classes: int,
    seed: int,
    shape: Triple,
    tile_px: int,
    tta: Tta,
    dtype: Dtype,
    tmp_path: Path,
    write_model: Callable[..., str],
    write_zarr: Callable[..., str],
    phantom_image: Callable[..., npt.NDArray[np.uint8]],
    by_plain_loop: Callable[..., Job],
    read_all: Callable[..., npt.NDArray[Any]],
) -> None:
    volume = write_zarr(tmp_path / "volume.zarr", phantom_image(shape, 5))
    given = {"depth": depth, "base_channels": 4, "in_channels": 1 + 2 * context, "classes": classes, "seed": seed}
    model = write_model(tmp_path / "m", preset, **given)
    job = by_plain_loop(volume, model, tmp_path / "out.zarr", tile_px, THRESHOLD, tta=tta, dtype=dtype)
    tiles = job.layout.blocks.tiles
    assert tiles.num_tiles > 1
    assert any(side % tile for side, tile in zip(shape, tiles.tile, strict=True))
    array = zarr.open_array(f"{job.output.path}/{LEVEL}", mode="r")
    several, blocks = classes > 2, job.layout.blocks
    lead = (classes,) if several else ()
    assert (array.shape, array.dtype.name) == ((*lead, *shape), dtype)
    assert (array.shards, array.chunks) == ((*lead, *blocks.shard), (*(1 for _ in lead), *job.layout.chunk))
    found, whole = np.asarray(array[...]), in_one_piece(job)
    assert np.ptp(found) > (10 if dtype == "uint8" else 10 / 255)
    if dtype == "uint8":
        assert np.abs(found - 255 * whole.astype(np.float64)).max() < 0.5 + 1e-3
        assert (found != np.rint(whole * 255)).mean() < 1e-3
    else:
        # Half a step of float16, which is 2**-11 of the value; another shape of window may differ by 1e-7.
        assert (np.abs(found - whole.astype(np.float64)) <= whole * 2.0**-11 + 1e-6).all()
        assert (found != whole.astype(np.float16)).mean() < 1e-2
    label = read_all(f"{job.output.path}/{CLASSES if several else MASK}")
    if several:
        assert len(np.unique(label)) > 1
        assert np.array_equal(label, found.argmax(axis=0))
    else:
        assert np.array_equal(label, found.astype(np.float64) > THRESHOLD * (255 if dtype == "uint8" else 1))


def of_shade(window: npt.NDArray[np.uint8], halo: int) -> npt.NDArray[np.float32]:
    """Probabilities of three classes by grey value alone: (1, 3, h, w) without the halo."""
    grey = window[:, window.shape[1] // 2, halo:-halo, halo:-halo] / np.float32(255)
    return np.stack([0.3 * grey, 0.5 - 0.5 * grey, 0.5 + 0.2 * grey], axis=1).astype(np.float32)


@pytest.mark.parametrize("seam", [0, 1, 2, None])
def test_the_probe_sees_a_seam_in_any_class_and_counts_changed_classes(
    seam: int | None, tmp_path: Path, write_zarr: Callable[..., str]
) -> None:
    values = np.tile(np.arange(96, dtype=np.uint8), (1, 96, 1))
    volume = open_volume(write_zarr(tmp_path / "v.zarr", values))
    tiles = TileGrid((1, 96, 96), (1, 32, 32), (0, 4, 4))
    box = Box((0, 16, 16), (1, 64, 64))

    def predict(precision: Precision, window: npt.NDArray[np.uint8], _: int) -> npt.NDArray[np.float32]:
        found = of_shade(window, 4)
        if seam is not None and window.shape[2] == 32 + 8:
            found[:, seam, 3, 3] += 1e-3  # a pixel of every tile, in one class
        if precision != "float32":
            columns = found[:, :, 0, 5]
            found[:, :, 0, 5] = np.roll(columns, 1, axis=1)  # one pixel of every tile gets another likeliest class
            found[:, :, 1, :] *= 0.5  # and others other probabilities alone
        return found

    def run() -> SeamCertificate:
        return probe(
            predict, volume.read, tiles, box, crop=0, threshold=0.9, precision="bfloat16", may_fall_back=False
        )  # fmt: skip

    if seam is None:
        found = run()
        assert found.seam_max_abs_diff == 0
        assert found.mask_change_share == pytest.approx(1 / 32**2)
    else:
        with pytest.raises(SeamError, match=r"differs from one piece by 0\.001 in probability"):
            run()


def test_probe_passes_with_the_halo_and_refuses_a_smaller_one(
    tmp_path: Path,
    write_model: Callable[..., str],
    write_zarr: Callable[..., str],
    phantom_image: Callable[..., npt.NDArray[np.uint8]],
) -> None:
    volume = open_volume(write_zarr(tmp_path / "v.zarr", phantom_image((1, 96, 96), 1)))
    config, state, _ = decode(Path(write_model(tmp_path / "m", "default", depth=3, base_channels=4)).read_bytes())

    def predict(precision: Precision, window: npt.NDArray[np.uint8], crop: int) -> npt.NDArray[np.float32]:
        return Predictor(config, state, crop=crop)(np.ascontiguousarray(window))

    halo = layout_for((1, 96, 96), 32, config, None).blocks.tiles.halo[1]
    for side, right in ((halo, True), (halo // 4 // 2 * 4, False)):
        tiles = TileGrid((1, 96, 96), (1, 32, 32), (0, side, side))
        box = probe_box(tiles, 4)
        touched = [t for t in range(tiles.num_tiles) if tiles.write_box(t).intersect(box).voxels]
        assert len(touched) >= 4

        def run(tiles: TileGrid = tiles, box: Box = box, side: int = side) -> float:
            return probe(
                predict, volume.read, tiles, box, crop=side, threshold=0.5, precision="float32", may_fall_back=False
            ).seam_max_abs_diff

        if right:
            assert run() <= 1e-6
        else:
            with pytest.raises(SeamError, match=r"tile by tile differs from one piece by .* in probability"):
                run()


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 30, 41), (2, 130, 133), (1, 7, 300)])
@pytest.mark.parametrize("preset", ["default", "paper"])
def test_probe_takes_any_side(
    preset: str,
    shape: Triple,
    tmp_path: Path,
    write_model: Callable[..., str],
    write_zarr: Callable[..., str],
    phantom_image: Callable[..., npt.NDArray[np.uint8]],
) -> None:
    volume = open_volume(write_zarr(tmp_path / "v.zarr", phantom_image(shape, 1)))
    config, state, _ = decode(Path(write_model(tmp_path / "m", preset)).read_bytes())
    tiles = layout_for(shape, 32, config, None).blocks.tiles
    box = probe_box(tiles, 4)
    found = probe(
        lambda precision, window, crop: Predictor(config, state, crop=crop)(np.ascontiguousarray(window)), volume.read,
        tiles, box,
        crop=tiles.halo[1] - margin_px(layers(config)), threshold=0.5, precision="float32", may_fall_back=False,
    )  # fmt: skip
    assert found.seam_max_abs_diff <= 1e-6
    assert all(0 <= a < b <= side for a, b, side in zip(*found.box, shape, strict=True))
