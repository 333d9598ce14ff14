"""The tiny run's page in a browser: all of it is drawn, its figures are those of `ich score`, and it asks nobody."""

import re

import pytest

from browser.conftest import NARROW, WIDE, until
from ich import cli

CHARTS = "document.querySelectorAll('figure.chart')"
SHOWN = "element => element.closest('[hidden], details:not([open])') === null"
DRAWN = (
    "f => f.dataset.drawn === 'true' && f.querySelector('.plot svg').childElementCount > 0"
    " && f.querySelector('.plot svg').getBoundingClientRect().width > 100"
)
STATE = """tab => [tab.ariaSelected, tab.tabIndex, document.getElementById(tab.getAttribute("aria-controls")).hidden]"""
PRINTED = """() => addEventListener("beforeprint", () => {
  window.printed = {
    panels: [...document.querySelectorAll(".panel, details > *")].filter((e) => !e.offsetHeight).length,
    charts: [...document.querySelectorAll("figure.chart")].filter((f) => !f.querySelector(".plot svg")).length,
  };
})"""


@pytest.fixture
def page(report):
    report.page.set_viewport_size({"width": WIDE, "height": 900})
    return report.page


def test_every_chart_that_is_seen_is_drawn(page):
    drawn = page.evaluate(f"[...{CHARTS}].filter({SHOWN}).map(f => [f.id, ({DRAWN})(f)])")
    assert len(drawn) > 5
    assert not [name for name, there in drawn if not there]


def test_charts_behind_tabs_and_titles_are_drawn_when_they_are_shown(page):
    hidden = page.evaluate(f"[...{CHARTS}].filter(f => !({SHOWN})(f)).map(f => f.id)")
    assert hidden
    for tab in page.query_selector_all("[role=tab]"):
        tab.click()
        page.locator(f"#{tab.get_attribute('aria-controls')}").wait_for()
        assert tab.get_attribute("aria-selected") == "true"
    for details in page.query_selector_all("details:not([open]) > summary"):
        details.click()
    for name in hidden:
        page.wait_for_selector(f"#{name}[data-drawn=true]", state="attached")
    broken = page.evaluate(f"[...{CHARTS}].filter({SHOWN}).filter(f => !({DRAWN})(f)).map(f => f.id)")
    assert not broken
    for chosen in page.query_selector_all("[role=tab]:first-child, details[open] > summary"):
        chosen.click()


def test_one_panel_of_a_group_is_shown_and_the_arrow_keys_choose(page):
    for tabs in page.query_selector_all("[role=tablist]"):
        names = tabs.eval_on_selector_all("[role=tab]", "all => all.map(tab => tab.id)")
        tabs.query_selector("[role=tab]").click()
        for key, at in (("ArrowRight", 1), ("End", len(names) - 1), ("ArrowRight", 0), ("ArrowLeft", len(names) - 1)):
            page.keyboard.press(key)
            assert page.evaluate("document.activeElement.id") == names[at]
            for k, name in enumerate(names):
                expected = ["true", 0, False] if k == at else ["false", -1, True]
                assert page.eval_on_selector(f"#{name}", STATE) == expected
        page.keyboard.press("Home")


# ---- figures


def printed_tables(said: str) -> list[list[list[str]]]:
    """The tables that the console printed: their lines as cells, by the widths of the rule below the titles."""
    lines, tables = said.splitlines(), []
    for number, line in enumerate(lines):
        if re.fullmatch(r"-+(  -+)*", line):
            ends = [match.span() for match in re.finditer("-+", line)]
            block = [lines[number - 1], *lines[number + 1 : lines.index("", number)]]
            tables.append([[row[begin:end].strip() for begin, end in ends] for row in block])
    return tables


def words(row: list[str]) -> list[str]:
    """Without the empty cells at its end: on the page the cell of a heading is as wide as the table."""
    return row[: max((k + 1 for k, cell in enumerate(row) if cell), default=0)]


def test_the_figures_are_those_of_ich_score_to_the_last_digit(page, finished, monkeypatch, capsys):
    monkeypatch.chdir(finished.root)
    monkeypatch.setenv("COLUMNS", "10000")
    cli.app(["score", "tests/tiny.yaml"], standalone_mode=False)
    said = capsys.readouterr().out
    expected = printed_tables(said)
    cells = "tables => tables.map(t => [...t.rows].map(row => [...row.cells].map(cell => cell.textContent.trim())))"
    shown = page.eval_on_selector_all("#verdict > .table table", cells)
    assert len(expected) == 2
    assert [[words(row) for row in table] for table in shown] == [[words(row) for row in table] for table in expected]
    verdict = page.text_content("#verdict")
    for line in said[said.rindex(expected[-1][-1][0]) :].splitlines()[2:]:
        if line and not line.startswith(("score:", "warning:")):
            assert line in verdict
    for value in page.eval_on_selector_all("#verdict .tile .value", "all => all.map(one => one.textContent)"):
        assert re.fullmatch(r"\d\.\d{4}", value)
        assert value in said


# ---- nobody is asked, nothing else runs


def test_nothing_is_complained_of_and_no_request_leaves_the_page(report, page):
    for section in page.query_selector_all("main > section"):
        section.scroll_into_view_if_needed()
    assert report.complaints == []
    assert report.asked[0] == report.path.as_uri()
    assert not [url for url in report.asked[1:] if not url.startswith(("data:", "blob:"))]


def test_it_says_that_it_is_for_research(page):
    said = "For research and teaching, not for diagnosis."
    assert page.locator("header").get_by_text(said).is_visible()
    assert page.locator("#viewer").get_by_text(said).is_visible()


def test_it_scrolls_up_and_down_only_on_a_phone(page):
    page.set_viewport_size({"width": NARROW, "height": 844})
    until(lambda: page.evaluate("document.documentElement.scrollWidth") <= NARROW)
    page.evaluate("scrollTo(500, 0)")
    assert page.evaluate("scrollX") == 0
    cut = """[...document.querySelectorAll("main *")].filter(e => e.getBoundingClientRect().right > innerWidth + 1
        && !e.closest(".table, .code, [role=tablist], [hidden], details:not([open]), .aside")).length"""
    until(lambda: page.evaluate(cut) == 0)


# ---- paper


def test_it_prints_with_every_panel_and_chart_and_is_as_it_was_afterwards(page):
    tabs = "[...document.querySelectorAll('[role=tab]')].map(tab => tab.ariaSelected)"
    chosen = page.evaluate(tabs)
    page.evaluate(PRINTED)
    pdf = page.pdf(format="A4")
    assert page.evaluate("window.printed") == {"panels": 0, "charts": 0}
    assert len(re.findall(rb"/Type ?/Page\b", pdf)) > 5
    assert page.evaluate(tabs) == chosen
    assert page.query_selector("details[open]") is None
    assert page.evaluate("[...document.querySelectorAll('.panel')].some(panel => !panel.offsetHeight)")


def test_on_paper_there_is_no_control(page):
    page.emulate_media(media="print")
    try:
        controls = page.locator("#theme, nav a, .skip, button.show, #viewer button, #viewer input")
        assert not [one.inner_text() for one in controls.all() if one.is_visible()]
    finally:
        page.emulate_media(media="screen")
