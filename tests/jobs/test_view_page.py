"""The viewer's page in a real browser: sections, layers, keys, narrow windows."""

import numpy as np
import pytest
import tifffile

from tests.scenes import SHAPE, VOXEL_SIZE_NM, probabilities, raw_values, write_segmentation
from tests.viewer import served
from unet_ray.engine.view_layers import grey_range
from unet_ray.storage.image_levels import open_levels

pytestmark = pytest.mark.browser

WIDTHS = [1280, 400]
# Colours on the screen, in the middle of a voxel.
PIXEL = """([y, x]) => {
  const ratio = devicePixelRatio, place = (at, voxel, side, stretch) => (voxel + .5 - at) * stretch + side / 2;
  const left = place(at.x, x, canvas.clientWidth, at.zoom);
  const top = place(at.y, y, canvas.clientHeight, at.zoom * stretch);
  return [...paint.getImageData(Math.floor(left * ratio), Math.floor(top * ratio), 1, 1).data];
}"""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    tifffile.imwrite(folder / "raw.tif", raw_values(), photometric="minisblack")
    write_segmentation(folder / "s.zarr")
    return folder


@pytest.fixture(scope="module")
def address(files):
    with served(volume=files / "raw.tif", segmentation=files / "s.zarr", voxel_size_nm=VOXEL_SIZE_NM) as url:
        yield url


def drawn(page, z):
    page.wait_for(f"document.body.dataset.drawn === '{z}'")


def only(page, shown):
    """Show these layers alone."""
    for index in range(3):
        page.page.locator(f"#layer-{index}").set_checked(index in shown)
    page.evaluate("new Promise(requestAnimationFrame)")
    page.wait_for("document.body.dataset.drawn !== ''")


def is_faultless(page):
    assert (page.errors, page.outside) == ([], [])
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.evaluate("$('message').hidden")


@pytest.mark.parametrize("width", WIDTHS)
def test_a_section_with_its_layers(browser_page, address, files, width):
    page = browser_page(f"{address}/", width=width)
    drawn(page, 2)
    assert page.page.title() == "raw.tif · unet_ray view"
    assert page.page.inner_text("#about") == "5 x 150 x 200 voxels (z y x), voxel 50 x 4 x 4 nm"
    assert page.page.locator("#layers label").all_inner_texts() == ["raw", "probability", "membrane"]
    low, high = grey_range(open_levels(str(files / "raw.tif")))
    only(page, [0])
    for y, x in ((0, 0), (75, 100), (149, 199), (20, 180)):
        expected = np.clip(np.rint((raw_values()[2, y, x] - low) * 255 / (high - low)), 0, 255)
        assert page.evaluate(PIXEL, [y, x]) == [expected, expected, expected, 255]
    band = np.unravel_index(probabilities()[2].argmax(), SHAPE[1:])
    place = [int(n) for n in band]
    only(page, [1])
    red, green, blue, opacity = page.evaluate(PIXEL, place)
    assert np.abs(np.array([red, green, blue]) - (86, 180, 233)).max() <= 2
    assert abs(opacity - 0.6 * 255) <= 1
    only(page, [2])
    red, green, blue, opacity = page.evaluate(PIXEL, place)
    assert np.abs(np.array([red, green, blue]) - (230, 159, 0)).max() <= 3
    is_faultless(page)


@pytest.mark.parametrize("width", WIDTHS)
def test_switches_and_opacities_change_what_is_seen(browser_page, address, width):
    page = browser_page(f"{address}/", width=width)
    drawn(page, 2)
    only(page, [0, 1, 2])
    box = {key: round(side) for key, side in page.page.locator("#view").bounding_box().items()}
    inside = np.s_[box["y"] : box["y"] + box["height"] // 2, box["x"] : box["x"] + box["width"]]
    everything = page.screenshot()[inside]
    only(page, [0, 2])
    without = page.screenshot()[inside]
    assert (everything != without).any(axis=2).mean() > 0.02
    page.click("#layers label:has-text('probability')")
    page.evaluate("new Promise(requestAnimationFrame)")
    np.testing.assert_array_equal(page.screenshot()[inside], everything)
    only(page, [1])
    place = [int(n) for n in np.unravel_index(probabilities()[2].argmax(), SHAPE[1:])]
    for opacity in (100, 30):
        page.page.locator("#opacity-1").fill(str(opacity))
        page.evaluate("new Promise(requestAnimationFrame)")
        assert abs(page.evaluate(PIXEL, place)[3] - 2.55 * opacity) <= 1
    only(page, [])
    assert page.evaluate("paint.getImageData(0, 0, canvas.width, canvas.height).data.every(n => n === 0)")
    is_faultless(page)


@pytest.mark.parametrize("width", WIDTHS)
def test_every_way_to_another_section(browser_page, address, width):
    page = browser_page(f"{address}/", width=width)
    drawn(page, 2)
    number = page.page.locator("#number")
    page.click("#up")
    drawn(page, 3)
    assert number.inner_text() == "3 (0 to 4)"
    page.click("#down")
    drawn(page, 2)
    page.page.locator("#section").fill("4")
    drawn(page, 4)
    page.page.locator("#section").press("ArrowLeft")
    drawn(page, 3)
    canvas = page.page.locator("#view")
    canvas.focus()
    for key, z in (("ArrowLeft", 2), ("ArrowUp", 3), ("Home", 0), ("ArrowDown", 0), ("PageUp", 4), ("PageDown", 0)):
        page.page.keyboard.press(key)
        drawn(page, z)
    canvas.hover()
    page.page.mouse.wheel(0, 100)
    drawn(page, 1)
    page.page.mouse.wheel(0, -100)
    drawn(page, 0)
    only(page, [0])
    assert page.page.input_value("#section") == "0"
    page.page.keyboard.press("3")
    assert page.page.is_checked("#layer-2")
    is_faultless(page)


@pytest.mark.parametrize("width", WIDTHS)
def test_zoom_scale_bar_and_values(browser_page, address, width):
    page = browser_page(f"{address}/", width=width)
    drawn(page, 2)
    before = page.evaluate("[at.zoom, $('bar').clientWidth, $('length').textContent]")
    # 4 nm a voxel: the bar tells what its own length is.
    amount, unit = before[2].split()
    assert unit == "nm"
    assert abs(before[1] / before[0] * 4 - float(amount)) <= 4 / before[0]
    for _ in range(4):
        page.click("#in")
    page.page.locator("#view").focus()
    page.page.keyboard.press("+")
    page.evaluate("new Promise(requestAnimationFrame)")
    zoom, bar, length = page.evaluate("[at.zoom, $('bar').clientWidth, $('length').textContent]")
    assert zoom == pytest.approx(before[0] * 1.25**5)
    assert length != before[2]
    assert abs(bar / zoom * 4 - float(length.split()[0])) <= 4 / zoom
    box = page.page.locator("#view").bounding_box()
    page.page.mouse.move(box["x"] + box["width"] / 2 + 3, box["y"] + box["height"] / 2 + 3)
    page.wait_for("document.querySelector('#values dd').textContent !== '-'")
    rows = dict(zip(*(page.page.locator(f"#values {part}").all_inner_texts() for part in ("dt", "dd")), strict=True))
    z, y, x = map(int, rows["z y x"].split())
    assert z == 2
    assert (abs(y - 75), abs(x - 100)) <= (1, 1)
    assert float(rows["raw"]) == raw_values()[z, y, x]
    assert float(rows["probability"]) == pytest.approx(probabilities()[z, y, x] / 255, abs=1e-3)
    assert rows["µm"] == f"{z * 0.05:.3f} {y * 0.004:.3f} {x * 0.004:.3f}"
    page.page.mouse.down()
    page.page.mouse.move(box["x"] + box["width"] / 2 - 40, box["y"] + box["height"] / 2 - 40)
    page.page.mouse.up()
    assert page.evaluate("at.x") > 101
    page.click("#fit")
    assert page.evaluate("at.zoom === smallestZoom && at.x === 100")
    is_faultless(page)


def test_large_sections_come_in_tiles_of_a_coarse_level(browser_page, tmp_path):
    values = np.tile(np.arange(250, dtype=np.uint8), (1, 5000, 20))
    tifffile.imwrite(tmp_path / "raw.tif", values, photometric="minisblack", tile=(256, 256))
    with served(volume=tmp_path / "raw.tif") as address:
        page = browser_page(f"{address}/")
        drawn(page, 0)
        fetched = "performance.getEntriesByType('resource').map(e => e.name).filter(n => n.includes('/tile/'))"
        at_first = page.evaluate(fetched)
        assert {name.split("/tile/")[1][:4] for name in at_first} == {"0/2/"}
        assert len(at_first) <= 9
        for _ in range(10):
            page.click("#in")
        page.evaluate("new Promise(requestAnimationFrame)")
        drawn(page, 0)
        finer = [name for name in page.evaluate(fetched) if name not in at_first]
        assert any("/tile/0/0/" in name for name in finer)
        assert len(finer) < 40
        assert page.page.inner_text("#about").endswith("voxel size unknown")
        assert page.page.inner_text("#length").endswith("px")
        is_faultless(page)


def test_what_cannot_be_read_is_said_on_the_page(browser_page, tmp_path):
    path = write_segmentation(tmp_path / "s.zarr")
    (path / "0/c/1/0/0").write_bytes(b"rubbish")
    with served(segmentation=path) as address:
        page = browser_page(f"{address}/")
        drawn(page, 2)
        assert "section 2 cannot be shown: section" in page.page.inner_text("#message")
        page.click("#down")
        drawn(page, 1)
        assert page.evaluate("$('message').hidden")


def test_light_and_dark_follow_the_system(browser_page, address):
    light, dark = (browser_page(f"{address}/", dark=dark).screenshot()[-1, -1].astype(int) for dark in (False, True))
    assert light.min() > 240
    assert dark.max() < 60
