"""Headless Chromium with two pages: the report of the tiny recipe, and a page of extreme and hostile blocks."""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from browser.made import full_page

NAMES = ("chromium-browser", "google-chrome")  # after $ICH_BROWSER or chromium, as in tests/run.sh
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-accelerated-2d-canvas",  # it draws differently after pixels are read
]
WIDE, NARROW = 1440, 390
BAD = ("error", "warning")


def until(true: Callable[[], bool]) -> None:
    """Wait for a condition. Playwright's wait_for_function evaluates text, which the content policy blocks."""
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


@dataclass
class Opened:
    """A page whose scripts have run, with its errors, warnings and requests."""

    page: Page
    path: Path
    complaints: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", lambda said: self.complaints.append(said.text) if said.type in BAD else None)
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(self.path.as_uri())
        self.page.wait_for_selector("body[data-ready=true]", timeout=60_000)


Open = Callable[..., Opened]


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    found = next(filter(None, map(shutil.which, (os.environ.get("ICH_BROWSER", "chromium"), *NAMES))), None)
    if found is None:
        pytest.skip("no browser here: `apt-get install chromium`, or name one in ICH_BROWSER")
    with sync_playwright() as playwright, playwright.chromium.launch(executable_path=found, args=FLAGS) as browser:
        yield browser


@pytest.fixture(scope="session")
def opening(browser) -> Open:
    """Open a file in a new context; `script` runs before the scripts of the page, `options` are new_context's."""

    def opened(path: Path, width: int = WIDE, script: str = "", **options) -> Opened:
        context = browser.new_context(viewport={"width": width, "height": 900}, reduced_motion="reduce", **options)
        context.set_default_timeout(20_000)
        context.add_init_script(script or ";")
        return Opened(context.new_page(), path)

    return opened


@pytest.fixture(scope="session")
def made(opening, tmp_path_factory) -> Opened:
    """The page of extreme and hostile blocks. Each test sets the state that it depends on."""
    path = tmp_path_factory.mktemp("made") / "page.html"
    path.write_text(full_page(), encoding="utf-8")
    return opening(path)


@pytest.fixture(scope="session")
def report(opening, finished) -> Opened:
    """The report of the tiny recipe."""
    return opening(finished.root / "submissions/tiny/report.html")
