"""Every figure of the page: values computed in another way, validity for plotly, and escaped names."""

import json
import math
import re
from collections.abc import Iterator

import numpy as np
import plotly.graph_objects as go
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import fbeta_score, roc_auc_score

from ich.report.page import charts, curves, traces

HOSTILE = '<img src=x onerror=alert(1)> & <b>"bold"</b>'


def steps(y: np.ndarray, p: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Score, predicted and true of each threshold, by counting."""
    scores = np.unique(p)[::-1]
    return scores, np.array([(p >= t).sum() for t in scores]), np.array([y[p >= t].sum() for t in scores])


def drawn(n: int, share: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    y = (random.random(n) < share).astype(float)
    return y, 1 / (1 + np.exp(3 - 2 * y - random.normal(size=n)))


def distance(points: np.ndarray, line: np.ndarray) -> float:
    """The largest distance of the points from the line, by looking at every stretch of it."""
    worst = 0.0
    for point in points:
        a, b = line[:-1], line[1:]
        along = b - a
        length = np.maximum((along**2).sum(axis=1), 1e-30)
        at = np.clip(((point - a) * along).sum(axis=1) / length, 0, 1)
        worst = max(worst, float(np.sqrt((((a + at[:, None] * along) - point) ** 2).sum(axis=1)).min()))
    return worst


def test_the_curves_of_four_slices_are_those_drawn_by_hand():
    y, p = np.array([1, 0, 1, 0.0]), np.array([0.9, 0.64, 0.36, 0.04])
    _, predicted, true = steps(y, p)
    np.testing.assert_allclose(curves.roc(predicted, true), [[0, 0], [0, 0.5], [0.5, 0.5], [0.5, 1], [1, 1]])
    np.testing.assert_allclose(curves.precision_recall(predicted, true), [[0.5, 1], [0.5, 0.5], [1, 2 / 3], [1, 0.5]])
    f1 = np.array([2 / 3, 0.5, 0.8, 2 / 3])
    found = curves.by_threshold(p, f1)
    at = [1, math.sqrt(0.9), math.sqrt(0.9), 0.8, 0.8, 0.6, 0.6, 0.2, 0.2, 0]
    np.testing.assert_allclose(found[:, 0], at)
    np.testing.assert_allclose(found[:, 1], [0, 0, 2 / 3, 2 / 3, 0.5, 0.5, 0.8, 0.8, 2 / 3, 2 / 3])


@pytest.mark.parametrize(("n", "share"), [(40, 0.5), (2000, 0.05), (60_000, 0.004), (60_000, 0.3)])
def test_the_area_below_the_thinned_roc_curve_is_the_auc(n, share):
    y, p = drawn(n, share)
    order = np.argsort(-p)
    points = curves.roc(np.arange(1, n + 1), np.cumsum(y[order]))
    assert len(points) <= curves.MOST
    assert np.trapezoid(points[:, 1], points[:, 0]) == pytest.approx(roc_auc_score(y, p), abs=1e-3)


def test_the_top_of_the_f_curve_is_the_best_f_of_all_thresholds():
    y, p = drawn(5000, 0.03)
    scores, predicted, true = steps(y, p)
    values = 5 * true / (4 * y.sum() + predicted)
    points = curves.by_threshold(scores, values, 50)
    assert len(points) <= 50
    best = max(fbeta_score(y, p >= t, beta=2) for t in scores[::100])
    assert points[:, 1].max() == values.max() >= best
    top = points[points[:, 1].argmax(), 0] ** 2
    assert fbeta_score(y, p >= top - 1e-12, beta=2) == pytest.approx(values.max(), abs=1e-12)
    assert curves.by_threshold([0.9, 0.5, 0.1], [0.5, 0.5002, 0.5])[:, 1].max() == 0.5002  # even a tiny peak is kept


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=40), st.integers(2, 60))
def test_a_thinned_line_keeps_its_ends_and_stays_close(points, most):
    line = np.array(points)
    thin = curves.thinned(line, most)
    assert len(thin) <= most
    assert (thin[[0, -1]] == line[[0, -1]]).all()
    assert {tuple(point) for point in thin} <= {tuple(point) for point in line}
    if len(thin) < most:
        assert distance(line, thin) < 2 * curves.ALIKE


# ---- figures


def cell(value: float | None, half: float = 0.1) -> dict[str, float | None]:
    low, high = (None, None) if value is None else (value - half, value + half)
    return {"value": value, "low": low, "high": high}


def line() -> charts.Curves:
    points = np.array([[0, 0.1], [0.4, 0.8], [1, 1]])
    return charts.Curves(points, {0: points, 2: points[:2]})


HISTORY = [{"epoch": e, "loss": 1 / (e + 1), "valid_loss": 0.5, "inner_f1": 0.1 * e} for e in (0.0, 1.0, 2.0)]
FIGURES = {
    "roc": lambda: charts.roc(line(), "AUC 0.9"),
    "precision_recall": lambda: charts.precision_recall(line(), 0.1, "AP 0.3"),
    "f": lambda: charts.f_by_threshold(line(), "F2", 0.2, 0.7, cell(0.6)),
    "f, never": lambda: charts.f_by_threshold(line(), "F2", 2.0, 0.0, cell(0.0)),
    "f, unknown": lambda: charts.f_by_threshold(line(), "F2", 0.2, 0.7, cell(None)),
    "reliability": lambda: charts.reliability([0.01, 0.2], [cell(0.0, 0), cell(0.3)], [10, 9], "error 0.1"),
    "reliability, one bin": lambda: charts.reliability([0.0], [cell(0.0, 0)], [10], "error 0.1"),
    "confusion": lambda: charts.confusion(5, 10, 1, 1000),
    "confusion, empty": lambda: charts.confusion(0, 0, 3, 0),
    "four": lambda: charts.four({"a": 0.5, "b": None}, {0: {"a": 0.4, "b": None}, 1: {"a": None, "b": 0.1}}),
    "learning": lambda: charts.learning({0: HISTORY, 1: HISTORY[:1]}, {"loss": HOSTILE, "inner_f1": "F1"}, "inner_f1"),
    "correlation": lambda: charts.correlation(np.array([[1, np.nan], [np.nan, np.nan]]), [HOSTILE, "b"]),
    "correlation, unknown": lambda: charts.correlation(np.array([[np.nan]]), [HOSTILE]),
    "weights": lambda: charts.weights(np.full((2, 3, 1), 1 / 3), [0, 1], [HOSTILE, "1e3", "2020-01-01"], [HOSTILE]),
    "gains": lambda: charts.gains([HOSTILE, "b"], {HOSTILE: {"out of fold": [cell(0.1), cell(None)]}, "AUC": {}}),
    "map of groups": lambda: charts.map_by_group(np.eye(2), [HOSTILE, "b"], ["b", HOSTILE], [HOSTILE, HOSTILE]),
    "map of values": lambda: charts.map_by_value(np.eye(2), [0.5, 1.0], HOSTILE, [HOSTILE, HOSTILE]),
}


def strings(part: object) -> Iterator[str]:
    if isinstance(part, str):
        yield part
    elif isinstance(part, dict | list | tuple):
        for value in part.values() if isinstance(part, dict) else part:
            yield from strings(value)


@pytest.mark.parametrize("name", FIGURES)
def test_each_figure_is_valid_for_plotly_and_json_and_escapes_names(name):
    figure = FIGURES[name]()
    go.Figure(figure)  # raises for unknown properties and invalid values
    again = json.loads(json.dumps(figure, allow_nan=False))
    assert again["data"]
    assert "color" not in {key for trace in again["data"] for key in (*trace, *trace.get("line", ()))}
    text = re.sub("<br>|</?extra>", "", " ".join(strings(figure)))
    assert not {"<", ">"} & set(text)
    if "onerror" in text:
        assert "&lt;img src=x onerror=alert(1)&gt; &amp;" in text


def test_names_that_look_like_numbers_or_dates_stay_names():
    axis = FIGURES["weights"]()["layout"]["yaxis"]
    assert axis["tickvals"] == [0, 1, 2]
    assert axis["ticktext"][1:] == ["1e3", "2020-01-01"]


def test_the_chosen_threshold_is_marked_at_its_square_root_with_both_scores():
    marks = {trace["name"]: trace for trace in FIGURES["f"]()["data"]}
    assert marks["in-sample"]["x"] == marks["cross-fitted"]["x"] == [pytest.approx(math.sqrt(0.2), abs=1e-6)]
    assert (marks["in-sample"]["y"], marks["cross-fitted"]["y"]) == ([0.7], [0.6])
    assert marks["cross-fitted"]["error_y"]["array"] == marks["cross-fitted"]["error_y"]["arrayminus"] == [0.1]
    assert [trace["name"] for trace in FIGURES["f, never"]()["data"]] == ["each fold", "each fold", "all folds"]


def test_bins_stand_at_square_roots_with_intervals_that_end_where_they_should():
    bins = FIGURES["reliability"]()["data"][-1]
    assert bins["x"] == pytest.approx([0.1, math.sqrt(0.2)], abs=1e-6)
    top, bottom = (bins["y"][1] + bins["error_y"]["array"][1], bins["y"][1] - bins["error_y"]["arrayminus"][1])
    assert (top**2, bottom**2) == pytest.approx((0.4, 0.2), abs=1e-5)
    assert bins["text"][1] == "9 slices<br>predicted 0.2000<br>positive 0.3000 0.2000-0.4000"


def test_cells_hold_counts_with_shares_of_their_row_and_mean_weights_over_folds():
    (cells,) = FIGURES["confusion"]()["data"]
    assert cells["text"][0] == ["true positive<br>5<br>83.3%", "false negative<br>1<br>16.7%"]
    assert cells["text"][1] == ["false positive<br>10<br>1.0%", "true negative<br>1,000<br>99.0%"]
    by_fold = np.array([[[0.2], [0.8]], [[0.4], [0.6]]])
    (cells,) = charts.weights(by_fold, [0, 1], ["a", "b"], ["any"])["data"]
    assert cells["text"] == [["0.30"], ["0.70"]]
    assert cells["customdata"][0] == ["a, any<br>fold 0 0.20, fold 1 0.40"]


def test_the_best_epoch_has_the_lowest_loss_or_the_highest_score():
    assert charts.best_epoch(HISTORY, "loss") == 2
    assert charts.best_epoch(HISTORY, "valid_loss") == 0  # the first of equals
    assert charts.best_epoch(HISTORY, "inner_f1") == 2
    (kept,) = [trace for trace in FIGURES["learning"]()["data"] if trace["name"] == "epoch kept"]
    assert (kept["x"], kept["y"], kept["yaxis"]) == ([3, 1], [0.2, 0], "y2")


def test_stacked_plots_do_not_overlap():
    layout: dict = {}
    names = [traces.stacked(layout, place, 3, 0.1) for place in range(3)]
    assert names == [("x", "y"), ("x2", "y2"), ("x3", "y3")]
    ends = [end for name in ("yaxis3", "yaxis2", "yaxis") for end in layout[name]["domain"]]
    assert ends == sorted(ends)
    assert (ends[0], ends[-1]) == (0, 1)
