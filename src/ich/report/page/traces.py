"""Traces and axes of the page's charts as plotly's dictionaries.

They hold no colours: report.js reads `meta` and takes the colours from the theme. They hold no NaN, which JSON lacks.
Categories are numbers on the axis with texts as tick labels, so that plotly never reads a name as a date or a number.
"""

import html
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ich.report.scores import Cell

Figure = dict[str, Any]
Trace = dict[str, Any]

MARKS = (0, 0.01, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1)  # tick labels of a square-root axis


def plain(text: object) -> str:
    """Escape a text of the data: plotly reads tags and entities."""
    return html.escape(" ".join(str(text).split()), quote=False)


def numbers(values: ArrayLike, digits: int = 6) -> list[Any]:
    """Rounded Python numbers, nested as the array is; None for NaN and infinity."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim > 1:
        return [numbers(row, digits) for row in array]
    return [round(value, digits) if np.isfinite(value) else None for value in array.tolist()]


def line(x: ArrayLike, y: ArrayLike, name: str, colour: int | str, width: float = 2) -> Trace:
    return {
        "type": "scatter",
        "mode": "lines",
        "x": numbers(x),
        "y": numbers(y),
        "name": name,
        "line": {"width": width},
        "meta": {"color": colour},
    }


def reference(x: ArrayLike, y: ArrayLike, name: str) -> Trace:
    """A thin dashed line to compare with."""
    return {**line(x, y, name, "muted"), "line": {"width": 1.5, "dash": "dash"}, "hoverinfo": "skip"}


def dots(x: ArrayLike, y: ArrayLike, name: str, symbol: str, colour: int | str, size: int = 9) -> Trace:
    return {**line(x, y, name, colour), "mode": "markers", "marker": {"size": size, "symbol": symbol}}


def values_and_ends(cells: Sequence[Cell]) -> NDArray[np.float64]:
    """Values and ends of their intervals [3, n]; NaN for undefined scores."""
    return np.array([[cell[key] for cell in cells] for key in ("value", "low", "high")], dtype=np.float64)


def error_bars(ends: NDArray[np.float64]) -> dict[str, Any]:
    """Error bars from values, lows and highs [3, n]."""
    value, low, high = ends
    bars = {"array": numbers(high - value), "arrayminus": numbers(value - low)}
    return {"type": "data", "symmetric": False, "width": 4, **bars}


def heat(
    z: NDArray[np.float64],
    columns: Sequence[str],
    rows: Sequence[str],
    text: Sequence[Sequence[str]],
    limits: tuple[float, float],
    hover: Sequence[Sequence[str]],
) -> Figure:
    """A heat map with its first row on top and a text in each cell. All texts must be escaped by `plain`."""
    cells = {
        "type": "heatmap",
        "z": numbers(z, 4),
        "text": text,
        "texttemplate": "%{text}",
        "customdata": hover,
        "hovertemplate": "%{customdata}<extra></extra>",
        "zmin": limits[0],
        "zmax": limits[1],
        "showscale": False,
        "meta": {"scale": "sequential"},
    }
    across, down = ({"showgrid": False, **ticks(names)} for names in (columns, rows))
    layout = {"xaxis": across, "yaxis": {**down, "autorange": "reversed"}, "height": 130 + 34 * len(rows)}
    return {"data": [cells], "layout": layout}


def ticks(names: Sequence[str]) -> dict[str, Any]:
    """Names at 0, 1, ... of an axis."""
    return {"tickvals": list(range(len(names))), "ticktext": list(names)}


def axis(title: str, **more: Any) -> dict[str, Any]:
    return {"title": {"text": title}, **more}


def square_root_axis(title: str, most: float) -> dict[str, Any]:
    """An axis of square roots from 0 to that of `most`, which spreads small values; the labels are the squares."""
    marks, end = [mark for mark in MARKS if mark <= most], float(np.sqrt(most))
    words = [f"{mark:g}" for mark in marks]
    return axis(title, range=[-0.02 * end, 1.02 * end], tickvals=numbers(np.sqrt(marks)), ticktext=words)
