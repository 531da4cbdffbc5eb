"""A real headless Chromium for tests of pages; the fixture is ``browser_page`` in the root conftest."""

import io
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

if TYPE_CHECKING:
    from playwright.sync_api import Page, Request, Route

_PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
_PATIENCE_SECONDS = 30
_FLAGS = [
    "--no-sandbox",  # root has none
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@dataclass
class BrowserPage:
    """One open page; ``page`` is Playwright's, for keyboard, mouse and waiting.

    Attributes:
        errors: what the console reported as an error, exceptions nobody caught, and requests that failed.
        outside: URLs of other hosts that the page asked for; they are never fetched.
    """

    page: "Page"
    errors: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)

    def evaluate(self, script: str, argument: Any = None) -> Any:
        """Value of a JavaScript expression, or of a function called with ``argument``; promises are awaited."""
        return self.page.evaluate(script, argument)

    def click(self, selector: str) -> None:
        """Click the first element that a CSS selector finds, once it is there and can be clicked."""
        self.page.locator(selector).first.click()

    def wait_for(self, expression: str) -> None:
        """Wait until a JavaScript expression is true.

        Playwright's own waiting evaluates it inside the page, where a content security policy forbids that.
        """
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not self.evaluate(expression):
            assert time.monotonic() < deadline, f"not true after {_PATIENCE_SECONDS} s: {expression}"
            self.page.wait_for_timeout(20)

    def screenshot(self, path: Any = None) -> npt.NDArray[np.uint8]:
        """(y, x, 3) colours of what the window shows; also written to ``path`` as PNG where it is given."""
        png = self.page.screenshot(path=path)
        return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


@contextmanager
def open_pages() -> Iterator[Callable[..., BrowserPage]]:
    """Start Chromium with an empty profile; gives ``open(url, width=1280, height=800, dark=False)``.

    ``url`` may be http://, file:// or the path of a file.
    """
    program = next(filter(None, map(shutil.which, _PROGRAMS)), None)
    if program is None:
        pytest.skip("no chromium is installed (on Debian: apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=_FLAGS)
        try:

            def open_page(url: Any, width: int = 1280, height: int = 800, dark: bool = False) -> BrowserPage:
                scheme: Any = "dark" if dark else "light"
                page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
                opened = BrowserPage(page)
                _watch(opened)
                page.goto(str(url) if "://" in str(url) else f"file://{url}")
                return opened

            yield open_page
        finally:
            browser.close()


def _watch(opened: BrowserPage) -> None:
    """Note errors, and keep the page from other hosts."""

    def route(route: "Route") -> None:
        address = urlsplit(route.request.url)
        if address.scheme in ("http", "https", "ws", "wss") and address.hostname not in _LOOPBACK:
            opened.outside.append(route.request.url)
            route.abort()
        else:
            route.continue_()

    def failed(request: "Request") -> None:
        # A page may give up a request of its own accord, when the user has gone on.
        if request.failure != "net::ERR_ABORTED":
            opened.errors.append(f"{request.url} {request.failure}")

    page = opened.page
    page.route("**/*", route)
    page.on("console", lambda message: opened.errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: opened.errors.append(str(error)))
    page.on("requestfailed", failed)
