"""Every figure of the page as plotly's dictionary, from arrays and numbers; `traces` says how they are kept plain."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ich.report.page import traces
from ich.report.page.traces import Figure, Trace, plain
from ich.report.scores import Cell, span

DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star", "triangle-down")
HUES = 8
UNIT = [-0.02, 1.02]
History = Sequence[Mapping[str, float]]  # a row an epoch


@dataclass(frozen=True)
class Curves:
    """A curve [k, 2] of all rows, and that of each fold which has one."""

    pooled: NDArray[np.float64]
    folds: Mapping[int, NDArray[np.float64]]


# ---- a class


def roc(curves: Curves, said: str) -> Figure:
    """`said` stands in the corner that a good curve leaves free."""
    drawn = _drawn(curves, "false positive rate %{x:.3f}<br>sensitivity %{y:.3f}")
    layout = {
        "xaxis": traces.axis("false positive rate (1 - specificity)", range=UNIT),
        "yaxis": traces.axis("sensitivity", range=UNIT),
        "annotations": [traces.corner(said, "right")],
    }
    return {"data": [traces.reference([0, 1], [0, 1], "chance"), *drawn], "layout": layout}


def precision_recall(curves: Curves, prevalence: float, said: str) -> Figure:
    """`said` stands above the right end of a curve that is low there, else above the prevalence."""
    drawn = _drawn(curves, "recall %{x:.3f}<br>precision %{y:.3f}")
    later = curves.pooled[curves.pooled[:, 0] > 0.4, 1]
    low = later.max(initial=0) < 0.75
    place = traces.corner(said, "right", "top") if low else traces.corner(said, "left", above=prevalence + 0.05)
    layout = {
        "xaxis": traces.axis("recall (sensitivity)", range=UNIT),
        "yaxis": traces.axis("precision", range=UNIT),
        "annotations": [place],
    }
    return {"data": [traces.reference([0, 1], [prevalence] * 2, "prevalence"), *drawn], "layout": layout}


def f_by_threshold(curves: Curves, metric: str, threshold: float, value: float, cross_fitted: Cell) -> Figure:
    """curves: of `curves.by_threshold`. value: at the chosen threshold, on the rows that chose it."""
    data = _drawn(curves, f"{metric} %{{y:.4f}}<br>at threshold %{{customdata}}")
    data[-1]["customdata"] = traces.numbers(curves.pooled[:, 0] ** 2, 4)
    if threshold <= 1:
        x = float(np.sqrt(threshold))
        honest, low, high = traces.ends([cross_fitted])
        data += [
            traces.reference([x, x], [0, 1], "threshold"),
            {
                **traces.dots([x], [value], "in-sample", "circle-open", "strong", 10),
                "hovertemplate": f"{metric} {value:.4f} in-sample<extra></extra>",
            },
            {
                **traces.dots([x], honest, "cross-fitted", "diamond", "strong", 10),
                "error_y": traces.bars(honest, low, high),
                "hovertemplate": f"{metric} cross-fitted {span(cross_fitted)}<extra></extra>",
            },
        ]
    layout = {
        "xaxis": traces.square_axis("threshold, square-root scale", 1.0),
        "yaxis": traces.axis(metric, range=UNIT),
    }
    return {"data": data, "layout": layout}


def reliability(probability: Sequence[float], observed: Sequence[Cell], counts: Sequence[int], said: str) -> Figure:
    """Mean probability of each bin [b] and the share of positives in it, with its interval, on axes of square roots."""
    value, low, high = np.sqrt(traces.ends(observed))
    most = min(1.0, 1.1 * max(*probability, *np.square(high), 0.05))
    bins = {
        **traces.dots(np.sqrt(probability), value, "bins of equally many slices", "circle", 1),
        "mode": "lines+markers",
        "error_y": traces.bars(value, low, high),
        "text": [
            f"{count:,} slices<br>predicted {mean:.4f}<br>positive {span(cell)}"
            for count, mean, cell in zip(counts, probability, observed, strict=True)
        ],
        "hovertemplate": "%{text}<extra></extra>",
    }
    layout = {
        "xaxis": traces.square_axis("predicted probability, square-root scale", most),
        "yaxis": traces.square_axis("share of positives", most),
        "annotations": [traces.corner(said, "right")],
    }
    ideal = traces.reference([0, np.sqrt(most)], [0, np.sqrt(most)], "ideal")
    return {"data": [ideal, bins], "layout": layout}


def confusion(tp: int, fp: int, fn: int, tn: int) -> Figure:
    """Counts in the cells, shaded by the share of what the labels say, so that a rare class is seen."""
    counts = np.array([[tp, fn], [fp, tn]])
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    words = [["true positive", "false negative"], ["false positive", "true negative"]]
    text = [[f"{words[r][c]}<br>{counts[r, c]:,}<br>{share[r, c]:.1%}" for c in (0, 1)] for r in (0, 1)]
    figure = traces.heat(
        share, ["predicted<br>positive", "predicted<br>negative"], ["labelled<br>positive", "labelled<br>negative"],
        text, (0, 1), text,
    )  # fmt: skip
    figure["layout"]["height"] = 300
    return figure


def four(pooled: Mapping[str, float | None], folds: Mapping[int, Mapping[str, float | None]]) -> Figure:
    """Shares by name, a line each: of all rows, and of each fold's."""
    names = list(pooled)
    values = {k: np.array([shares[name] for name in names], dtype=np.float64) for k, shares in folds.items()}
    data = []
    for place, shares in enumerate(values.values()):
        drawn = traces.dots(shares, range(len(names)), "each fold", "line-ns-open", 1, 16)
        drawn |= {"legendgroup": "folds", "showlegend": place == 0, "hovertemplate": "%{x:.4f}<extra>one fold</extra>"}
        data.append(drawn)
    whole = np.array([pooled[name] for name in names], dtype=np.float64)
    drawn = traces.dots(whole, range(len(names)), "all folds", "circle", 1, 11)
    data.append({**drawn, "hovertemplate": "%{x:.4f}<extra>all folds</extra>"})
    down = {**traces.ticks(names), "range": [len(names) - 0.4, -0.6]}
    return {"data": data, "layout": {"xaxis": traces.axis("share", range=UNIT), "yaxis": down, "height": 300}}


# ---- members


def learning(histories: Mapping[int, History], panels: Mapping[str, str], kept: str | None) -> Figure:
    """Each fold's history by epoch, a plot below the other for each column that `panels` gives a title.

    kept: the column whose best epoch was kept; None where the last epoch was.
    """
    data: list[Trace] = []
    layout: dict[str, Any] = {"height": 110 + 170 * len(panels)}
    longest = max(map(len, histories.values()))
    for place, (column, title) in enumerate(panels.items()):
        x, y = traces.stacked(layout, place, len(panels), 0.1)
        layout[f"xaxis{x[1:]}"] |= {"dtick": -(-longest // 10), "range": [0.5, longest + 0.5]}
        layout[f"xaxis{x[1:]}"] |= traces.axis("epoch" if place == len(panels) - 1 else "")
        layout[f"yaxis{y[1:]}"] |= traces.axis(plain(title))
        for k, history in histories.items():
            epochs, values = [row["epoch"] + 1 for row in history], [row[column] for row in history]
            drawn = traces.line(epochs, values, f"fold {k}", k % HUES + 1)
            drawn["line"]["dash"] = DASHES[k % len(DASHES)]
            drawn |= {"mode": "lines+markers", "marker": {"size": 6, "symbol": SYMBOLS[k % len(SYMBOLS)]}}
            drawn |= {"legendgroup": f"fold {k}", "showlegend": place == 0, "xaxis": x, "yaxis": y}
            data.append({**drawn, "hovertemplate": "epoch %{x}: %{y:.4f}<extra>%{fullData.name}</extra>"})
        if column == kept:
            best = [history[best_epoch(history, column)] for history in histories.values()]
            dots = ([row["epoch"] + 1 for row in best], [row[column] for row in best])
            data.append({**traces.dots(*dots, "epoch kept", "circle-open", "strong", 13), "xaxis": x, "yaxis": y})
    return {"data": data, "layout": layout}


def best_epoch(history: History, column: str) -> int:
    """The first of the best, as training chose it: losses want to be low, all other figures high."""
    values = [row[column] for row in history]
    return values.index(min(values) if column.endswith("loss") else max(values))


def correlation(matrix: NDArray[np.float64], names: Sequence[str]) -> Figure:
    """Correlations [m, m] of the members `names`, with their numbers."""
    known, words = matrix[np.isfinite(matrix)], [plain(name) for name in names]
    low = float(min(0.9, np.floor(10 * known.min()) / 10)) if known.size else 0.0
    text = [[f"{value:.2f}" if np.isfinite(value) else "-" for value in row] for row in matrix]
    hover = [
        [f"{a} and {b}: {said}" for b, said in zip(words, row, strict=True)] for a, row in zip(words, text, strict=True)
    ]
    return traces.heat(matrix, words, words, text, (low, 1.0), hover)


def weights(
    by_fold: NDArray[np.float64], folds: Sequence[int], members: Sequence[str], classes: Sequence[str]
) -> Figure:
    """Blend weights [folds, members, classes]: in the cells the mean over folds, in the hover box each fold's."""
    mean = by_fold.mean(axis=0)
    text = [[f"{value:.2f}" for value in row] for row in mean]
    hover = [
        [
            f"{plain(member)}, {plain(name)}<br>"
            + ", ".join(f"fold {k} {one:.2f}" for k, one in zip(folds, by_fold[:, m, c], strict=True))
            for c, name in enumerate(classes)
        ]
        for m, member in enumerate(members)
    ]
    return traces.heat(mean, [plain(name) for name in classes], [plain(name) for name in members], text, (0, 1), hover)


def gains(names: Sequence[str], figures: Mapping[str, Mapping[str, Sequence[Cell]]]) -> Figure:
    """A line a name, a plot below the other for each figure by title; in it dots for each set of rows by its name."""
    data: list[Trace] = []
    each = 34 * len(names)  # pixels of a plot
    height = each * len(figures) + 70 * (len(figures) - 1)
    layout: dict[str, Any] = {"height": height + 110}
    for place, (title, sets) in enumerate(figures.items()):
        x, y = traces.stacked(layout, place, len(figures), 70 / height)
        layout[f"xaxis{x[1:]}"] |= traces.axis(plain(title))
        layout[f"yaxis{y[1:]}"] |= traces.ticks([plain(name) for name in names])
        layout[f"yaxis{y[1:]}"] |= {"range": [len(names) - 0.4, -0.6], "zeroline": False}
        for k, (where, cells) in enumerate(sets.items()):
            values, lows, highs = traces.ends(cells)
            rows = [i + 0.13 * (2 * k - len(sets) + 1) for i in range(len(names))]
            drawn = traces.dots(values, rows, where, ("circle", "diamond-open")[k % 2], k + 1)
            drawn |= {"legendgroup": where, "showlegend": place == 0, "xaxis": x, "yaxis": y}
            drawn |= {"error_x": traces.bars(values, lows, highs), "text": [span(cell) for cell in cells]}
            data.append({**drawn, "hovertemplate": "%{text}<extra>%{fullData.name}</extra>"})
    return {"data": data, "layout": layout}


# ---- the map of the embeddings


def map_by_group(
    points: NDArray[np.float64], groups: Sequence[str], order: Sequence[str], texts: Sequence[str]
) -> Figure:
    """Points [n, 2] by the group of each, the first of `order` in grey below the others; texts [n] to hover for."""
    member, data = np.asarray(groups), []
    for place, name in enumerate(order):
        rows = np.flatnonzero(member == name)
        colour = "muted" if place == 0 else (place - 1) % HUES + 1
        title, symbol = f"{plain(name)} ({len(rows):,})", SYMBOLS[place % len(SYMBOLS)]
        drawn = traces.dots(points[rows, 0], points[rows, 1], title, symbol, colour, 6)
        drawn |= {"text": [plain(texts[row]) for row in rows.tolist()]}
        data.append({**drawn, "hovertemplate": "%{text}<extra>%{fullData.name}</extra>"})
    return {"data": data, "layout": _map_layout()}


def map_by_value(points: NDArray[np.float64], values: ArrayLike, scale: str, texts: Sequence[str]) -> Figure:
    """Points [n, 2] shaded by a number of each, which the text `scale` explains; texts [n] to hover for."""
    drawn = traces.dots(points[:, 0], points[:, 1], plain(scale), "circle", 1, 6)
    bar = {"title": {"text": plain(scale), "side": "right"}, "thickness": 12}
    drawn["marker"] |= {"color": traces.numbers(values, 4), "showscale": True, "colorbar": bar}
    drawn |= {"meta": {"scale": "sequential"}, "text": [plain(text) for text in texts]}
    drawn |= {"hovertemplate": "%{text}<extra></extra>"}
    return {"data": [drawn], "layout": {**_map_layout(), "showlegend": False}}


def _map_layout() -> dict[str, Any]:
    bare = {"showticklabels": False, "showgrid": False, "zeroline": False, "ticks": ""}
    return {"xaxis": bare, "yaxis": {**bare, "scaleanchor": "x"}, "height": 480, "hovermode": "closest"}


# ---- parts


def _drawn(curves: Curves, hover: str) -> list[Trace]:
    """The folds' thin lines below the strong one of all rows."""
    drawn = [
        {
            **traces.line(points[:, 0], points[:, 1], "each fold", "muted", 1),
            "legendgroup": "folds",
            "showlegend": place == 0,
            "hoverinfo": "skip",
        }
        for place, points in enumerate(curves.folds.values())
    ]
    pooled = traces.line(curves.pooled[:, 0], curves.pooled[:, 1], "all folds", 1, 2.5)
    return [*drawn, {**pooled, "hovertemplate": f"{hover}<extra></extra>"}]
