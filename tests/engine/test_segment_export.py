"""Rows of the finished segmentation, as a TIFF file asks for them."""

from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import example, given
from hypothesis import strategies as st

from unet_ray.engine.segment_export import _Rows
from unet_ray.geometry.box import Box

VALUES = np.random.default_rng(0).integers(0, 256, (2, 5, 40, 6), dtype=np.uint8)


class Channel:
    """Reads a channel, and keeps what was read of it."""

    def __init__(self, number: int) -> None:
        self.number, self.read_boxes = number, list[Box]()

    def __call__(self, box: Box) -> npt.NDArray[Any]:
        self.read_boxes.append(box)
        assert Box.of_shape(VALUES.shape[1:]).intersect(box) == box
        values: npt.NDArray[Any] = VALUES[self.number][box.slices]
        return values


@given(
    st.integers(1, 2),
    st.lists(st.integers(0, 4), min_size=1, max_size=3, unique=True),
    st.tuples(st.integers(0, 39), st.integers(1, 40)),
    st.integers(1, 50),
    st.integers(1, 50),
)
@example(1, [0, 3], (5, 30), 7, 10)
def test_every_row_is_read_once_and_is_the_right_one(
    channels: int, sections: list[int], rows: tuple[int, int], chunk_px: int, band: int
) -> None:
    top, height = rows[0], min(rows[1], 40 - rows[0])
    stored = [Channel(number) for number in range(channels)]
    region = Box((0, top, 1), (5, top + height, 5))
    read_rows = _Rows(stored, tuple(sections), region, chunk_px)
    for page in range(channels * len(sections)):
        place, channel = divmod(page, channels)
        expected = VALUES[channel, sections[place], top : top + height, 1:5]
        for start in range(0, height, band):
            stop = min(start + band, height)
            np.testing.assert_array_equal(read_rows(page, start, stop), expected[start:stop])
    for volume in stored:
        # All of them, each once, and cut between chunks.
        assert sum(box.shape[1] for box in volume.read_boxes) == height * len(sections)
        assert all(box.start[1] % chunk_px == 0 or box.start[1] == top for box in volume.read_boxes)


def test_rows_may_be_asked_for_again() -> None:
    read_rows = _Rows([Channel(1)], (2,), Box((0, 0, 0), (5, 40, 6)), 16)
    for start in (0, 20, 0, 10):
        np.testing.assert_array_equal(read_rows(0, start, start + 10), VALUES[1, 2, start : start + 10])
