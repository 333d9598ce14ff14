"""Render the page as one HTML file that needs no network."""

import base64
import hashlib
import re
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.resources import files
from itertools import groupby
from typing import TypeVar

from jinja2 import Environment, PackageLoader, StrictUndefined
from plotly.offline import get_plotlyjs
from plotly.utils import PlotlyJSONEncoder

from ich.report.page.blocks import Block, Chart, Details, Image, Page, Panels, Table, Viewer

STYLES = ("report.css", "viewer.css")
SCRIPTS = ("viewer.js", "report.js")  # in the order in which they run, after plotly

NUMBER = r"[+\-−]?\d[\d,]*(\.\d+)?(e[+\-]?\d+)?( ?(%|s|h|min|mm|MB|GB|MiB|GiB))?"
NUMBERS = re.compile(rf"[<>≤≥~]? ?{NUMBER}((\s|[()\[\],;:/±–-]|to|of)+{NUMBER})*[)\]]?")
NOTHING = re.compile(r"|[-–—]|n/a|none|not defined")
INTERVAL = re.compile(r"(\S+) ([-(\[\d].*)")

K = TypeVar("K", bound=Block)


def render(page: Page) -> str:
    """Return the HTML of a page. Text is escaped, and the content policy allows the page's own scripts only."""
    viewer = next(_of_kind(page, Viewer), None)
    scripts = [get_plotlyjs(), *map(_asset, SCRIPTS)]
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{one}'" for one in hashes)
    environment = Environment(
        loader=PackageLoader("ich.report.page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # the encoder writes arrays as lists, and NaN as null, which plotly shows as a gap
    environment.policies["json.dumps_kwargs"] = {"cls": PlotlyJSONEncoder, "separators": (",", ":")}
    environment.filters |= {"data_uri": _data_uri, "numeric": _numeric, "parted": _parted, "runs": _runs}
    environment.tests["kind"] = lambda block, name: type(block).__name__ == name
    return environment.get_template("report.html.j2").render(
        page=page,
        style="".join(map(_asset, STYLES)),
        scripts=scripts,
        policy=f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:;"
        " base-uri 'none'; form-action 'none'",
        charts={chart.id: chart.figure for chart in _of_kind(page, Chart)},
        viewer=viewer.data if viewer else None,
        viewer_studies={study["id"] for study in viewer.data["studies"]} if viewer else (),
    )


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
    """Split the blocks into runs of consecutive charts and single other blocks."""
    numbered = groupby(enumerate(blocks), key=lambda item: -1 if isinstance(item[1], Chart) else item[0])
    return [[block for _, block in run] for _, run in numbered]


def _numeric(table: Table) -> list[bool]:
    """Mark the columns [c] that hold numbers only, apart from empty cells and dashes."""
    columns = [[row[k].strip() for row in table.rows] for k in range(len(table.columns))]
    return [
        any(map(NUMBERS.fullmatch, cells)) and all(NUMBERS.fullmatch(c) or NOTHING.fullmatch(c) for c in cells)
        for cells in columns
    ]


def _parted(cell: str) -> tuple[str, str]:
    """Split a cell of numbers into the value and the interval behind it, if any."""
    found = INTERVAL.fullmatch(cell)
    return (found[1], found[2]) if found else (cell, "")


@cache
def _asset(name: str) -> str:
    return files("ich.report.page").joinpath("templates", name).read_text(encoding="utf-8")


def _data_uri(image: Image) -> str:
    return f"data:image/png;base64,{base64.b64encode(image.png).decode()}"
