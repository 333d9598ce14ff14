"""Text from data is shown as text; the content security policy blocks scripts and requests."""

from browser.conftest import NARROW, WIDE
from browser.made import EVIL, IMAGE, LONG
from ich.report.page.blocks import Page, Section, Viewer
from ich.report.page.document import render

PLACES = """h1|header p|nav a|.tile dt|.tile .under|.lead|.note|caption|thead th|tbody th|[role=tab]|figure.chart h3
    |figure.chart figcaption|.case h3|.case p|.images figcaption|.along figcaption|summary|.code|#viewer-about
    |#viewer-study option"""
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
  const evaluated = await new Promise((resume) => setTimeout(() => {  // later: the debugger itself may evaluate
    try { new Function("window.broken = 5")(); resume("run"); } catch { resume("refused"); }
  }, 100));
  return { told, evaluated, refused: [...new Set(refused)].sort() };
}"""


def test_hostile_and_long_text_is_shown_as_text(made):
    page = made.page
    page.set_viewport_size({"width": WIDE, "height": 900})
    for tab in page.query_selector_all("[role=tab]"):
        tab.click()
        page.wait_for_selector(f"#{tab.get_attribute('aria-controls')} figure[data-drawn=true]")
    page.query_selector("[role=tab]").click()
    for place in map(str.strip, PLACES.split("|")):
        shown = " ".join(page.eval_on_selector_all(place, "all => all.map(one => one.textContent)"))
        assert EVIL in shown or IMAGE in shown, place
    plotted = " ".join(page.eval_on_selector_all("#chart-map text", "all => all.map(one => one.textContent)"))
    assert EVIL in plotted
    assert IMAGE in plotted
    assert page.get_attribute(".images img", "alt") == f"a slice {IMAGE}"
    assert page.evaluate("document.title").startswith("Hostile </script>")
    assert page.evaluate("window.broken") is None
    assert page.query_selector("img[src=x], #per-class svg a") is None
    assert made.complaints == []
    assert LONG in page.text_content("body")
    for width in (NARROW, WIDE):
        page.set_viewport_size({"width": width, "height": 844})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert [url for url in made.asked if not url.startswith(("data:", "blob:"))] == [made.path.as_uri()]


def test_an_empty_page_opens_and_its_policy_stops_injected_scripts_and_requests(opening, tmp_path):
    path = tmp_path / "empty.html"
    viewer = Section("studies", "Viewer", [Viewer({"studies": []})])
    path.write_text(render(Page("Empty", "", [viewer])), encoding="utf-8")
    opened = opening(path)
    assert opened.complaints == []
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
