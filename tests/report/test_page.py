"""The page as a file: text is escaped, only its own scripts run, and it requests nothing."""

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from html.parser import HTMLParser

import pytest

from browser.made import full_page
from ich.report.page.blocks import Block, Chart, Page, Section, Table
from ich.report.page.document import render

EVIL = "\"'><script>alert(1)</script><img src=x onerror=alert(2)><!--{{ 7 * 7 }}</style></title>&amp;"
VOID = {"meta", "img", "input", "br", "link", "hr"}


class Parsed(HTMLParser):
    """Each element with its attributes, its own text, and the ids above it."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.open: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = (tag, dict(attrs), list[str]())
        self.found.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop()[0] != tag:
            pass

    def handle_data(self, data: str) -> None:
        if self.open:
            self.open[-1][2].append(data)

    def texts(self, tag: str, **attributes: str) -> list[str]:
        """The texts directly in such elements."""
        return ["".join(text) for name, has, text in self.found if name == tag and attributes.items() <= has.items()]


@pytest.fixture(scope="module")
def harmless() -> Parsed:
    return Parsed(full_page("text", "text", "text"))


def page(blocks: Sequence[Block]) -> str:
    return render(Page("A page", "", [Section("first", "", blocks)]))


def scripts(parsed: Parsed) -> list[str]:
    """The scripts that a browser would run."""
    return ["".join(text) for tag, a, text in parsed.found if tag == "script" and a.get("type") != "application/json"]


def test_hostile_text_creates_no_element_and_no_script(harmless) -> None:
    hostile = Parsed(full_page(EVIL, EVIL, EVIL))
    shape = [[(tag, sorted(attributes)) for tag, attributes, _ in one.found] for one in (hostile, harmless)]
    assert shape[0] == shape[1]
    assert scripts(hostile) == scripts(harmless) == scripts(Parsed(page([])))


def test_the_policy_allows_the_scripts_of_the_page_and_no_others(harmless) -> None:
    (policy,) = [a["content"] for _, a, _ in harmless.found if a.get("http-equiv") == "Content-Security-Policy"]
    digests = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts(harmless)]
    assert policy is not None
    assert len(digests) == 3
    assert re.findall(r"'sha256-([^']*)'", policy) == digests
    assert "\r" not in "".join(scripts(harmless)), "a browser would change the line ending, and so the hash"
    named = dict(part.split(None, 1) for part in policy.split(";"))
    assert named.pop("script-src").count("'") == 2 * len(digests)
    assert named == {
        **dict.fromkeys(("default-src", "base-uri", "form-action"), "'none'"),
        **{"style-src": "'unsafe-inline'", "img-src": "data: blob:"},
    }


def test_the_page_loads_nothing_and_its_ids_are_unique_and_complete(harmless) -> None:
    found = harmless.found
    addresses = [a[name] or "" for _, a, _ in found for name in ("src", "href", "action") if name in a]
    assert addresses
    assert [address for address in addresses if not address.startswith(("data:", "#"))] == []
    style = "".join(harmless.texts("style"))
    assert "@import" not in style
    assert "url(" not in style
    assert not [a for _, a, _ in found if any(name.startswith("on") for name in a)]
    ids = [attributes["id"] for _, attributes, _ in found if "id" in attributes]
    assert len(ids) == len(set(ids))
    names = ("for", "aria-controls", "aria-labelledby", "aria-describedby")
    pointed = {a[name] for _, a, _ in found for name in names if name in a}
    pointed |= {(a["href"] or "")[1:] for _, a, _ in found if "href" in a}
    assert pointed <= set(ids)


def test_columns_of_numbers_are_right_aligned() -> None:
    columns = {
        "value": ["0.91", "-0.002", "1e-5"],
        "interval": ["0.1884 0.1520-0.2270", "-0.0018 -0.0077 to 0.0029", ""],
        "brackets": ["0.9 (0.8 to 1.0)", "0.9 [0.8, 1.0]", "-"],
        "share": ["3.6%", "97 %", "n/a"],
        "count": ["1,234", "5 of 24", "12 MB"],
        "name": ["resnet", "2 nets", "1"],
        "hash": ["12ab34", "991", "7"],
        "uid": ["1.2.840", "3.1", "2"],
        "nothing": ["", "-", "x"],
        "empty": ["", "", ""],
    }
    html = Parsed(page([Table("", list(columns), list(zip(*columns.values(), strict=True)))]))
    heads = html.texts("th", **{"scope": "col", "class": "number"})
    assert heads == ["value", "interval", "brackets", "share", "count"]
    assert len(html.texts("td", **{"class": "number"})) == 5 * 3


def test_intervals_stay_in_their_cell_and_a_row_with_a_name_only_is_a_heading() -> None:
    apart = ["0.1533 0.1175-0.1946", "-0.0018 -0.0077 to 0.0029", "0.9 (0.8 to 1.0)"]
    whole = ["0.02 to 0.05", "9 min 15 s", "2026-01-02", "5 of 24", "1,234"]
    html = page([Table("", ["", "loss"], [["cnn", ""], *([f"row {cell}", cell] for cell in apart + whole)])])
    for cell in apart:
        value, interval = cell.split(" ", 1)
        assert f'<td class="number">{value} <span class="interval">{interval}</span></td>' in html
    for cell in whole:
        assert f'<td class="number">{cell}</td>' in html
    assert Parsed(html).texts("th", **{"class": "group", "colspan": "2"}) == ["cnn"]
    assert Parsed(html).texts("th", scope="row") == [f"row {cell}" for cell in apart + whole]


def test_a_gap_in_a_figure_is_null() -> None:
    figure = {"data": [{"y": [1.0, float("nan"), 2.0]}], "layout": {}}
    (charts,) = Parsed(page([Chart("a", "", "", figure)])).texts("script", id="charts-data")
    assert json.loads(charts)["a"]["data"][0]["y"] == [1.0, None, 2.0]


def test_the_strip_of_a_case_has_a_text_alternative(harmless) -> None:
    svg = next(a for tag, a, _ in harmless.found if tag == "svg" and a.get("role") == "img")
    alternative = "along the study, slice 2 of 3 has 0.90, the threshold is 0.25"
    assert svg["aria-label"] == f"Probability of intraparenchymal text {alternative}"
