"""Levels of lower resolution through real Ray: what they hold, what rewrites them, what leaves them alone."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import zarr

from unet_ray.config.network import network_config
from unet_ray.config.segment import SegmentConfig
from unet_ray.engine import pyramid, segment_plan, segment_request, segment_start
from unet_ray.engine.segment import segment
from unet_ray.engine.segment_remainder import Remainder, remainder
from unet_ray.engine.segment_request import open_request
from unet_ray.geometry.block_set import BlockSet
from unet_ray.numerics.downsample import downsample
from unet_ray.storage.segmentation import ATTRIBUTE
from unet_ray.storage.segmentation_layout import MASK
from unet_ray.storage.volume import open_volume

pytestmark = pytest.mark.usefixtures("ray_cluster")

# 65 x 75 px in shards of 16: levels of 65 x 75, 33 x 38, 17 x 19 and 9 x 10 px.
SHAPE, TILE, THRESHOLD, LEVELS = (2, 65, 75), 16, 0.53, range(4)
FACTORS = (1, 2, 2)


@pytest.fixture(scope="module")
def asked(
    tmp_path_factory: pytest.TempPathFactory,
    write_model: Callable[..., str],
    write_zarr: Callable[..., str],
    phantom_image: Callable[..., npt.NDArray[np.uint8]],
) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("pyramid")
    return {
        "volume": write_zarr(folder / "volume.zarr", phantom_image(SHAPE, 2)),
        "model": write_model(folder / "model", "default", base_channels=4),
        "tile_px": TILE, "threshold": THRESHOLD, "precision": "float32", "threads": 1, "workers": 1,
    }  # fmt: skip


@pytest.fixture(autouse=True)
def small_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segment_plan, "LARGEST_CHUNK_PX", 16)


@pytest.fixture(scope="module")
def made(asked: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Its levels are made by a pool of actors, those of the other tests by one process."""
    out = tmp_path_factory.mktemp("made") / "out.zarr"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segment_plan, "LARGEST_CHUNK_PX", 16)
        patch.setattr(pyramid, "POOL_SECONDS", 0)
        return out, segment(SegmentConfig(**asked | {"workers": 2}, output=str(out)))


@pytest.fixture
def output(made: tuple[Path, Any], tmp_path: Path) -> Path:
    """A copy of the finished segmentation, times included."""
    shutil.copytree(made[0], tmp_path / "out.zarr", copy_function=shutil.copy2)
    return tmp_path / "out.zarr"


def level(out: Path, number: int, group: str = "") -> npt.NDArray[np.uint8]:
    from unet_ray.geometry.box import Box

    volume = open_volume(str(out / group), array=str(number))
    values: npt.NDArray[np.uint8] = volume.read(Box.of_shape(volume.shape))
    return values


def rewritten(before: dict[str, Any], after: dict[str, Any]) -> set[str]:
    assert {key: shard.digest for key, shard in after.items()} == {key: shard.digest for key, shard in before.items()}
    return {key for key in before if before[key].written != after[key].written}


def both(keys: set[str]) -> set[str]:
    """The keys, and those of the masks beside them."""
    return keys | {f"{MASK}/{key}" for key in keys}


def test_each_level_is_the_mean_of_the_one_below(made: tuple[Path, dict[str, Any]]) -> None:
    out, summary = made
    assert summary["pyramid_levels"] == len(LEVELS)
    assert summary["pyramid_blocks_written"] == 2 * (3 * 3 + 2 * 2 + 1)
    expected = level(out, 0)
    for number in LEVELS:
        if number:
            expected = downsample(expected, FACTORS)
        assert np.ptp(expected) > 3
        assert np.array_equal(level(out, number), expected)
        assert np.array_equal(level(out, number, MASK), expected > THRESHOLD * 255)


def test_an_output_that_was_begun_with_padded_levels_goes_on_with_them(
    asked: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segment_plan, "LARGEST_CHUNK_PX", 8)  # so a fifth level, of 5 x 5 px
    old, new = tmp_path / "old.zarr", tmp_path / "new.zarr"
    with monkeypatch.context() as patch:
        for module in (segment_request, segment_start):
            patch.setattr(module, "CUT", 1)
        segment(SegmentConfig(**asked, sections=("0",), output=str(old)))
    document = json.loads((old / "zarr.json").read_text())
    assert document["attributes"][ATTRIBUTE].pop("cut") == 1  # nor was it said then
    (old / "zarr.json").write_text(json.dumps(document))
    for out in (old, new):
        assert segment(SegmentConfig(**asked, output=str(out)))["status"] == "complete"
    sides = {out: [zarr.open_array(out / str(number)).shards[2] for number in range(5)] for out in (old, new)}
    assert sides == {old: [16] * 5, new: [16, 16, 16, 16, 8]}
    expected = level(old, 0)
    for number in range(5):
        expected = downsample(expected, FACTORS) if number else expected
        for out in (old, new):
            assert np.array_equal(level(out, number), expected)
            assert np.array_equal(level(out, number, MASK), expected > THRESHOLD * 255)


def test_a_repair_rewrites_what_was_made_from_it_and_nothing_else(
    asked: dict[str, Any], output: Path, shards: Callable[..., dict[str, Any]]
) -> None:
    before = shards(output)
    (output / "0/c/1/4/2").unlink()  # its ancestors are 1/c/1/2/1, 2/c/1/1/0 and 3/c/1/0/0
    damaged = output / "2/c/0/1/1"
    data = bytearray(damaged.read_bytes())
    data[5] ^= 2
    damaged.write_bytes(data)
    lost = output / MASK / "1/c/0/0/2"
    lost.write_bytes(b"")
    summary = segment(SegmentConfig(**asked, output=str(output), verify=True))
    assert (summary["status"], summary["blocks_written"], summary["pyramid_blocks_written"]) == ("complete", 1, 4)
    made_again = {"0/c/1/4/2", "1/c/1/2/1", "2/c/1/1/0", "3/c/1/0/0", "2/c/0/1/1"}
    assert rewritten(before, shards(output)) == both(made_again) | {f"{MASK}/1/c/0/0/2"}


@pytest.mark.parametrize("choice", [{"sections": ("0",)}, {"roi": "0:1,0:10,0:10"}], ids=["sections", "roi"])
def test_what_is_damaged_outside_the_choice_is_made_again_too(
    asked: dict[str, Any],
    output: Path,
    shards: Callable[..., dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
    choice: dict[str, Any],
) -> None:
    before = shards(output)
    damaged = output / "0/c/1/4/2"
    damaged.write_bytes(damaged.read_bytes()[:-3])
    chosen = segment(SegmentConfig(**asked, **choice, output=str(output)))["blocks"]
    summary = segment(SegmentConfig(**asked, **choice, output=str(output), verify=True))
    assert (summary["status"], summary["blocks"], summary["blocks_written"]) == ("complete", chosen + 1, 1)
    assert rewritten(before, shards(output)) == both({"0/c/1/4/2", "1/c/1/2/1", "2/c/1/1/0", "3/c/1/0/0"})
    said = capsys.readouterr().err
    assert (said.count("is damaged and will be made again"), "was there" in said) == (1, False)
    assert f"segment --verify: {len(before)} of {len(before)} shards (100 %)" in said

    # Set aside, and then the run was killed: the same command does not take the output for whole.
    damaged.rename(f"{damaged}.damaged")
    again = segment(SegmentConfig(**asked, **choice, output=str(output), verify=True))
    assert (again["status"], again["blocks_written"], again["pyramid_blocks_written"]) == ("complete", 1, 3)
    said = capsys.readouterr().err
    assert ("is damaged" in said, said.count("was there and will be made again")) == (False, 1)
    assert {key: s.digest for key, s in shards(output).items()} == {key: s.digest for key, s in before.items()}


def test_a_level_comes_with_the_last_block_that_it_is_made_from(
    asked: dict[str, Any], made: tuple[Path, Any], tmp_path: Path, shards: Callable[..., dict[str, Any]]
) -> None:
    out = tmp_path / "out.zarr"
    first = segment(SegmentConfig(**asked, output=str(out), sections=("1",)))
    assert first["pyramid_blocks_written"] == 3 * 3 + 2 * 2 + 1
    assert not any(key.split("/")[-3] == "0" for key in shards(out))
    before = shards(out)
    second = segment(SegmentConfig(**asked, output=str(out)))
    assert second["pyramid_blocks_written"] == 3 * 3 + 2 * 2 + 1
    after = shards(out)
    assert {key: s.digest for key, s in after.items()} == {key: s.digest for key, s in shards(made[0]).items()}
    assert all(after[key] == shard for key, shard in before.items())


def test_a_new_threshold_rewrites_every_levels_mask(
    asked: dict[str, Any], output: Path, shards: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    before = shards(output)
    segment(SegmentConfig(**asked | {"threshold": 0.56}, output=str(output)))
    told = f"segment: all of the mask of {output} is made again with --threshold 0.56, which was {asked['threshold']}\n"
    assert told in capsys.readouterr().err
    after = shards(output)
    assert {key for key in before if before[key] != after[key]} == {key for key in before if key.startswith(MASK)}
    for number in LEVELS:
        assert np.array_equal(level(output, number, MASK), level(output, number) > 0.56 * 255)


@pytest.mark.parametrize("lost", ["0", f"{MASK}/2", MASK, "labels"])
def test_metadata_that_were_lost_are_put_again(
    lost: str, asked: dict[str, Any], output: Path, shards: Callable[..., dict[str, Any]]
) -> None:
    """As in a copy that left some files out: without them readers see no array."""
    before, document = shards(output), (output / lost / "zarr.json").read_bytes()
    (output / lost / "zarr.json").unlink()
    assert segment(SegmentConfig(**asked, output=str(output)))["blocks_written"] == 0
    assert (output / lost / "zarr.json").read_bytes() == document
    assert not rewritten(before, shards(output))


@pytest.mark.parametrize("error", ["WorkerCrashedError", "OutOfMemoryError"])
def test_a_level_whose_process_is_killed_is_made_by_a_pool(
    error: str, asked: dict[str, Any], output: Path, shards: Callable[..., dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    import ray

    def killed(*given: Any) -> None:
        kind = getattr(ray.exceptions, error)
        raise kind("low on memory") if error == "OutOfMemoryError" else kind

    before = shards(output)
    (output / "3/c/1/0/0").unlink()
    monkeypatch.setattr(pyramid, "run_few", killed)
    assert segment(SegmentConfig(**asked, output=str(output)))["pyramid_blocks_written"] == 1
    assert rewritten(before, shards(output)) == both({"3/c/1/0/0"})


def test_tasks_make_blocks_that_take_seconds_and_a_pool_makes_what_takes_longer() -> None:
    assert [pyramid._tasks(1000, seconds, 100) for seconds in (0.02, 0.99, 1.0, 49.0, 2000.0)] == [1, 1, 2, 98, 100]
    assert pyramid._tasks(1000, 2001.0, 100) == 0
    assert [pyramid._tasks(3, seconds, 100) for seconds in (5.0, 60.0, 61.0)] == [3, 3, 0]


def test_what_a_pyramid_will_take_is_told_by_level(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the first level a pool makes the shards, of the last tasks do."""
    monkeypatch.setattr(segment_plan, "LARGEST_CHUNK_PX", 256)
    network = network_config("default")
    layout = segment_plan.layout_for((800, 4096, 4096), 1024, network, None)
    alone = []
    for level in layout.levels[1:]:
        grid = layout.grid(level)
        voxels = 800 * (4096 >> level) ** 2
        assert sum(grid.write_box(block).voxels for block in range(grid.num_blocks)) == voxels
        alone.append(pyramid.BLOCK_SECONDS * grid.num_blocks + pyramid.MVOXEL_SECONDS * voxels / 1e6)
    shared = [pyramid._tasks(layout.grid(level).num_blocks, seconds, 2) for level, seconds in enumerate(alone, 1)]
    assert (shared[0], shared[-1]) == (0, 2)
    took = [
        pyramid.TASK_SECONDS + seconds / tasks if tasks else pyramid.POOL_SECONDS + seconds / 2
        for seconds, tasks in zip(alone, shared, strict=True)
    ]
    none, blocks = BlockSet(layout.blocks.num_blocks), range(layout.blocks.num_blocks)
    left = Remainder(above=pyramid.missing_above(None, layout, none, blocks))
    assert {level: len(made) for level, made in left.above.items()} == {
        level: layout.grid(level).num_blocks for level in layout.levels[1:]
    }
    assert left.seconds(layout, 2) == pytest.approx(sum(took))
    first = pyramid.missing_above(None, layout, none, range(layout.blocks.counts[1] * layout.blocks.counts[2]))
    assert {level: len(made) for level, made in first.items()} == {
        level: layout.grid(level).counts[1] * layout.grid(level).counts[2] for level in layout.levels[1:]
    }


@pytest.mark.parametrize("again", [False, True])
def test_a_forecast_knows_the_levels_that_will_be_made(
    asked: dict[str, Any],
    output: Path,
    shards: Callable[..., dict[str, Any]],
    again: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Those of blocks that are to do, and those that a killed run has left out."""
    lost = ["1/c/0/0/0", "2/c/0/0/0", "3/c/0/0/0", f"{MASK}/2/c/1/0/0"]
    for key in lost + ["0/c/1/4/2"] * again:
        (output / key).unlink()
    before = shards(output)
    told = segment(SegmentConfig(**asked, output=str(output), dry_run=True))
    assert shards(output) == before
    request = open_request(SegmentConfig(**asked, output=str(output)))
    done = request.job.output.done(request.job.layout.blocks)
    left = remainder(request, done, list(done.missing()))
    summary = segment(SegmentConfig(**asked, output=str(output)))
    assert sum(map(len, left.above.values())) == summary["pyramid_blocks_written"] == (6 if again else 3)
    assert left.labels == {2: [4]}
    assert told["forecast_seconds"] > pyramid.BLOCK_SECONDS * summary["pyramid_blocks_written"]
    assert told["forecast_bytes"] > 0
    if not again:
        assert "for what is left, 1 label image, 3 blocks of lower resolution; " in capsys.readouterr().err
