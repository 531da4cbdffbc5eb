"""The report as people see it: in a browser, wide and narrow, light and dark, without a network."""

import numpy as np
import pytest

from tests.report.test_page import PREDICTION, a_report, metrics, of_classes, pictures
from unet_ray.report.page import report_html

pytestmark = pytest.mark.browser


@pytest.fixture
def page_file(tmp_path):
    path = tmp_path / "report.html"
    path.write_text(report_html(a_report()), "utf-8")
    return path


@pytest.mark.parametrize("width", [1280, 400])
def test_it_shows_without_errors_and_without_another_host(browser_page, page_file, width):
    opened = browser_page(page_file, width=width)
    opened.wait_for("[...document.images].filter(image => image.src).every(image => image.complete)")
    assert opened.errors == []
    assert opened.outside == []
    assert opened.evaluate("[...document.images].filter(i => i.src && i.naturalWidth === 0).length") == 0
    # Nothing is wider than the window but what scrolls by itself.
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
    assert opened.evaluate("document.querySelector('svg').getBoundingClientRect().width") <= width


def test_layers_switch_by_mouse_and_keyboard(browser_page, page_file):
    opened = browser_page(page_file)
    shown = "[...document.querySelectorAll('.layers img')].filter(i => getComputedStyle(i).visibility === 'visible')"
    assert opened.evaluate(f"{shown}.map(i => i.dataset.layer)") == ["errors", "errors"]
    strip = opened.page.locator(".strip")
    strip.scroll_into_view_if_needed()
    pictures = {}
    for name in ("Raw", "Truth", "Probability", "Mask"):
        opened.click(f".switch label:has-text('{name}')")
        assert opened.evaluate(f"{shown}.map(i => i.dataset.layer)") == [name.lower()] * 2
        pictures[name] = strip.screenshot()
    assert len(set(pictures.values())) == 4
    opened.page.keyboard.press("ArrowRight")
    assert opened.evaluate(f"{shown}.map(i => i.dataset.layer)") == ["errors"] * 2


def test_a_click_shows_a_section_larger(browser_page, page_file):
    opened = browser_page(page_file)
    opened.click("#section-9 button")
    assert opened.evaluate("document.querySelector('dialog').open")
    assert opened.evaluate("document.querySelector('dialog img').alt") == "Errors of section 9"
    opened.click("dialog")
    assert not opened.evaluate("document.querySelector('dialog').open")
    assert opened.errors == []


def test_dark_is_dark_and_light_is_light(browser_page, page_file):
    light, dark = (np.median(browser_page(page_file, dark=dark).screenshot()) for dark in (False, True))
    assert light > 200
    assert dark < 60


def test_text_of_the_curves_is_readable_in_the_dark(browser_page, page_file):
    opened = browser_page(page_file, dark=True)
    colour = opened.evaluate("getComputedStyle(document.querySelector('#thresholds svg text')).fill")
    assert min(int(part) for part in colour.strip("rgb()").split(",")) > 150


def test_several_predictions_on_a_telephone(browser_page, tmp_path):
    path = tmp_path / "report.html"
    several = metrics(*(PREDICTION | {"name": f"a-rather-long-name-{k}"} for k in range(4)))
    path.write_text(report_html(a_report(metrics=several)), "utf-8")
    opened = browser_page(path, width=400)
    assert opened.evaluate("document.documentElement.scrollWidth") <= 400
    assert opened.errors == []


def test_layers_of_classes_on_a_telephone(browser_page, tmp_path):
    path = tmp_path / "report.html"
    path.write_text(report_html(of_classes()), "utf-8")
    opened = browser_page(path, width=400)
    assert opened.evaluate("document.documentElement.scrollWidth") <= 400
    shown = "[...document.querySelectorAll('.layers img')].filter(i => getComputedStyle(i).visibility === 'visible')"
    for name in ("Raw", "Truth", "Prediction", "Errors"):
        opened.click(f".switch label:has-text('{name}')")
        assert opened.evaluate(f"{shown}.map(i => [i.dataset.layer, i.naturalWidth])") == [[name.lower(), 64]] * 2
    assert opened.errors == []


def test_print_shows_all_sections(browser_page, tmp_path):
    path = tmp_path / "report.html"
    path.write_text(report_html(a_report(sections=[pictures(section) for section in range(4)])), "utf-8")
    opened = browser_page(path, width=400)
    rightmost = "Math.max(...[...document.querySelectorAll('.strip figure')].map(f => f.getBoundingClientRect().right))"
    assert opened.evaluate(rightmost) > 400  # on the screen they are scrolled
    opened.page.emulate_media(media="print")
    assert opened.evaluate(rightmost) <= 400
    assert opened.page.pdf()[:5] == b"%PDF-"
