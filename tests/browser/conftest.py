"""A real browser, Debian's Chromium, driven through playwright; nothing is downloaded.

A test module that needs more than the usual switches overrides `browser_arguments`, e.g. for a fake camera:

    @pytest.fixture(scope="module")
    def browser_arguments() -> list[str]:
        return ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

_ARGUMENTS = (
    # CI runs as root, where Chromium's sandbox refuses to start.
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)


@dataclass
class Visit:
    """An open page and what happened on it since it was opened.

    Attributes:
        page: Of playwright.
        errors: Errors on the console and exceptions that no script caught.
        requests: Addresses that were asked for, the page's own and data within it excepted.
    """

    page: Page
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def browser_arguments() -> list[str]:
    """More switches for Chromium; a module overrides it."""
    return []


# Of a module, not of the session: while playwright's synchronous interface is open, no other test could run
# an event loop of its own.
@pytest.fixture(scope="module")
def browser(browser_arguments: list[str]) -> Iterator[Browser]:
    """Headless Chromium."""
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("needs chromium: apt-get install chromium")
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright to drive chromium")
    with api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(
            executable_path=program, args=[*_ARGUMENTS, *browser_arguments], timeout=60_000
        )
        yield opened
        opened.close()


def _visits(browser: Browser) -> Iterator[Callable[..., Visit]]:
    contexts = []

    def open_page(url: str, width: int = 1280, height: int = 900, **context: Any) -> Visit:
        contexts.append(browser.new_context(viewport={"width": width, "height": height}, **context))
        seen = Visit(contexts[-1].new_page())
        seen.page.on("console", lambda m: seen.errors.append(m.text) if m.type == "error" else None)
        seen.page.on("pageerror", lambda error: seen.errors.append(str(error)))
        seen.page.on(
            "request",
            lambda r: None if r.url.startswith(("data:", "blob:")) else seen.requests.append(r.url),
        )
        seen.page.goto(url, wait_until="load")
        if seen.requests:
            del seen.requests[0]
        return seen

    yield open_page
    for opened in contexts:
        opened.close()


@pytest.fixture
def visit(browser: Browser) -> Iterator[Callable[..., Visit]]:
    """Opens an address: `visit(url, width=1280, height=900, **context)`, with options of `new_context`."""
    yield from _visits(browser)


@pytest.fixture(scope="module")
def visit_of_module(browser: Browser) -> Iterator[Callable[..., Visit]]:
    """The same for pages that several tests share."""
    yield from _visits(browser)
