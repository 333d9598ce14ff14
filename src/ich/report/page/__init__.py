"""The report page: blocks, the figures among them, the packed studies of the viewer, and one HTML file of it all."""

from ich.report.page.blocks import (
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
)
from ich.report.page.document import render

__all__ = [
    "Block",
    "Case",
    "Cases",
    "Chart",
    "Code",
    "Details",
    "Notes",
    "Page",
    "Panels",
    "Picture",
    "Section",
    "Strip",
    "Table",
    "Tile",
    "Tiles",
    "Viewer",
    "render",
]
