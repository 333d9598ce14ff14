"""The page of the tiny run in a browser: charts are drawn, it prints, and it makes no requests."""

import re

import pytest

from browser.conftest import NARROW, WIDE, until

CHARTS = "document.querySelectorAll('figure.chart')"
SHOWN = "element => element.closest('[hidden], details:not([open])') === null"
DRAWN = (
    "f => f.dataset.drawn === 'true' && f.querySelector('.plot svg').childElementCount > 0"
    " && f.querySelector('.plot svg').getBoundingClientRect().width > 100"
)
UNDRAWN = f"[...{CHARTS}].filter({SHOWN}).filter(f => !({DRAWN})(f)).map(f => f.id)"
PRINTED = """() => addEventListener("beforeprint", () => {
  window.printed = {
    panels: [...document.querySelectorAll(".panel, details > *")].filter((e) => !e.offsetHeight).length,
    charts: [...document.querySelectorAll("figure.chart")].filter((f) => !f.querySelector(".plot svg")).length,
  };
})"""
CUT = """[...document.querySelectorAll("main *")].filter(e => e.getBoundingClientRect().right > innerWidth + 1
    && !e.closest(".table, .code, [role=tablist], [hidden], details:not([open]), .aside")).length"""


@pytest.fixture
def page(report):
    report.page.set_viewport_size({"width": WIDE, "height": 900})
    return report.page


def test_charts_are_drawn_when_they_are_shown(page):
    assert page.evaluate(f"[...{CHARTS}].filter({SHOWN}).length") > 5
    assert page.evaluate(UNDRAWN) == []
    hidden = page.evaluate(f"[...{CHARTS}].filter(f => !({SHOWN})(f)).map(f => f.id)")
    assert hidden
    for tab in page.query_selector_all("[role=tab]"):
        tab.click()
        assert tab.get_attribute("aria-selected") == "true"
    for details in page.query_selector_all("details:not([open]) > summary"):
        details.click()
    for name in hidden:
        page.wait_for_selector(f"#{name}[data-drawn=true]", state="attached")
    assert page.evaluate(UNDRAWN) == []
    for chosen in page.query_selector_all("[role=tab]:first-child, details[open] > summary"):
        chosen.click()


def test_no_request_leaves_the_page_and_a_phone_scrolls_it_vertically_only(report, page):
    for section in page.query_selector_all("main > section"):
        section.scroll_into_view_if_needed()
    assert report.complaints == []
    assert report.asked[0] == report.path.as_uri()
    assert not [url for url in report.asked[1:] if not url.startswith(("data:", "blob:"))]
    for place in ("header", "#viewer"):
        assert page.locator(place).get_by_text("For research and teaching, not for diagnosis.").is_visible()
    assert not page.locator(".viewer-inexact").is_visible()
    page.set_viewport_size({"width": NARROW, "height": 844})
    until(lambda: page.evaluate("document.documentElement.scrollWidth") <= NARROW)
    page.evaluate("scrollTo(500, 0)")
    assert page.evaluate("scrollX") == 0
    until(lambda: page.evaluate(CUT) == 0)


def test_printing_shows_every_panel_and_chart_without_controls_and_changes_nothing(page):
    tabs = "[...document.querySelectorAll('[role=tab]')].map(tab => tab.ariaSelected)"
    chosen = page.evaluate(tabs)
    page.evaluate(PRINTED)
    pdf = page.pdf(format="A4")
    assert page.evaluate("window.printed") == {"panels": 0, "charts": 0}
    assert len(re.findall(rb"/Type ?/Page\b", pdf)) > 5
    assert page.evaluate(tabs) == chosen
    assert page.query_selector("details[open]") is None
    assert page.evaluate("[...document.querySelectorAll('.panel')].some(panel => !panel.offsetHeight)")
    page.emulate_media(media="print")
    controls = page.locator("#theme, nav a, .skip, button.show, #viewer button, #viewer input")
    seen = [one.inner_text() for one in controls.all() if one.is_visible()]
    page.emulate_media(media="screen")
    assert seen == []
