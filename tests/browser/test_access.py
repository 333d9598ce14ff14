"""Keyboard, screen reader, light and dark theme, wide and narrow screens."""

import pytest
from axe_playwright_python.base import AXE_SCRIPT

from browser.conftest import NARROW, WIDE, until

# The focused element: its number, markup and name, and whether it and its focus ring are visible.
STOP = """() => {
  const e = document.activeElement;
  if (e === document.body) return null;
  const style = getComputedStyle(e), box = e.getBoundingClientRect();
  const ring = (style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2) || style.boxShadow !== "none";
  const labels = [...(e.labels ?? [])].map((label) => label.textContent).join(" ");
  const name = e.ariaLabel || labels || e.textContent || e.title || "";
  const seen = box.width > 0 && box.bottom > 0 && box.top < innerHeight && box.right > 0 && box.left < innerWidth;
  return { number: window.stops.indexOf(e), what: e.outerHTML.slice(0, 90), name: name.trim(), ring, seen };
}"""
STOPS = """() => {
  const can = document.querySelectorAll("a[href], button, input, select, textarea, summary, [tabindex]");
  window.stops = [...can].filter((e) => e.tabIndex >= 0 && !e.disabled && e.checkVisibility());
  const start = document.createElement("a");
  start.tabIndex = -1;
  document.body.prepend(start);
  start.focus();
  start.remove();
  return window.stops.length;
}"""
# All panels open, with only a few rows, cases and charts of each kind: checking their colours is slow.
ALL_SEEN = """() => {
  const more = "main tbody tr:nth-child(n+5), .case:nth-of-type(n+3), .panel[hidden] figure.chart";
  document.querySelectorAll(more).forEach((e) => e.remove());
  const hidden = [...document.querySelectorAll(".panel[hidden], details:not([open])")];
  for (const e of hidden) { e.hidden = false; if (e.tagName === "DETAILS") e.open = true; }
}"""
AXE = """async (rules) => (await axe.run(document, { resultTypes: ["violations"], ...rules })).violations
  .filter(({ impact }) => impact === "serious" || impact === "critical")
  .map(({ id, nodes }) => [id, nodes.slice(0, 5).map((node) => [node.html.slice(0, 150), node.failureSummary])])"""
STATES = """tabs => [...tabs.querySelectorAll("[role=tab]")].map(tab =>
  [tab.ariaSelected, tab.tabIndex, document.getElementById(tab.getAttribute("aria-controls")).hidden])"""


def test_axe_finds_no_serious_violation(opening, finished):
    """All rules in the light scheme; the dark scheme differs in colours only, which do not depend on the width."""
    page = opening(finished.root / "submissions/tiny/report.html").page
    page.evaluate(ALL_SEEN)
    page.evaluate(AXE_SCRIPT)
    contrast = {"runOnly": ["color-contrast"]}
    for width, scheme, rules in (WIDE, "light", {}), (WIDE, "dark", contrast), (NARROW, "light", {}):
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme=scheme)
        page.wait_for_timeout(300)
        assert page.evaluate(AXE, rules) == [], (width, scheme)
    page.context.close()


def test_arrow_keys_select_the_visible_panel(made):
    page = made.page
    for tabs in page.query_selector_all("[role=tablist]"):
        names = tabs.eval_on_selector_all("[role=tab]", "all => all.map(tab => tab.id)")
        tabs.query_selector("[role=tab]").click()
        for key, at in (("ArrowRight", 1), ("End", len(names) - 1), ("ArrowRight", 0), ("ArrowLeft", len(names) - 1)):
            page.keyboard.press(key)
            assert page.evaluate("document.activeElement.id") == names[at]
            expected = [["true", 0, False] if k == at else ["false", -1, True] for k in range(len(names))]
            assert tabs.evaluate(STATES) == expected
        page.keyboard.press("Home")


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_tab_reaches_everything_in_order_with_a_name_and_a_visible_focus(made, width):
    page = made.page
    page.set_viewport_size({"width": width, "height": 900})
    count, stops = page.evaluate(STOPS), []
    for _ in range(count + 5):
        page.keyboard.press("Tab")
        stop = page.evaluate(STOP)
        if stop is None:
            break
        stops.append(stop)
    assert stops[0]["name"].startswith("Skip")
    assert [stop["number"] for stop in stops] == list(range(count)), "in the order of the page, without a trap"
    assert not [stop["what"] for stop in stops if not (stop["ring"] and stop["seen"] and stop["name"])]
    for _ in stops[1:]:
        page.keyboard.press("Shift+Tab")
    assert page.evaluate(STOP)["number"] in (0, 1), "and back"
    page.evaluate(STOPS)
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main", "the first link skips the menu"


GROUNDS = """() => {
  const brightness = (colour) => Number(colour.match(/\\d+/)[0]);
  const text = document.querySelector("#chart-correlation .plot .ytick text");
  return [brightness(getComputedStyle(document.body).backgroundColor), brightness(getComputedStyle(text).fill)];
}"""


def is_dark(page) -> bool:
    """Wait until the background and the text of a chart have the same theme."""
    until(lambda: abs(page.evaluate(GROUNDS)[0] - page.evaluate(GROUNDS)[1]) > 100)
    return page.evaluate(GROUNDS)[0] < 100


def test_page_and_charts_follow_the_system_theme_and_the_button(made):
    page = made.page
    page.set_viewport_size({"width": WIDE, "height": 900})
    assert not is_dark(page)
    page.emulate_media(color_scheme="dark")
    assert is_dark(page)
    for theme, dark in (("light", False), ("dark", True), (None, True)):
        page.click("#theme")
        assert page.evaluate("document.documentElement.dataset.theme ?? null") == theme
        assert (theme or "auto") in page.inner_text("#theme")
        assert is_dark(page) == dark
    page.emulate_media(color_scheme="light")
    assert not is_dark(page)
