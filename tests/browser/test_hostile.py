"""What comes from data stands on the page as text, however it looks; what gets in anyway, the page's policy stops."""

import pytest

from browser.conftest import NARROW, WIDE
from browser.made import EVIL, IMAGE, LONG, hostile_page
from ich.report.page import Page, Section, Viewer, render

INJECTED = """async () => {
  const refused = [];
  addEventListener("securitypolicyviolation", (event) => refused.push(event.effectiveDirective));
  const script = document.createElement("script");
  script.textContent = "window.broken = 3";
  document.body.append(script);
  const outside = document.createElement("script");
  outside.src = "https://example.org/a.js";
  document.body.append(outside);
  document.body.insertAdjacentHTML("beforeend", `<button id="inline" onclick="window.broken = 4"></button>`);
  document.getElementById("inline").click();
  const image = new Image();
  image.src = "https://example.org/a.png";
  const told = await fetch("https://example.org/").then(() => "answered", () => "refused");
  const evaluated = await new Promise((resume) => setTimeout(() => {  // later: a debugger's own words may evaluate
    try { new Function("window.broken = 5")(); resume("run"); } catch { resume("refused"); }
  }, 100));
  for (const element of [script, outside, document.getElementById("inline")]) element.remove();
  return { told, evaluated, refused: [...new Set(refused)].sort() };
}"""


@pytest.fixture
def page(made):
    made.page.set_viewport_size({"width": WIDE, "height": 900})
    return made.page


def test_nothing_that_the_data_say_is_run_or_asked_for(made, page):
    for tab in page.query_selector_all("[role=tab]"):
        tab.click()
        page.wait_for_selector(f"#{tab.get_attribute('aria-controls')} figure[data-drawn=true]")
    page.query_selector("[role=tab]").click()
    assert page.evaluate("window.broken") is None
    assert page.query_selector("img[src=x]") is None
    assert page.evaluate("document.title").startswith("Hostile </script>")
    assert made.complaints == []
    assert [url for url in made.asked if not url.startswith(("data:", "blob:"))] == [made.path.as_uri()]


@pytest.mark.parametrize(
    "place",
    [
        "h1",
        "header p",
        "nav a",
        ".tile dt",
        ".tile .under",
        ".lead",
        ".note",
        "caption",
        "thead th",
        "tbody th",
        "[role=tab]",
        "figure.chart h3",
        "figure.chart figcaption",
        ".case h3",
        ".case p",
        ".pictures figcaption",
        ".along figcaption",
        "summary",
        ".code",
        "#viewer-about",
        "#viewer-study option",
    ],
)
def test_a_text_stands_there_as_it_is(page, place):
    said = " ".join(page.eval_on_selector_all(place, "all => all.map(one => one.textContent)"))
    assert EVIL in said or IMAGE in said, place


def test_figures_show_what_looks_like_tags_as_text(page):
    page.click("#classes-tab-2")
    page.wait_for_selector("#chart-map[data-drawn=true]", state="attached")
    said = " ".join(page.eval_on_selector_all("#chart-map text", "all => all.map(one => one.textContent)"))
    page.click("#classes-tab-1")
    assert EVIL in said
    assert IMAGE in said
    assert page.query_selector("#per-class svg a") is None


def test_an_alternative_text_is_quoted(page):
    assert page.get_attribute(".pictures img", "alt") == f"a slice {IMAGE}"


def test_long_names_widen_nothing(page):
    assert LONG in page.text_content("body")
    assert page.evaluate("document.documentElement.scrollWidth") <= WIDE
    page.set_viewport_size({"width": NARROW, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= NARROW


def test_the_policy_stops_scripts_and_requests_that_got_in(opening, made):
    opened = opening(made.path)
    stopped: list[str] = []
    opened.page.on("requestfailed", lambda request: stopped.append(f"{request.url} {request.failure}"))
    found = opened.page.evaluate(INJECTED)
    broken = opened.page.evaluate("window.broken")
    outside = {f"{url} csp" for url in opened.asked if url.startswith("http")}
    opened.page.context.close()
    assert broken is None
    assert found["told"] == found["evaluated"] == "refused"
    assert {"connect-src", "img-src", "script-src-attr", "script-src-elem"} <= set(found["refused"])
    assert len(outside) > 1
    assert outside == set(stopped)


def test_the_same_page_has_the_same_bytes():
    assert hostile_page() == hostile_page()


@pytest.mark.parametrize("sections", [[], [Section("studies", "Viewer", [Viewer({"studies": []})])]])
def test_a_page_without_anything_is_a_page(opening, tmp_path, sections):
    path = tmp_path / "empty.html"
    path.write_text(render(Page("Empty", "", sections)), encoding="utf-8")
    opened = opening(path)
    assert opened.complaints == []
    opened.page.context.close()
