"""Take the screenshots summary.png, report.png and errors.png of the demo's report page.

Usage: `python docs/images/report_screenshots.py`, after `bash run_all.sh`. Requires chromium and the packages of
tests/requirements.txt.
"""

from pathlib import Path

from playwright.sync_api import Page, sync_playwright

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "submissions" / "demo" / "report.html"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


def summary(page: Page) -> None:
    """The score of each model with its confidence interval."""
    page.locator("#summary figure.chart").first.screenshot(path=HERE / "summary.png")


def viewer(page: Page) -> None:
    """The study with a subdural bleed on the most slices, with Grad-CAM, in dark mode."""
    studies = page.get_by_role("combobox", name="Study")
    studies.select_option(studies.locator("option", has_text="subdural on").get_attribute("value"))
    page.locator("#viewer-slice").fill("24")
    page.locator("#viewer-cam-class").select_option(label="subdural")
    page.locator("#viewer-cam").check()
    page.evaluate("document.activeElement.blur()")  # no focus ring
    page.locator("#viewer").screenshot(path=HERE / "report.png")


def errors(page: Page) -> None:
    """A slice labelled 0 between slices labelled 1."""
    page.get_by_role("tab", name="False positives").click()
    case = page.locator("#errors article").filter(has_text="1 before, 1 after", visible=True)
    case.first.screenshot(path=HERE / "errors.png")


def main() -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=FLAGS)
        for scheme, draw in (("light", summary), ("dark", viewer), ("light", errors)):
            page = browser.new_page(viewport={"width": 1440, "height": 900}, color_scheme=scheme)
            page.goto(PAGE.as_uri())
            page.wait_for_selector("body[data-ready=true]")
            draw(page)


if __name__ == "__main__":
    main()
