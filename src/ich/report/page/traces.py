"""What figures are made of: lines, dots, heat maps and axes as plotly's dictionaries.

No colours, which report.js takes from the theme by `meta`, and no NaN, which JSON does not know. Places on an axis are
numbers with texts as their labels, so that no name of a class or a member is ever read as a date or a number.
"""

import html
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ich.report.scores import Cell

Figure = dict[str, Any]
Trace = dict[str, Any]

SQUARES = (0, 0.01, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1)  # what is marked on an axis of square roots


def plain(text: object) -> str:
    """A text of the data as plotly shows it, which reads tags and entities: what stands there, and nothing else."""
    return html.escape(" ".join(str(text).split()), quote=False)


def numbers(values: ArrayLike, digits: int = 6) -> list[Any]:
    """Python's numbers, in as many dimensions; None for what is not finite."""
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
    """What the rest is compared with."""
    return {**line(x, y, name, "muted"), "line": {"width": 1.5, "dash": "dash"}, "hoverinfo": "skip"}


def dots(x: ArrayLike, y: ArrayLike, name: str, symbol: str, colour: int | str, size: int = 9) -> Trace:
    return {**line(x, y, name, colour), "mode": "markers", "marker": {"size": size, "symbol": symbol}}


def bars(values: ArrayLike, lows: ArrayLike, highs: ArrayLike) -> Trace:
    """Error bars from low to high."""
    middle = np.asarray(values, dtype=np.float64)
    up, down = np.asarray(highs, dtype=np.float64) - middle, middle - np.asarray(lows, dtype=np.float64)
    return {"type": "data", "symmetric": False, "array": numbers(up), "arrayminus": numbers(down), "width": 4}


def ends(cells: Sequence[Cell]) -> NDArray[np.float64]:
    """Values, lows and highs [3, n]; NaN for scores that do not exist."""
    return np.array([[cell[key] for cell in cells] for key in ("value", "low", "high")], dtype=np.float64)


def heat(
    z: NDArray[np.float64],
    columns: Sequence[str],
    rows: Sequence[str],
    text: Sequence[Sequence[str]],
    most: tuple[float, float],
    hover: Sequence[Sequence[str]],
) -> Figure:
    """A heat map, its first row on top, with a text in each cell; all texts as plotly reads them."""
    cells = {
        "type": "heatmap",
        "z": numbers(z, 4),
        "text": [list(row) for row in text],
        "texttemplate": "%{text}",
        "customdata": [list(row) for row in hover],
        "hovertemplate": "%{customdata}<extra></extra>",
        "zmin": most[0],
        "zmax": most[1],
        "showscale": False,
        "xgap": 2,
        "ygap": 2,
        "meta": {"scale": "sequential"},
    }
    across, down = ({"showgrid": False, "zeroline": False, **ticks(names)} for names in (columns, rows))
    layout = {"xaxis": across, "yaxis": {**down, "autorange": "reversed"}, "height": 130 + 34 * len(rows)}
    return {"data": [cells], "layout": layout}


def ticks(names: Sequence[str]) -> dict[str, Any]:
    """Names at 0, 1, ... of an axis."""
    return {"tickvals": list(range(len(names))), "ticktext": list(names)}


def axis(title: str, **more: Any) -> dict[str, Any]:
    return {"title": {"text": title}, **more}


def square_axis(title: str, most: float) -> dict[str, Any]:
    """An axis of square roots up to that of `most`, on which rare things are seen; its labels are the squares."""
    marks, end = [mark for mark in SQUARES if mark <= most], float(np.sqrt(most))
    words = [f"{mark:g}" for mark in marks]
    return axis(title, range=[-0.02 * end, 1.02 * end], tickvals=numbers(np.sqrt(marks)), ticktext=words)


def stacked(layout: dict[str, Any], place: int, places: int, gap: float) -> tuple[str, str]:
    """Give the layout the axes of one plot of several, the first on top; their names as traces have them: x2, y2."""
    number = "" if place == 0 else str(place + 1)
    each = (1 - gap * (places - 1)) / places
    top = 1 - place * (each + gap)
    layout[f"xaxis{number}"] = {"anchor": f"y{number}"}
    layout[f"yaxis{number}"] = {"anchor": f"x{number}", "domain": [round(max(top - each, 0), 4), round(top, 4)]}
    return f"x{number}", f"y{number}"


def corner(text: str, x: str, y: str = "bottom", above: float = 0.04) -> dict[str, Any]:
    """A text in that corner of the plot, as far from the edge as `above` says."""
    place = {"x": 0.97 if x == "right" else 0.03, "y": above if y == "bottom" else 1 - above}
    anchor = {"xref": "paper", "yref": "paper", "xanchor": x, "yanchor": y, "align": x}
    return {"text": text, "showarrow": False, "name": "strong", **place, **anchor}
