"""Sections as Markdown. All text is escaped: it is shown as it is."""

import re
from collections.abc import Iterable, Iterator, Sequence

from ich.report.page.blocks import Notes, Section, Table

# emphasis, code, links, HTML, tables, mathematics and, by GitHub, addresses; _ only where it may begin emphasis
COMMAND = r"`ich [a-z]+`"
SPECIAL = re.compile(COMMAND + r"|[\\`*\[\]<>|~&$@]|:(?=//)|(?<=www)\.|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")


def render(title: str, lead: str, sections: Iterable[Section]) -> str:
    """Return a Markdown document. The blocks must be Notes and Tables."""
    return (
        "\n\n".join([f"# {escaped(title)}", escaped(lead), *(part for one in sections for part in _section(one))])
        + "\n"
    )


def escaped(text: str) -> str:
    """Return text of one line that Markdown shows as it is; `ich score` and other commands are code."""
    return SPECIAL.sub(lambda found: found[0] if len(found[0]) > 1 else f"\\{found[0]}", " ".join(text.split()))


def _section(section: Section) -> Iterator[str]:
    yield f"## {escaped(section.title)}"
    if section.lead:
        yield escaped(section.lead)
    for block in section.blocks:
        if isinstance(block, Table):
            if block.title:
                yield f"**{escaped(block.title)}**"
            yield "\n".join([_row(block.columns), _row(["---"] * len(block.columns)), *map(_row, block.rows)])
        elif isinstance(block, Notes):
            yield "\n".join(f"- {escaped(line)}" for line in block.lines)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(escaped, cells))} |"
