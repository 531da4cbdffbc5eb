"""Tiles decode to the colours they were made from."""

import io

import numpy as np
import pytest
from PIL import Image

from unet_ray.report.tile_png import grey, numbered, overlay, tile_png

VALUES = np.arange(256, dtype=np.uint8).reshape(8, 32)


@pytest.mark.parametrize("colours", [grey(), overlay((86, 180, 233)), numbered({1: (230, 159, 0), 7: (0, 114, 178)})])
def test_every_value_has_its_colour(colours):
    decoded = np.asarray(Image.open(io.BytesIO(tile_png(VALUES, colours))).convert("RGBA"))
    np.testing.assert_array_equal(decoded[..., 3], colours[VALUES][..., 3])
    seen = decoded[..., 3] > 0
    np.testing.assert_array_equal(decoded[seen], colours[VALUES][seen])


def test_what_the_tables_say():
    assert grey()[100].tolist() == [100, 100, 100, 255]
    assert overlay((1, 2, 3))[100].tolist() == [1, 2, 3, 100]
    table = numbered({1: (1, 2, 3)})
    assert (table[1].tolist(), int(table[[0, 2, 255], 3].max())) == ([1, 2, 3, 255], 0)
