"""The page by keyboard, by screen reader, in the dark and in the light, wide and narrow."""

import pytest
from axe_playwright_python.base import AXE_SCRIPT

from browser.conftest import NARROW, WIDE, until

# A stop of the keyboard: what it is, what it is called, whether it is seen to be the one, and where it stands.
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
# Every panel open; of lines, cases and charts that look alike, the first few: to judge their colours takes longest.
ALL_SEEN = """() => {
  const more = "main tbody tr:nth-child(n+5), .case:nth-of-type(n+3), .panel[hidden] figure.chart";
  document.querySelectorAll(more).forEach((e) => e.remove());
  const hidden = [...document.querySelectorAll(".panel[hidden], details:not([open])")];
  for (const e of hidden) { e.hidden = false; if (e.tagName === "DETAILS") e.open = true; }
}"""
AXE = """async () => (await axe.run(document, { resultTypes: ["violations"] })).violations
  .filter(({ impact }) => impact === "serious" || impact === "critical")
  .map(({ id, nodes }) => [id, nodes.slice(0, 5).map((node) => [node.html.slice(0, 150), node.failureSummary])])"""


@pytest.fixture(scope="module")
def audited(opening, finished):
    """The report with all that is in it, and axe-core."""
    opened = opening(finished.root / "submissions/tiny/report.html")
    opened.page.evaluate(ALL_SEEN)
    opened.page.evaluate(AXE_SCRIPT)
    yield opened.page
    opened.page.context.close()


@pytest.mark.parametrize("width", [WIDE, NARROW])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_fault(audited, width, scheme):
    audited.emulate_media(color_scheme=scheme)
    audited.set_viewport_size({"width": width, "height": 900})
    audited.wait_for_timeout(300)
    assert audited.evaluate(AXE) == []


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_the_keyboard_reaches_everything_in_the_order_of_the_page_and_sees_where_it_is(made, width):
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


def test_the_way_past_the_menu_leads_to_the_content(made):
    page = made.page
    page.evaluate(STOPS)
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"


# ---- light and dark

GROUNDS = """() => {
  const brightness = (colour) => Number(colour.match(/\\d+/)[0]);
  const text = document.querySelector("#chart-correlation .plot .ytick text");
  return [brightness(getComputedStyle(document.body).backgroundColor), brightness(getComputedStyle(text).fill)];
}"""


def is_dark(page) -> bool:
    """Waits until the ground and the text of a chart are of one scheme."""
    until(lambda: abs(page.evaluate(GROUNDS)[0] - page.evaluate(GROUNDS)[1]) > 100)
    return page.evaluate(GROUNDS)[0] < 100


def test_the_page_and_its_charts_follow_the_system_and_the_button_overrules_it(made):
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
