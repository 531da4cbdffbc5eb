"""With a mask: inside the same bytes as without, outside 0, whatever tiles and blocks are."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile

from unet_ray.config.segment import SegmentConfig
from unet_ray.engine import mask_survey, segment_forecast
from unet_ray.engine.mask_survey import MOST_BLOCKS, place_inside, some_of, survey
from unet_ray.engine.segment import segment
from unet_ray.engine.segment_forecast import Measured
from unet_ray.engine.segment_plan import probe_box
from unet_ray.engine.segment_remainder import Remainder
from unet_ray.engine.segment_worker import Job
from unet_ray.errors import OutputMismatchError, VolumeError
from unet_ray.geometry.box import Box
from unet_ray.geometry.tiles import BlockGrid, TileGrid
from unet_ray.network.predict import Predictor
from unet_ray.storage.mask_volume import MaskVolume, open_mask
from unet_ray.storage.segmentation_layout import MASK
from unet_ray.storage.volume import open_volume

SHAPE, TILE, THRESHOLD = (3, 130, 150), 32, 0.45
BLOCKS = 75


def enlarged(mask: npt.NDArray[Any], factor: tuple[int, int, int], shape: tuple[int, int, int]) -> npt.NDArray[Any]:
    for axis, by in enumerate(factor):
        mask = mask.repeat(by, axis)
    return mask[tuple(slice(side) for side in shape)] > 0


def blob(shape: tuple[int, ...]) -> npt.NDArray[np.int16]:
    """A leaning ellipse, above 0 inside, with a pinhole in its middle and a lone voxel at the last corner."""
    z, y, x = (np.linspace(-1, 1, side) if side > 1 else np.zeros(1) for side in shape)
    found = ((y[:, None] - 0.4 * x) ** 2 + x**2 + 0.3 * z[:, None, None] < 0.3).astype(np.int16)
    found[found == 0] = -5
    found[:, shape[1] // 2, shape[2] // 2] = 0
    found[-1, -1, -1] = 1
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mask")


@pytest.fixture(scope="module")
def asked(
    folder: Path,
    write_model: Callable[..., str],
    write_zarr: Callable[..., str],
    phantom_image: Callable[..., npt.NDArray[np.uint8]],
) -> dict[str, Any]:
    """Settings of a segmentation, without mask and output."""
    return {
        "volume": write_zarr(folder / "volume.zarr", phantom_image(SHAPE, 2), chunks=(1, 65, 75)),
        "model": write_model(folder / "model", "default", base_channels=4),
        "tile_px": TILE, "threshold": THRESHOLD, "precision": "float32", "threads": 1, "workers": 1,
    }  # fmt: skip


@pytest.fixture(scope="module")
def unmasked(folder: Path, asked: dict[str, Any], by_plain_loop: Callable[..., Job]) -> Path:
    by_plain_loop(asked["volume"], asked["model"], folder / "unmasked", TILE, THRESHOLD)
    return folder / "unmasked"


@pytest.fixture(scope="module")
def coarse(folder: Path, write_zarr: Callable[..., str]) -> str:
    """A mask of 3 x 33 x 38 voxels, 4 by 4 pixels each."""
    return write_zarr(folder / "coarse.zarr", blob((3, 33, 38)))


@pytest.fixture(scope="module")
def plain(folder: Path, asked: dict[str, Any], coarse: str, by_plain_loop: Callable[..., Job]) -> Job:
    """The masked segmentation that the plain loop over blocks makes."""
    return by_plain_loop(asked["volume"], asked["model"], folder / "plain", TILE, THRESHOLD, mask=coarse)


def digests(found: dict[str, Any]) -> dict[str, str]:
    return {key: shard.digest for key, shard in found.items()}


@pytest.mark.parametrize(
    ("shape", "tile_px", "factor", "tiles_per_block"),
    [
        (SHAPE, TILE, (1, 1, 1), (1, 1, 1)),
        (SHAPE, 20, (1, 4, 4), (1, 1, 1)),
        (SHAPE, 64, (3, 7, 3), (1, 1, 1)),
        ((15, 61, 47), 12, (1, 1, 1), (1, 2, 2)),
        ((15, 61, 47), 12, (2, 5, 3), (1, 2, 2)),
    ],
)
def test_inside_as_without_and_outside_nothing(
    shape: tuple[int, int, int],
    tile_px: int,
    factor: tuple[int, int, int],
    tiles_per_block: tuple[int, int, int],
    asked: dict[str, Any],
    tmp_path: Path,
    write_zarr: Callable[..., str],
    phantom_image: Callable[..., npt.NDArray[np.uint8]],
    by_plain_loop: Callable[..., Job],
    read_all: Callable[..., npt.NDArray[Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    volume = write_zarr(tmp_path / "volume.zarr", phantom_image(shape, 2))
    without = tmp_path / "without"
    by_plain_loop(volume, asked["model"], without, tile_px, THRESHOLD)
    values = blob(tuple(-(-side // f) for side, f in zip(shape, factor, strict=True)))
    tifffile.imwrite(tmp_path / "mask.tif", values, photometric="minisblack")
    inside = enlarged(values, factor, shape)
    passes = list[int]()
    predict = Predictor.__call__
    monkeypatch.setattr(Predictor, "__call__", lambda self, windows: (passes.append(1), predict(self, windows))[1])
    mask = str(tmp_path / "mask.tif")
    job = by_plain_loop(volume, asked["model"], tmp_path / "out", tile_px, THRESHOLD, mask=mask)
    assert job.layout.blocks.tiles_per_block == tiles_per_block
    expected = np.where(inside, read_all(without), 0)
    assert 0.05 < inside.mean() < 0.6
    assert np.ptp(expected[inside]) > 10
    assert np.array_equal(read_all(tmp_path / "out"), expected)
    assert np.array_equal(read_all(f"{tmp_path}/out/{MASK}"), expected > THRESHOLD * 255)
    tiles = job.layout.blocks.tiles
    touched = sum(bool(inside[tiles.write_box(tile).slices].any()) for tile in range(tiles.num_tiles))
    assert len(passes) == touched < tiles.num_tiles


@pytest.mark.usefixtures("ray_cluster")
def test_two_workers_in_two_runs_give_the_bytes_of_the_plain_loop(
    asked: dict[str, Any],
    coarse: str,
    plain: Job,
    unmasked: Path,
    tmp_path: Path,
    shards: Callable[..., dict[str, Any]],
    read_all: Callable[..., npt.NDArray[Any]],
) -> None:
    out = tmp_path / "out.zarr"
    given = asked | {"mask": coarse, "workers": 2, "output": str(out)}
    inside = enlarged(blob((3, 33, 38)), (1, 4, 4), SHAPE)
    blocks = plain.layout.blocks
    outside = [block for block in range(BLOCKS) if not inside[blocks.write_box(block).slices].any()]
    assert 10 < len(outside) < 65
    first = segment(SegmentConfig(**given, sections=("1",)))
    second = segment(SegmentConfig(**given, verify=True))
    assert (first["blocks_written"], second["blocks_written"], second["blocks_skipped"]) == (25, 50, 25)
    assert first["blocks_masked"] == sum(25 <= block < 50 for block in outside)
    assert first["blocks_masked"] + second["blocks_masked"] == len(outside)
    assert first["tiles_masked"] + second["tiles_masked"] == len(outside)
    assert (first["tiles"], second["tiles"], second["status"]) == (25, 50, "complete")
    made = shards(out)
    assert len([key for key in made if key.startswith("0/c/")]) == BLOCKS
    assert digests(made) == digests(shards(plain.output.path))
    assert np.array_equal(read_all(out), np.where(inside, read_all(unmasked), 0))

    # A block outside and one inside are lost, another of each is damaged: they come back, and no other is touched.
    lost = [outside[0], outside[-1], 37, 38]
    assert not {37, 38} & set(outside)
    for number, block in enumerate(lost):
        z, y, x = blocks.position(block)
        file = out / "0" / "c" / str(z) / str(y) / str(x)
        if number % 2:
            file.unlink()
        else:
            file.write_bytes(file.read_bytes()[:-2])
    again = segment(SegmentConfig(**given, verify=True))
    assert (again["blocks_written"], again["blocks_masked"]) == (4, 2)
    after = shards(out)
    assert digests(after) == digests(made)
    assert sum(after[key] != made[key] for key in made) == 8


@pytest.mark.usefixtures("ray_cluster")
def test_blocks_outside_are_not_read(
    asked: dict[str, Any], plain: Job, coarse: str, tmp_path: Path, shards: Callable[..., dict[str, Any]]
) -> None:
    volume = tmp_path / "volume.zarr"
    shutil.copytree(asked["volume"], volume)
    # Section 1 is where the seam probe would be without a mask.
    for broken in [path for z in "12" for path in (volume / "c" / z).glob("*/*")]:
        broken.write_bytes(bytes(broken.stat().st_size))
    mask = np.zeros(SHAPE, bool)
    mask[0, :32, :32] = True
    tifffile.imwrite(tmp_path / "mask.tif", mask.astype(np.uint8), photometric="minisblack")
    given = asked | {"volume": str(volume), "mask": f"{tmp_path}/mask.tif", "output": f"{tmp_path}/out.zarr"}
    summary = segment(SegmentConfig(**given))
    assert (summary["status"], summary["blocks_masked"], summary["blocks_written"]) == ("complete", 74, 75)
    with pytest.raises(VolumeError, match="cannot be read"):
        segment(SegmentConfig(**given | {"mask": coarse, "output": f"{tmp_path}/two.zarr"}))


@pytest.mark.usefixtures("ray_cluster")
def test_another_mask_is_refused_and_none_is_not_recorded(
    asked: dict[str, Any], coarse: str, plain: Job, tmp_path: Path, write_zarr: Callable[..., str]
) -> None:
    masked, bare = f"{tmp_path}/masked.zarr", f"{tmp_path}/bare.zarr"
    given = asked | {"roi": "0:1,0:32,0:32"}
    segment(SegmentConfig(**given, output=masked, mask=coarse))
    segment(SegmentConfig(**given, output=bare))
    assert "mask" not in plain.output.__class__(bare).attributes()["made_with"]
    moved = tmp_path / "moved.zarr"
    shutil.copytree(coarse, moved, copy_function=shutil.copy2)
    assert segment(SegmentConfig(**given, output=masked, mask=str(moved)))["blocks_skipped"] == 1
    other = write_zarr(tmp_path / "other.zarr", blob((3, 33, 38)) * 2)
    for output, mask, words in (
        (masked, None, r"was made with mask \{.* \(now null\); .* the --mask that it was begun with"),
        (masked, other, r"was made with mask\.listing .*; .* the --mask that it was begun with"),
        (bare, coarse, r"was made with mask null \(now \{"),
    ):
        for changed_volume in (False, True):
            with pytest.raises(OutputMismatchError, match=words) as caught:
                segment(SegmentConfig(**given, output=output, mask=mask, accept_changed_volume=changed_volume))
            assert "--accept-changed-volume" not in str(caught.value)
    assert segment(SegmentConfig(**given, output=bare, mask=coarse, overwrite=True))["blocks_written"] == 1


@pytest.mark.usefixtures("ray_cluster")
def test_a_forecast_counts_what_is_computed(
    asked: dict[str, Any],
    coarse: str,
    plain: Job,
    tmp_path: Path,
    write_zarr: Callable[..., str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = asked | {"dry_run": True, "output": f"{tmp_path}/out.zarr"}
    told = segment(SegmentConfig(**given, mask=coarse))
    found = survey(plain.mask, plain.layout.blocks, range(BLOCKS))
    assert told["forecast_tiles_masked"] == found.tiles - found.tiles_inside == len(found.outside)
    assert f"{len(found.outside)} of 75 tiles are outside the mask" in capsys.readouterr().err
    written = sum(path.stat().st_size for path in Path(plain.output.path).rglob("c/**/*") if path.is_file())
    assert told["forecast_bytes"] == pytest.approx(written, rel=0.25)
    nothing = write_zarr(tmp_path / "nothing.zarr", np.zeros((3, 33, 38), np.uint8))
    none = segment(SegmentConfig(**given, mask=nothing))
    assert none["forecast_tiles_masked"] == 75
    assert none["forecast_bytes"] < told["forecast_bytes"] / 2
    assert not (tmp_path / "out.zarr").exists()


@pytest.mark.usefixtures("ray_cluster")  # it asks how many workers a node holds
@pytest.mark.parametrize("looked_at", [BLOCKS, 40])
def test_a_forecast_scales_what_is_inside_and_what_is_not_apart(
    looked_at: int, plain: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mask_survey, "MOST_BLOCKS", looked_at)
    found = survey(plain.mask, plain.layout.blocks, some_of(range(BLOCKS)))
    share = len(found.inside) / looked_at
    assert len(found.inside) + len(found.outside) == looked_at
    assert 0.2 < share < 0.8

    def measure(job: Job, precision: str, blocks: list[int], tiff: tuple[str, ...]) -> Measured:
        assert tiff == ("mask",)
        inside = set(blocks) <= set(found.inside)
        assert inside or set(blocks) <= set(found.outside)
        assert len(blocks) == segment_forecast.MOST_BLOCKS
        # Four blocks after the first ones, with two tiles inside each that take 50 s; or none, and 1 s for the block.
        tiles, seconds = (8, 400.0) if inside else (0, 4.0)
        size, tiff_size = (500, 250) if inside else (10, 5)
        return Measured(4, tiles, 1000, size, tiff_size, seconds, 7.0, 3 if inside else 2)

    monkeypatch.setattr(segment_forecast, "measure", measure)
    monkeypatch.setattr(segment_forecast, "on_worker", lambda job, function, *arguments: function(*arguments))
    monkeypatch.setattr(segment_forecast, "on_workers", lambda job, function, calls, node: [function(*calls[0])])
    told = segment_forecast.forecast(
        plain, "float32", (), range(BLOCKS), Remainder(tiff=("mask",), tiff_pixels=3000), workers=2,
        startup_seconds=30.0, left_seconds=5.0,
    )  # fmt: skip
    assert told["forecast_startup_seconds"] == 30
    assert told["forecast_seconds"] == pytest.approx(30 + told["forecast_block_seconds"] + 5, abs=0.1)
    assert told["forecast_block_seconds"] == pytest.approx(7 + BLOCKS * (50 * share + 1 - share) / 2, abs=0.1)
    assert told["forecast_bytes"] == pytest.approx(np.prod(SHAPE) * (0.5 * share + 0.01 * (1 - share)), abs=1)
    assert told["forecast_tiff_bytes"] == pytest.approx(3000 * (0.25 * share + 0.005 * (1 - share)), abs=1)
    assert told["forecast_worker_rss_bytes"] == 3
    assert told["forecast_tiles_masked"] == round(BLOCKS * (1 - share))


def test_blocks_to_look_at_are_drawn_from_all_columns() -> None:
    assert some_of(range(7, 50)) == list(range(7, 50))
    chosen = some_of(range(100, 100 + 64 * MOST_BLOCKS))
    assert chosen == sorted(set(chosen))
    assert len(chosen) == MOST_BLOCKS
    assert len({block % 64 for block in chosen}) > 50
    assert set(chosen) <= set(range(100, 100 + 64 * MOST_BLOCKS))
    assert chosen == some_of(range(100, 100 + 64 * MOST_BLOCKS))


@pytest.mark.parametrize("tile_px", [TILE, 64, 150])
def test_the_probe_is_where_something_is_inside(
    tile_px: int, asked: dict[str, Any], tmp_path: Path, write_zarr: Callable[..., str]
) -> None:
    volume = open_volume(asked["volume"])
    grid = BlockGrid(TileGrid(SHAPE, (1, tile_px, tile_px), (0, 22, 22)), (1, 1, 1))

    def masked(name: str, *inside: tuple[int, int, int]) -> MaskVolume:
        values = np.zeros(SHAPE, np.uint8)
        for place in inside:
            values[place] = 1
        return open_mask(write_zarr(tmp_path / name, values), volume)

    assert place_inside(masked("none"), grid) is None
    for n, place in enumerate([(0, 0, 0), (2, 129, 149), (1, 70, 3)]):
        mask = masked(f"one-{n}", place)
        assert place_inside(mask, grid) == place
        box = probe_box(grid.tiles, 4, place)
        # Its tile is among those compared, and where there are others, so are they.
        touched = [grid.tiles.write_box(tile) for tile in grid.blocks_touching(box)]
        assert any(tile.contains(Box.of_shape((1, 1, 1), place)) for tile in touched)
        assert len(touched) == 1 if tile_px == 150 else len(touched) >= 4
        assert not any(side % 4 for side in (*box.start[1:], *box.stop[1:]))
    assert place_inside(masked("two", (0, 0, 0), (1, 60, 70)), grid) == (1, 60, 70)
