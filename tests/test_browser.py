"""The browser fixture itself: it sees what pages do wrong."""

import numpy as np
import pytest

pytestmark = pytest.mark.browser

PAGE = """<!doctype html><title>t</title><link rel="icon" href="data:,">
<body style="margin:0;background:#fff"><button id="paint" onclick="document.body.style.background='#000'">paint</button>
"""


def test_a_page_is_shown_at_its_width_clicked_and_asked(browser_page, tmp_path):
    path = tmp_path / "page.html"
    path.write_text(PAGE)
    page = browser_page(path, width=400)
    assert page.evaluate("innerWidth") == 400
    before = page.screenshot(tmp_path / "shot.png")
    assert before.shape == (800, 400, 3)
    page.click("#paint")
    page.wait_for("document.body.style.background == 'rgb(0, 0, 0)'")
    after = page.screenshot()
    assert (before[-1, -1] == 255).all()
    assert (after[-1, -1] == 0).all()
    assert np.asarray(page.evaluate("n => Promise.resolve([n, n + 1])", 4)).tolist() == [4, 5]
    assert (page.errors, page.outside) == ([], [])


@pytest.mark.parametrize(
    ("wrong", "seen"),
    [
        ("<script>console.error('broken')</script>", "broken"),
        ("<script>nowhere()</script>", "nowhere is not defined"),
        ("<img src='missing.png'>", "missing.png"),
    ],
)
def test_errors_of_a_page_are_seen(browser_page, tmp_path, wrong, seen):
    path = tmp_path / "page.html"
    path.write_text(PAGE + wrong)
    assert any(seen in error for error in browser_page(path).errors)


def test_other_hosts_are_noted_and_not_asked(browser_page, tmp_path):
    path = tmp_path / "page.html"
    path.write_text(PAGE + "<img src='http://example.invalid/a.png'>")
    assert browser_page(path).outside == ["http://example.invalid/a.png"]
