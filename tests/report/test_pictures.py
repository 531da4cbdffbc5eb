"""Panels and sheets: decoded again and looked at by colour and place."""

import io

import matplotlib.image
import numpy as np
import pytest

from unet_ray.colours import BLUE, ORANGE, RED
from unet_ray.report.panel_row import PanelRow
from unet_ray.report.pictures import contact_sheet_png, panels_png


def pixels(png: bytes) -> np.ndarray:
    return np.round(255 * matplotlib.image.imread(io.BytesIO(png), format="png")[..., :3]).astype(int)


def share(picture: np.ndarray, colour: str | tuple[int, int, int]) -> float:
    rgb = [int(colour[k : k + 2], 16) for k in (1, 3, 5)] if isinstance(colour, str) else colour
    return float((np.abs(picture - rgb).max(axis=2) <= 2).mean())


def row(section: int = 0, *, truth: bool = True) -> PanelRow:
    """Truth: the left half is membrane; mask: the upper quarter."""
    left, upper = np.zeros((2, 64, 64), np.uint8)
    left[:, :32] = 1
    upper[:16] = 1
    raw = np.random.default_rng(section).integers(90, 160, (64, 64)).astype(np.uint8)
    return PanelRow(section, raw, np.full((64, 64), 0.25, np.float32), upper, left if truth else None, "V_rand 0.9")


def test_panels_show_errors_in_colour_and_the_truth_only_where_there_is_one() -> None:
    with_truth, without = pixels(panels_png([row()])), pixels(panels_png([row(truth=False)]))
    assert with_truth.shape[1] == pytest.approx(without.shape[1] * 4 / 3, rel=0.03)
    # 3/8 of the mask's panel is missed and 1/8 too much; it is a quarter of the picture, less margins.
    for colour, least, most in ((RED, 0.06, 0.094), (BLUE, 0.02, 0.032)):
        assert least < share(with_truth, colour) < most
        assert share(without, colour) == 0
    # The probability's panel: 0.25 of black.
    assert 0.15 < sum(share(with_truth, (grey,) * 3) for grey in (188, 193)) < 0.25


def test_panels_take_bytes_and_floats_alike() -> None:
    # 51 / 255 is 0.2.
    a, b = row(), row()
    a = PanelRow(0, a.raw, np.full((64, 64), 0.2, np.float32), a.mask, a.truth)
    b = PanelRow(0, b.raw, np.full((64, 64), 51, np.uint8), b.mask, b.truth)
    assert panels_png([a]) == panels_png([b])


def test_panels_have_a_row_each_and_mixed_truth() -> None:
    one, three = (
        pixels(panels_png([row()])),
        pixels(panels_png([row(1), row(2, truth=False), row(3)], title="demo")),
    )
    assert 2.5 < three.shape[0] / one.shape[0] < 3.1
    assert three.shape[1] == one.shape[1]


def test_scale_bar_is_as_long_as_it_says() -> None:
    raw = np.zeros((100, 500), np.uint8)
    shown = PanelRow(0, raw, raw, raw)
    picture = pixels(panels_png([shown], voxel_size_nm=(50, 4, 4)))
    plain = pixels(panels_png([shown]))
    # 500 px of 4 nm are 2 micrometres: the bar is a quarter of the panel, 500 nm.
    changed = np.argwhere((picture != plain).any(axis=2))
    third = picture.shape[1] / 3
    length = changed[:, 1].max() - changed[:, 1].min()
    assert 0.2 * third < length < 0.27 * third
    assert changed[:, 1].max() < third


def test_contact_sheet_outlines_labels_and_frames_them() -> None:
    image = np.full((80, 80), 100, np.uint8)
    image[0, 0] = 255
    label = np.zeros((60, 60), np.uint8)
    label[20:40] = 1
    weight = np.where(label, 9.0, 1.0).astype(np.float16)
    sheet = pixels(contact_sheet_png([image] * 6, [label] * 6, [weight] * 6, [f"variant {k}" for k in range(6)]))
    assert share(sheet, ORANGE) > 0.0005
    assert share(sheet, BLUE) > 0.0005
    assert share(sheet, (253, 231, 37)) > 0.02  # the end of viridis: weight 9
    same = pixels(contact_sheet_png([image[:60, :60]] * 2, [label] * 2, None, ["a", "b"], title="patches"))
    assert share(same, ORANGE) > 0.0005
    assert share(same, BLUE) == 0
    assert same.shape[0] < sheet.shape[0] / 2


def test_an_even_image_and_an_empty_label_are_drawn() -> None:
    flat = np.zeros((16, 16), np.uint8)
    assert pixels(contact_sheet_png([flat], [flat], [flat + 1], ["empty"])).std() > 1
    assert pixels(panels_png([PanelRow(0, flat, flat, flat, flat)])).std() > 1


def test_the_same_arrays_give_the_same_bytes() -> None:
    assert panels_png([row()]) == panels_png([row()])
