"""The page as one HTML file that opens from a disk and asks nobody for anything."""

import base64
import hashlib
from collections.abc import Iterator
from functools import cache
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined

from ich.report.page.blocks import Block, Chart, Details, Page, Panels, Picture, Viewer

SCRIPTS = ("viewer.js", "report.js")  # in the order in which they run, after plotly


def render(page: Page) -> str:
    """The HTML of a page. All text is escaped; scripts are the page's own, which its content policy names by hash."""
    environment = Environment(
        loader=PackageLoader("ich.report.page"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["data_uri"] = _data_uri
    environment.tests["kind"] = lambda block, name: type(block).__name__ == name
    scripts = [_plotly(), *(_asset(name) for name in SCRIPTS)]
    return environment.get_template("report.html.j2").render(
        page=page,
        style=_asset("report.css"),
        scripts=scripts,
        policy=_policy(scripts),
        charts={chart.id: chart.figure for chart in _of_kind(page, Chart)},
        viewer=next((viewer.data for viewer in _of_kind(page, Viewer)), None),
    )


def _policy(scripts: list[str]) -> str:
    """Nothing but these scripts runs, and nothing is asked of any network."""
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts)
    return f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:"


def _of_kind(page: Page, kind: type) -> Iterator[Block]:
    def walk(blocks: "list[Block]") -> Iterator[Block]:
        for block in blocks:
            if isinstance(block, kind):
                yield block
            elif isinstance(block, Panels):
                for inner in block.panels.values():
                    yield from walk(list(inner))
            elif isinstance(block, Details):
                yield from walk(list(block.blocks))

    for section in page.sections:
        yield from walk(list(section.blocks))


@cache
def _asset(name: str) -> str:
    return files("ich.report.page").joinpath("templates", name).read_text(encoding="utf-8")


@cache
def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    return get_plotlyjs()


def _data_uri(picture: Picture) -> str:
    return f"data:image/png;base64,{base64.b64encode(picture.png).decode()}"
