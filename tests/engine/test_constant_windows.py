"""Tiles of one grey value are predicted once, and what is written is what would be without."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unet_ray.engine import segment_worker
from unet_ray.engine.constant_windows import MOST_KEPT, ConstantWindows, is_constant
from unet_ray.engine.segment_worker import Job, SegmentWorker
from unet_ray.network.predict import Predictor, Tta

SHAPE, TILE, THRESHOLD = (4, 130, 150), 32, 0.53


@pytest.fixture
def padded(phantom_image: Callable[..., npt.NDArray[np.uint8]]) -> npt.NDArray[np.uint8]:
    """A phantom whose section 1 is padded on the right, and 2 and 3 have one grey value each."""
    values = phantom_image(SHAPE, 2)
    values[1, :, 70:] = 0
    values[2:] = 17
    values[3] = 200
    return values


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[npt.NDArray[np.uint8]]:
    """Windows that the network saw."""
    seen: list[npt.NDArray[np.uint8]] = []
    predict = Predictor.__call__

    def spy(self: Predictor, windows: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        seen.extend(windows.copy())
        return predict(self, windows)

    monkeypatch.setattr(Predictor, "__call__", spy)
    return seen


@pytest.mark.parametrize(
    # Windows that hold one value: 5 rows of 2 tiles in section 1, and all 25 tiles of sections 2 and 3. With the
    # sections above and below there is none, for below the last section comes section 2 again.
    ("context", "tta", "constant", "values"),
    [(0, "none", 60, 3), (0, "dihedral", 60, 3), (1, "none", 0, 0)],
)
def test_the_same_bytes_with_fewer_passes(
    context: int,
    tta: Tta,
    constant: int,
    values: int,
    padded: npt.NDArray[np.uint8],
    calls: list[npt.NDArray[np.uint8]],
    tmp_path: Path,
    write_model: Callable[..., str],
    write_zarr: Callable[..., str],
    by_plain_loop: Callable[..., Job],
    shards: Callable[..., dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    volume = write_zarr(tmp_path / "volume.zarr", padded)
    model = write_model(tmp_path / "m", base_channels=4, in_channels=1 + 2 * context, seed=3)
    job = by_plain_loop(volume, model, tmp_path / "out", TILE, THRESHOLD, tta=tta)
    passes = len(calls)
    assert passes == 100 - constant + values
    worker = SegmentWorker(job, "float32")
    counted = []
    for block in range(job.layout.blocks.num_blocks):
        worker.compute(block, worker.read(block))
        counted.append(worker.counts(block))
    assert sum(counts["tiles_constant"] for counts in counted) == constant
    assert sum(counts["tiles"] for counts in counted) == 100
    calls.clear()
    monkeypatch.setattr(segment_worker, "is_constant", lambda window: False)
    by_plain_loop(volume, model, tmp_path / "each", TILE, THRESHOLD, tta=tta)
    assert len(calls) == 100
    made, each = shards(tmp_path / "out"), shards(tmp_path / "each")
    assert len({shard.digest for shard in each.values()}) > 20
    assert {key: shard.digest for key, shard in made.items()} == {key: shard.digest for key, shard in each.items()}


def test_constant_in_context_sections_too(
    padded: npt.NDArray[np.uint8],
    calls: list[npt.NDArray[np.uint8]],
    tmp_path: Path,
    write_model: Callable[..., str],
    write_zarr: Callable[..., str],
    by_plain_loop: Callable[..., Job],
) -> None:
    padded[2:] = 0
    padded[1] = 0
    volume = write_zarr(tmp_path / "volume.zarr", padded)
    by_plain_loop(volume, write_model(tmp_path / "m", in_channels=3), tmp_path / "out", TILE, THRESHOLD)
    assert len(calls) == 50 + 1  # sections 0 and 1 see section 0


@given(
    side=st.integers(1, 5), depth=st.integers(1, 3), grey=st.integers(0, 255), other=st.integers(1, 255),
    place=st.integers(0, 10**6),
)  # fmt: skip
def test_one_other_pixel_makes_a_window_not_constant(side: int, depth: int, grey: int, other: int, place: int) -> None:
    window = np.full((depth, side, side + 1), grey, np.uint8)
    assert is_constant(window)
    window.flat[place % window.size] = (grey + other) % 256
    assert not is_constant(window)


def test_few_are_kept_the_latest_of_them_and_as_copies() -> None:
    kept, batch = ConstantWindows(), np.zeros((20, 2, 2), np.float32)

    def window(grey: int, side: int = 4) -> npt.NDArray[np.uint8]:
        return np.full((1, side, side), grey, np.uint8)

    for grey in range(MOST_KEPT):
        batch[grey] = grey
        kept.keep(window(grey), batch[grey])
    assert kept.known(window(0)) is not None  # met again, so 1 is the next to go
    kept.keep(window(100), batch[19])
    batch[:] = -1
    found = [kept.known(window(grey)) for grey in (*range(MOST_KEPT), 100)]
    assert found[1] is None
    assert [output.tolist() for output in found if output is not None] == [
        [[grey, grey], [grey, grey]] for grey in (0, *range(2, MOST_KEPT), 0)
    ]
    assert kept.known(window(0, side=5)) is None
    for grey in range(200):
        kept.keep(window(grey), batch[0])
    assert sum(kept.known(window(grey)) is not None for grey in range(256)) == MOST_KEPT
