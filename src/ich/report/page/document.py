"""Render the page as one HTML file that needs no network."""

import base64
import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.resources import files
from itertools import groupby
from typing import TypeVar

from jinja2 import Environment, PackageLoader, StrictUndefined
from plotly.offline import get_plotlyjs
from plotly.utils import PlotlyJSONEncoder  # arrays as lists, NaN as null, which a figure shows as a gap

from ich.report.page.blocks import Block, Chart, Details, Image, Page, Panels, Table, Viewer

STYLES = ("report.css", "viewer.css")
SCRIPTS = ("viewer.js", "report.js")  # in the order in which they run, after plotly
TAKEN = ("main", "theme", "viewer", "charts-data", "viewer-data")  # ids of the template itself

NUMBER = r"[+\-−]?\d[\d,]*(\.\d+)?(e[+\-]?\d+)?( ?(%|s|h|min|mm|MB|GB|MiB|GiB))?"
NUMBERS = re.compile(rf"[<>≤≥~]? ?{NUMBER}((\s|[()\[\],;:/±–-]|to|of)+{NUMBER})*[)\]]?")
INTERVAL = re.compile(rf"(?P<value>{NUMBER}) (?P<interval>[(\[]?{NUMBER}(-|–| to |, ){NUMBER}[)\]]?)")
NOTHING = re.compile(r"|[-–—]|n/a|none|not defined")

K = TypeVar("K", bound=Block)


def render(page: Page) -> str:
    """Return the HTML of a page. All text is escaped; the content policy allows the page's own scripts only, by hash.

    Raises ValueError for an id given twice, or for more than one viewer.
    """
    _refuse_twice(page)
    viewer = next(_of_kind(page, Viewer), None)
    scripts = [get_plotlyjs(), *map(_asset, SCRIPTS)]
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{one}'" for one in hashes)
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            page=page,
            style="".join(map(_asset, STYLES)),
            scripts=scripts,
            policy=f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:;"
            " base-uri 'none'; form-action 'none'",
            charts={chart.id: chart.figure for chart in _of_kind(page, Chart)},
            viewer=viewer.data if viewer else None,
            held=viewer.holds if viewer else frozenset(),
        )
    )


def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("ich.report.page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.policies["json.dumps_kwargs"] = {"cls": PlotlyJSONEncoder, "separators": (",", ":")}
    made.filters |= {"data_uri": _data_uri, "numeric": _numeric, "parted": _parted, "runs": _runs}
    made.tests["kind"] = lambda block, name: type(block).__name__ == name
    return made


def _refuse_twice(page: Page) -> None:
    ids = [*TAKEN, *(section.id for section in page.sections), *(panels.id for panels in _of_kind(page, Panels))]
    ids += [f"chart-{chart.id}" for chart in _of_kind(page, Chart)] + ["viewer" for _ in _of_kind(page, Viewer)][1:]
    twice = [name for name, times in Counter(ids).items() if times > 1]
    if twice:
        raise ValueError(f"the page has more than one {', '.join(twice)}: an id names one thing")


def _of_kind(page: Page, kind: type[K]) -> Iterator[K]:
    def walk(blocks: Iterable[Block]) -> Iterator[K]:
        for block in blocks:
            if isinstance(block, kind):
                yield block
            if isinstance(block, Panels):
                for inner in block.panels.values():
                    yield from walk(inner)
            elif isinstance(block, Details):
                yield from walk(block.blocks)

    for section in page.sections:
        yield from walk(section.blocks)


def _runs(blocks: Iterable[Block]) -> list[list[Block]]:
    """The blocks in their order, each by itself but for charts in a row, which share one."""
    numbered = groupby(enumerate(blocks), key=lambda item: -1 if isinstance(item[1], Chart) else item[0])
    return [[block for _, block in run] for _, run in numbered]


def _numeric(table: Table) -> list[bool]:
    """Which of its columns hold numbers and, where there is none, a dash or the like."""
    columns = [[row[k].strip() for row in table.rows] for k in range(len(table.columns))]
    return [
        any(map(NUMBERS.fullmatch, cells)) and all(NUMBERS.fullmatch(c) or NOTHING.fullmatch(c) for c in cells)
        for cells in columns
    ]


def _parted(cell: str) -> tuple[str, str]:
    """The value of a cell, and the interval behind it if there is one."""
    found = INTERVAL.fullmatch(cell)
    return (found["value"], found["interval"]) if found else (cell, "")


@cache
def _asset(name: str) -> str:
    return files("ich.report.page").joinpath("templates", name).read_text(encoding="utf-8")


def _data_uri(image: Image) -> str:
    return f"data:image/png;base64,{base64.b64encode(image.png).decode()}"
