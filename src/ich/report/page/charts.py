"""The charts of the page as plotly's dictionaries, made from arrays and numbers."""

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
History = Sequence[Mapping[str, float]]  # one row per epoch


def scores(cells: Mapping[str, Sequence[Cell]], models: Sequence[str], title: str) -> Figure:
    """The score of each model with its interval, for each set of rows by name; the blend is the last model."""
    data: list[Trace] = []
    for k, (rows, of_models) in enumerate(cells.items()):
        ends = traces.values_and_ends(of_models)
        y = np.arange(len(models)) + 0.13 * (2 * k - len(cells) + 1)
        blend = {**traces.reference([ends[0, -1]] * 2, [-0.6, len(models) - 0.4], "blend"), "showlegend": False}
        data.append({**blend, "legendgroup": rows})
        for some, colour, size in ((slice(-1), k + 1, 9), (slice(-1, None), "strong", 13)):
            drawn = traces.dots(ends[0, some], y[some], rows, ("circle", "diamond-open")[k % 2], colour, size)
            drawn |= {"error_x": traces.error_bars(ends[:, some]), "text": [span(cell) for cell in of_models[some]]}
            drawn |= {
                "legendgroup": rows,
                "showlegend": size == 9,
                "hovertemplate": "%{text}<extra>%{fullData.name}</extra>",
            }
            data.append(drawn)
    down = {**traces.ticks([plain(name) for name in models]), "range": [len(models) - 0.4, -0.6]}
    return {"data": data, "layout": {"xaxis": traces.axis(title), "yaxis": down, "height": 120 + 34 * len(models)}}


# ---- one class


@dataclass(frozen=True)
class Curves:
    """The curve [k, 2] of all rows, and of each fold that has one."""

    pooled: NDArray[np.float64]
    folds: Sequence[NDArray[np.float64]]

    def traces(self, hover: str) -> list[Trace]:
        """Thin lines of the folds below the strong line of all rows."""
        shared = {"legendgroup": "folds", "hoverinfo": "skip"}
        drawn = [
            {**traces.line(points[:, 0], points[:, 1], "each fold", "muted", 1), **shared, "showlegend": place == 0}
            for place, points in enumerate(self.folds)
        ]
        pooled = traces.line(self.pooled[:, 0], self.pooled[:, 1], "all folds", 1, 2.5)
        return [*drawn, {**pooled, "hovertemplate": f"{hover}<extra></extra>"}]


def roc(curves: Curves) -> Figure:
    layout = {
        "xaxis": traces.axis("false positive rate (1 - specificity)", range=UNIT),
        "yaxis": traces.axis("sensitivity", range=UNIT),
    }
    drawn = curves.traces("false positive rate %{x:.3f}<br>sensitivity %{y:.3f}")
    return {"data": [traces.reference([0, 1], [0, 1], "chance"), *drawn], "layout": layout}


def precision_recall(curves: Curves, prevalence: float) -> Figure:
    layout = {"xaxis": traces.axis("recall (sensitivity)", range=UNIT), "yaxis": traces.axis("precision", range=UNIT)}
    drawn = curves.traces("recall %{x:.3f}<br>precision %{y:.3f}")
    return {"data": [traces.reference([0, 1], [prevalence] * 2, "prevalence"), *drawn], "layout": layout}


def f_by_threshold(curves: Curves, metric: str, threshold: float, in_sample: float, cross_fitted: Cell) -> Figure:
    """F by threshold, and the two scores of the tuned threshold unless no probability reaches it."""
    data = curves.traces(f"{metric} %{{y:.4f}}<br>at threshold %{{customdata}}")
    data[-1]["customdata"] = traces.numbers(curves.pooled[:, 0] ** 2, 4)
    if threshold <= 1:
        x = float(np.sqrt(threshold))
        ends = traces.values_and_ends([cross_fitted])
        data += [
            traces.reference([x, x], [0, 1], "threshold"),
            {
                **traces.dots([x], [in_sample], "in-sample", "circle-open", "strong", 10),
                "hovertemplate": f"{metric} {in_sample:.4f} in-sample<extra></extra>",
            },
            {
                **traces.dots([x], ends[0], "cross-fitted", "diamond", "strong", 10),
                "error_y": traces.error_bars(ends),
                "hovertemplate": f"{metric} cross-fitted {span(cross_fitted)}<extra></extra>",
            },
        ]
    layout = {
        "xaxis": traces.square_root_axis("threshold, square-root scale", 1.0),
        "yaxis": traces.axis(metric, range=UNIT),
    }
    return {"data": data, "layout": layout}


def reliability(probability: Sequence[float], observed: Sequence[Cell], counts: Sequence[int]) -> Figure:
    """Mean probability of each bin [b] and its share of positives with the interval, on square-root axes."""
    ends = np.sqrt(traces.values_and_ends(observed))
    most = min(1.0, 1.1 * max(*probability, *np.square(ends[2]), 0.05))
    bins = {
        **traces.dots(np.sqrt(probability), ends[0], "bins of equally many slices", "circle", 1),
        "mode": "lines+markers",
        "error_y": traces.error_bars(ends),
        "text": [
            f"{count:,} slices<br>predicted {mean:.4f}<br>positive {span(cell)}"
            for count, mean, cell in zip(counts, probability, observed, strict=True)
        ],
        "hovertemplate": "%{text}<extra></extra>",
    }
    layout = {
        "xaxis": traces.square_root_axis("predicted probability, square-root scale", most),
        "yaxis": traces.square_root_axis("share of positives", most),
    }
    ideal = traces.reference([0, np.sqrt(most)], [0, np.sqrt(most)], "ideal")
    return {"data": [ideal, bins], "layout": layout}


def confusion(tp: int, fp: int, fn: int, tn: int) -> Figure:
    """Counts and their share of the row. The share gives the shade, so that rare classes are visible."""
    counts = np.array([[tp, fn], [fp, tn]])
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    words = [["true positive", "false negative"], ["false positive", "true negative"]]
    text = [[f"{words[r][c]}<br>{counts[r, c]:,}<br>{share[r, c]:.1%}" for c in (0, 1)] for r in (0, 1)]
    columns, rows = ([f"{word}<br>{label}" for label in ("positive", "negative")] for word in ("predicted", "labelled"))
    figure = traces.heat(share, columns, rows, text, (0, 1), text)
    figure["layout"]["height"] = 300
    return figure


# ---- models


def learning(histories: Mapping[int, History], panels: Mapping[str, str], kept: str | None) -> Figure:
    """The history of each fold by epoch, one plot per column of `panels`, which gives the titles.

    kept: the column whose best epoch was kept; None if the last epoch was kept.
    """
    data: list[Trace] = []
    layout: dict[str, Any] = {
        "height": 110 + 170 * len(panels),
        "grid": {"rows": len(panels), "columns": 1, "pattern": "independent", "ygap": 0.25},
    }
    longest = max(map(len, histories.values()))
    for place, (column, title) in enumerate(panels.items()):
        number = "" if place == 0 else str(place + 1)
        axes = {"xaxis": f"x{number}", "yaxis": f"y{number}"}
        below = "epoch" if place == len(panels) - 1 else ""
        layout[f"xaxis{number}"] = traces.axis(below, dtick=-(-longest // 10), range=[0.5, longest + 0.5])
        layout[f"yaxis{number}"] = traces.axis(plain(title))
        for k, history in histories.items():
            epochs, values = [row["epoch"] + 1 for row in history], [row[column] for row in history]
            drawn = traces.line(epochs, values, f"fold {k}", k % HUES + 1)
            drawn["line"]["dash"] = DASHES[k % len(DASHES)]
            drawn |= {"mode": "lines+markers", "marker": {"size": 6, "symbol": SYMBOLS[k % len(SYMBOLS)]}, **axes}
            drawn |= {"legendgroup": f"fold {k}", "showlegend": place == 0}
            data.append({**drawn, "hovertemplate": "epoch %{x}: %{y:.4f}<extra>%{fullData.name}</extra>"})
        if column == kept:
            best = [history[best_epoch(history, column)] for history in histories.values()]
            dots = ([row["epoch"] + 1 for row in best], [row[column] for row in best])
            data.append({**traces.dots(*dots, "epoch kept", "circle-open", "strong", 13), **axes})
    return {"data": data, "layout": layout}


def best_epoch(history: History, column: str) -> int:
    """The first of the best epochs, as in training: the lowest loss, or the highest of any other score."""
    values = [row[column] for row in history]
    return values.index(min(values) if column.endswith("loss") else max(values))


def correlation(matrix: NDArray[np.float64], models: Sequence[str]) -> Figure:
    """Correlations [m, m] of models; NaN where undefined."""
    known, words = matrix[np.isfinite(matrix)], [plain(name) for name in models]
    low = float(min(0.9, np.floor(10 * known.min()) / 10)) if known.size else 0.0
    text = [[f"{value:.2f}" if np.isfinite(value) else "-" for value in row] for row in matrix]
    hover = [[f"{a} and {b}: {r}" for b, r in zip(words, row, strict=True)] for a, row in zip(words, text, strict=True)]
    return traces.heat(matrix, words, words, text, (low, 1.0), hover)


def weights(by_fold: NDArray[np.float64], models: Sequence[str], classes: Sequence[str]) -> Figure:
    """Blend weights [folds, models, classes]: the mean over folds in the cells, each fold's when hovering."""
    models, classes = [plain(name) for name in models], [plain(name) for name in classes]
    mean = by_fold.mean(axis=0)
    text = [[f"{value:.2f}" for value in row] for row in mean]
    hover = [
        [
            f"{model}, {name}<br>" + ", ".join(f"fold {k} {one:.2f}" for k, one in enumerate(by_fold[:, m, c]))
            for c, name in enumerate(classes)
        ]
        for m, model in enumerate(models)
    ]
    return traces.heat(mean, classes, models, text, (0, 1), hover)


# ---- the embedding map


def map_by_group(
    points: NDArray[np.float64], groups: Sequence[str], order: Sequence[str], texts: Sequence[str]
) -> Figure:
    """Points [n, 2] coloured by group, the first of `order` in grey below the others; texts [n] when hovering."""
    data: list[Trace] = []
    for place, name in enumerate(order):
        rows = np.flatnonzero(np.asarray(groups) == name)
        colour = "muted" if place == 0 else (place - 1) % HUES + 1
        title, symbol = f"{plain(name)} ({len(rows):,})", SYMBOLS[place % len(SYMBOLS)]
        drawn = traces.dots(points[rows, 0], points[rows, 1], title, symbol, colour, 6)
        drawn |= {"text": [plain(texts[row]) for row in rows.tolist()]}
        data.append({**drawn, "hovertemplate": "%{text}<extra>%{fullData.name}</extra>"})
    return {"data": data, "layout": _map_layout()}


def map_by_value(points: NDArray[np.float64], values: ArrayLike, scale: str, texts: Sequence[str]) -> Figure:
    """Points [n, 2] shaded by a number, with the title `scale` of the colour bar; texts [n] when hovering."""
    drawn = traces.dots(points[:, 0], points[:, 1], plain(scale), "circle", 1, 6)
    bar = {"title": {"text": plain(scale), "side": "right"}}
    drawn["marker"] |= {"color": traces.numbers(values, 4), "showscale": True, "colorbar": bar}
    drawn |= {"meta": {"scale": "sequential"}, "text": [plain(text) for text in texts]}
    drawn |= {"hovertemplate": "%{text}<extra></extra>"}
    return {"data": [drawn], "layout": {**_map_layout(), "showlegend": False}}


def _map_layout() -> dict[str, Any]:
    bare = {"showticklabels": False, "showgrid": False, "ticks": ""}
    return {"xaxis": bare, "yaxis": {**bare, "scaleanchor": "x"}, "height": 480}
