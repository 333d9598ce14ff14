"""The page as a file: what stands in it is text, its scripts are its own, and it asks nobody for anything."""

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from ich.report.page import (
    Block,
    Case,
    Cases,
    Chart,
    Code,
    Details,
    Notes,
    Page,
    Panels,
    Picture,
    Section,
    Strip,
    Table,
    Tile,
    Tiles,
    Viewer,
    render,
)

EVIL = "\"'><script>alert(1)</script><img src=x onerror=alert(2)><!--{{ 7 * 7 }}</style></title>&amp;"
VOID = {"meta", "img", "input", "br", "link", "hr"}
CASE = Case("a case", ["a line"], [], Strip("any", [0.1, 0.9], [0, None], 1, 0.5), "ID_1", 1)


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
        """What stands directly in such elements."""
        return ["".join(text) for name, has, text in self.found if name == tag and attributes.items() <= has.items()]


def figure(name: str) -> dict[str, Any]:
    return {"data": [{"type": "scatter", "x": np.arange(3), "y": [1.0, float("nan"), 2.0], "name": name}], "layout": {}}


def every_block(text: str) -> list[Block]:
    """Each kind of block, each text in it the one given."""
    case = Case(text, [text], [Picture(b"png", text, text)], replace(CASE.strip, name=text), text, 1)
    table = Table([text, text], [[text, text], [text, ""], ["", text]], text)
    chart = Chart("curve", text, text, figure(text))
    return [
        *(Notes([text], "text"), Notes([text], "warning"), Code(text), Tiles([Tile(text, text, text)]), table, chart),
        *(Panels("panels", {text: [Notes([text])], "other": [replace(chart, id="other")]}), Details(text, [table])),
        *(Cases([case]), Viewer({"studies": [{"id": text}]})),
    ]


def page(blocks: Sequence[Block], text: str = "A page") -> str:
    return render(Page(text, text, [Section("first", text, blocks, text)]))


def scripts(html: str) -> list[str]:
    """What a browser would run."""
    return [
        "".join(text)
        for tag, attributes, text in Parsed(html).found
        if tag == "script" and attributes.get("type") != "application/json"
    ]


def test_hostile_text_makes_no_element_and_no_script() -> None:
    harmless, hostile = Parsed(page(every_block("text"), "text")), Parsed(page(every_block(EVIL), EVIL))
    assert [tag for tag, _, _ in hostile.found] == [tag for tag, _, _ in harmless.found]
    names = [sorted(attributes) for _, attributes, _ in hostile.found]
    assert names == [sorted(attributes) for _, attributes, _ in harmless.found]
    assert scripts(page(every_block(EVIL))) == scripts(page([]))


def test_hostile_text_is_shown_as_it_is() -> None:
    html = Parsed(page(every_block(EVIL), EVIL))
    for tag in ("title", "h1", "h2", "h3", "dt", "dd", "td", "caption", "summary", "code", "figcaption", "p"):
        inner = "span" if tag == "caption" else tag
        assert EVIL in " ".join(html.texts(inner)), tag
    assert any(attributes.get("alt") == EVIL for _, attributes, _ in html.found)


def test_hostile_text_reaches_the_scripts_as_data() -> None:
    html = Parsed(page(every_block(EVIL)))
    (charts,) = html.texts("script", id="charts-data")
    (viewer,) = html.texts("script", id="viewer-data")
    assert json.loads(charts)["curve"]["data"][0]["name"] == EVIL
    assert json.loads(viewer)["studies"][0]["id"] == EVIL


def test_the_policy_names_the_scripts_that_stand_in_the_page_and_no_others() -> None:
    html = page(every_block("text"))
    (policy,) = [a["content"] for _, a, _ in Parsed(html).found if a.get("http-equiv") == "Content-Security-Policy"]
    digests = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts(html)]
    assert policy is not None
    assert len(digests) == 3
    assert re.findall(r"'sha256-([^']*)'", policy) == digests
    assert "\r" not in "".join(scripts(html)), "a browser would change the line's end, and so the hash"
    named = dict(part.split(None, 1) for part in policy.split(";"))
    assert named.pop("script-src").count("'") == 2 * len(digests)
    assert named == {
        **dict.fromkeys(("default-src", "base-uri", "form-action"), "'none'"),
        **{"style-src": "'unsafe-inline'", "img-src": "data: blob:"},
    }


def test_the_page_loads_nothing_from_anywhere() -> None:
    html = page(every_block("text"))
    addresses = [a[name] or "" for _, a, _ in Parsed(html).found for name in ("src", "href", "action") if name in a]
    assert addresses
    assert [address for address in addresses if not address.startswith(("data:", "#"))] == []
    style = "".join(Parsed(html).texts("style"))
    assert "@import" not in style
    assert "url(" not in style
    assert not [a for _, a, _ in Parsed(html).found if any(name.startswith("on") for name in a)]


def test_the_same_page_twice_is_the_same_text() -> None:
    assert page(every_block("text")) == page(every_block("text"))


def test_ids_are_unique_and_all_that_is_pointed_at_is_there() -> None:
    found = Parsed(page(every_block("text"))).found
    ids = [attributes["id"] for _, attributes, _ in found if "id" in attributes]
    assert len(ids) == len(set(ids))
    names = ("for", "aria-controls", "aria-labelledby", "aria-describedby")
    pointed = {a[name] for _, a, _ in found for name in names if name in a}
    pointed |= {(a["href"] or "")[1:] for _, a, _ in found if "href" in a}
    assert pointed <= set(ids)


@pytest.mark.parametrize("name", ["", "Upper", "1st", "a b", 'a"', "a<b", "é"])
def test_an_id_that_a_page_cannot_carry_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="cannot be an id"):
        Chart(name, "", "", {})
    with pytest.raises(ValueError, match="cannot be an id"):
        Panels(name, {})
    with pytest.raises(ValueError, match="cannot be an id"):
        Section(name, "", [])


@pytest.mark.parametrize(
    ("blocks", "twice"),
    [
        ([Chart("a", "", "", figure("")), Panels("p", {"x": [Chart("a", "", "", figure(""))]})], "chart-a"),
        ([Panels("p", {}), Details("", [Panels("p", {})])], "p"),
        ([Panels("first", {})], "first"),
        ([Panels("theme", {})], "theme"),
        ([Viewer({"studies": []}), Viewer({"studies": []})], "viewer"),
    ],
)
def test_an_id_given_twice_is_refused(blocks: list[Block], twice: str) -> None:
    with pytest.raises(ValueError, match=f"more than one {twice}:"):
        page(blocks)


def test_columns_of_numbers_stand_right_aligned_and_others_do_not() -> None:
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
    html = Parsed(page([Table(list(columns), list(zip(*columns.values(), strict=True)))]))
    heads = html.texts("th", **{"scope": "col", "class": "number"})
    assert heads == ["value", "interval", "brackets", "share", "count"]
    assert len(html.texts("td", **{"class": "number"})) == 5 * 3


def test_an_interval_is_set_apart_from_its_value_but_the_cell_reads_the_same() -> None:
    apart = ["0.1533 0.1175-0.1946", "-0.0018 -0.0077 to 0.0029", "0.9 (0.8 to 1.0)"]
    whole = ["0.02 to 0.05", "9 min 15 s", "2026-01-02", "5 of 24", "1,234"]
    html = page([Table(["", "loss"], [["", cell] for cell in apart + whole])])
    for cell in apart:
        value, interval = cell.split(" ", 1)
        assert f'<td class="number">{value} <span class="interval">{interval}</span></td>' in html
    for cell in whole:
        assert f'<td class="number">{cell}</td>' in html


def test_a_row_with_nothing_but_a_name_is_a_heading_over_the_table() -> None:
    html = Parsed(page([Table(["", "loss"], [["cnn", ""], ["resnet", "0.2"]])]))
    assert html.texts("th", **{"class": "group", "colspan": "2"}) == ["cnn"]
    assert html.texts("th", scope="row") == ["resnet"]


def test_a_gap_in_a_figure_is_null() -> None:
    (charts,) = Parsed(page([Chart("a", "", "", figure("n"))])).texts("script", id="charts-data")
    assert json.loads(charts)["a"]["data"][0]["y"] == [1.0, None, 2.0]
    assert "NaN" not in charts


def test_only_a_case_whose_study_the_viewer_holds_leads_there() -> None:
    cases = Cases([CASE, replace(CASE, study="ID_2")])
    buttons = [a for tag, a, _ in Parsed(page([Viewer({"studies": [{"id": "ID_1"}]}), cases])).found if tag == "button"]
    assert [(a["data-study"], a["data-index"]) for a in buttons if "data-study" in a] == [("ID_1", "1")]
    assert "data-study" not in page([cases]).split("<script")[0]


def test_the_strip_of_a_case_says_in_words_what_it_draws() -> None:
    svg = next(a for tag, a, _ in Parsed(page([Cases([CASE])])).found if tag == "svg")
    assert svg["role"] == "img"
    said = "Probability of any along the study, slice 2 of 2 has 0.90, the threshold is 0.50"
    assert svg["aria-label"] == said


def test_the_first_panel_is_open_and_the_only_one_in_the_order_of_the_keyboard() -> None:
    found = Parsed(page([Panels("p", {"x": [], "y": [], "z": []})])).found
    tabs = [a for _, a, _ in found if a.get("role") == "tab"]
    assert [(a["aria-selected"], a["tabindex"]) for a in tabs] == [("true", "0"), ("false", "-1"), ("false", "-1")]
    assert ["hidden" in a for _, a, _ in found if a.get("role") == "tabpanel"] == [False, True, True]


def test_the_page_says_that_it_is_not_for_diagnosis() -> None:
    assert "For research and teaching, not for diagnosis." in Parsed(page([])).texts("p", **{"class": "notice"})
