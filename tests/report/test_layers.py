import io

import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image

from unet_ray.colours import BLUE, RED
from unet_ray.report.layers import LARGEST_PX, class_layers, section_layers, smaller


def pixels(encoded):
    return np.asarray(Image.open(io.BytesIO(encoded)))


def layers(shape, **changed):
    zeros = np.zeros(shape)
    given = {"raw": zeros, "truth": zeros > 0, "probability": zeros, "errors": zeros.astype(np.uint8)}
    return section_layers(3, **given | changed)


def test_membrane_is_dark_and_all_layers_have_one_size():
    probability = np.zeros((20, 30))
    probability[:, :10] = 0.9
    found = layers((20, 30), truth=probability > 0.5, probability=probability)
    assert list(found.layers) == ["raw", "truth", "probability", "mask", "errors"]
    assert {pixels(layer).shape[:2] for layer in found.layers.values()} == {(20, 30)} == {(found.height, found.width)}
    for name in ("truth", "mask"):
        assert pixels(found.layers[name])[0, 0] == 0
        assert pixels(found.layers[name])[0, 20] == 255
    assert abs(int(pixels(found.layers["probability"])[0, 2]) - round(255 * 0.1)) < 4


@pytest.mark.parametrize(("code", "colour"), [(3, RED), (4, BLUE)])
def test_a_single_split_or_merge_is_a_dot_to_be_seen(code, colour):
    errors = np.zeros((40, 40), np.uint8)
    errors[20, 0] = code  # at the border, which its dot must not leave on the other side
    picture = pixels(layers((40, 40), errors=errors).layers["errors"]).astype(float)
    wanted = 255 * np.array(mpl.colors.to_rgb(colour))
    assert np.abs(picture[20, 1] - wanted).max() < 40
    assert np.abs(picture[20, 38] - picture[5, 5]).max() < 10


def test_wrong_pixels_that_change_no_cell_are_pale():
    errors = np.zeros((60, 60), np.uint8)
    errors[10:20, 10:20], errors[40:50, 40:50] = 1, 2
    picture = pixels(layers((60, 60), errors=errors).layers["errors"]).astype(float)
    (r, _, b), (r2, _, b2) = picture[15, 15], picture[45, 45]
    assert r > b + 50
    assert b2 > r2 + 50
    assert picture.max() < 0.6 * 255  # 45 % of a colour over black


def test_a_large_section_is_shown_by_means_of_squares():
    shape = (2 * LARGEST_PX + 1, 50)
    truth = np.zeros(shape, bool)
    truth[-1] = True
    found = layers(shape, truth=truth)
    assert found.reduced == 3
    assert (found.height, found.width) == (-(-shape[0] // 3), 17)
    # The last square has only the rows that are left: 1537 = 512 x 3 + 1.
    assert pixels(found.layers["truth"])[-1].tolist() == [0] * 17
    assert pixels(found.layers["truth"])[-2].tolist() == [255] * 17


def test_without_raw_images_the_errors_lie_on_the_mask():
    found = layers((8, 8), raw=None)
    assert "raw" not in found.layers
    assert pixels(found.layers["errors"]).shape == (8, 8, 3)


def test_smaller_keeps_the_picture():
    noise = np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(np.kron(noise[:5, :5], np.ones((8, 8, 1), np.uint8))).save(buffer, "PNG")
    again = pixels(smaller(buffer.getvalue()))
    assert np.abs(again.astype(int) - pixels(buffer.getvalue())).mean() < 8


COLOURS = [(153, 153, 153), (230, 159, 0), (86, 180, 233)]


def test_classes_have_their_colours_and_what_differs_is_red():
    truth, predicted = np.zeros((2, 30, 40), np.uint8)
    truth[:, 20:], predicted[:, 10:] = 1, 1
    truth[:10], predicted[:10], ignore = 0, 2, np.zeros((30, 40), bool)
    ignore[:10] = True
    raw = np.tile(np.arange(40), (30, 1))
    found = class_layers(3, raw=raw, truth=truth, predicted=predicted, ignore=ignore, colours=COLOURS)
    assert list(found.layers) == ["raw", "truth", "prediction", "errors"]
    shown = {name: pixels(layer) for name, layer in found.layers.items()}
    assert shown["truth"][[0, 20, 20], [30, 5, 30]].tolist() == [[255] * 3, [*COLOURS[0]], [*COLOURS[1]]]
    assert shown["prediction"][[0, 20, 20], [30, 5, 30]].tolist() == [[*COLOURS[2]], [*COLOURS[0]], [*COLOURS[1]]]
    red, green, blue = np.moveaxis(shown["errors"].astype(int), -1, 0)
    wrong = red > blue + 60
    assert wrong[12:, 12:18].all()  # of another class
    assert not wrong[12:, :8].any()
    assert not wrong[12:, 24:].any()
    assert not wrong[:7].any()  # nobody knows
    assert np.abs(red - green)[12:, 24:].max() < 30  # the raw image is grey there


def test_large_sections_of_classes_keep_to_the_colours():
    truth = np.zeros((LARGEST_PX + 1, 51), np.uint8)
    truth[:, 1::2] = 1
    found = class_layers(3, raw=None, truth=truth, predicted=1 - truth, ignore=None, colours=COLOURS)
    assert (found.reduced, found.height, found.width) == (2, -(-len(truth) // 2), 26)
    seen = {tuple(colour) for layer in ("truth", "prediction") for colour in pixels(found.layers[layer]).reshape(-1, 3)}
    assert seen == {COLOURS[0], COLOURS[1]}
    assert pixels(found.layers["errors"]).shape == (found.height, found.width, 3)
