"""A real browser, where there is one: Debian's Chromium, driven by playwright."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Page, sync_playwright

CHROMIUM = shutil.which("chromium")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")


@contextmanager
def browser_page(width: int = 1200, dark: bool = False) -> Iterator[Page]:
    """A page whose scripts may not fail, and that may ask nothing of any other place."""
    faults: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(
            viewport={"width": width, "height": 800}, color_scheme="dark" if dark else "light"
        )
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on(
            "request",
            lambda asked: (
                None
                if asked.url.startswith(("http://127.0.0.1:", "data:,"))
                else faults.append(asked.url)
            ),
        )
        try:
            yield page
        finally:
            browser.close()
    assert not faults


def is_too_wide(page: Page) -> bool:
    """Whether a reader has to scroll sideways."""
    return bool(page.evaluate("document.documentElement.scrollWidth > innerWidth"))
