"""A headless Chromium, and pages opened in it: the tiny run's report, and one made of extreme and hostile blocks."""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from browser.made import hostile_page

NAMES = ("chromium-browser", "google-chrome")  # after $ICH_BROWSER or chromium, as in tests/run.sh
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-accelerated-2d-canvas",  # which draws the same picture a little differently once its pixels were read
]
WIDE, NARROW = 1440, 390


def until(true: Callable[[], bool]) -> None:
    """Wait. (Playwright's own wait_for_function evaluates text, which the page's policy refuses.)"""
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


@dataclass
class Opened:
    """A page whose scripts have run, with all that it complained of and asked for."""

    page: Page
    complaints: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    path: Path = Path()

    def __post_init__(self) -> None:
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", self._heard)
        self.page.on("request", lambda request: self.asked.append(request.url))

    def _heard(self, message) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(f"{message.type}: {message.text}")

    def load(self, path: Path) -> "Opened":
        self.path = path
        self.page.goto(path.as_uri())
        self.page.wait_for_selector("body[data-ready=true]", timeout=60_000)
        return self


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
    """Open a file in a context of its own: `opening(path, width, **what new_context takes)`."""

    def opened(path: Path, width: int = WIDE, **options) -> Opened:
        context = browser.new_context(viewport={"width": width, "height": 900}, reduced_motion="reduce", **options)
        context.set_default_timeout(20_000)
        return Opened(context.new_page()).load(path)

    return opened


@pytest.fixture(scope="session")
def made(opening, tmp_path_factory) -> Opened:
    """The page of extreme and hostile blocks. Each test that uses it sets what it depends on."""
    path = tmp_path_factory.mktemp("made") / "page.html"
    path.write_text(hostile_page(), encoding="utf-8")
    return opening(path)


@pytest.fixture(scope="session")
def report(opening, finished) -> Opened:
    """The page that the tiny recipe's run left."""
    return opening(finished.root / "submissions/tiny/report.html")
