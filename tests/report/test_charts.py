"""The charts of the page: values computed in another way, validity for plotly, and escaped names."""

import json
import math
import re
from collections.abc import Iterator

import numpy as np
import plotly.graph_objects as go
import pytest
from sklearn.metrics import fbeta_score, roc_auc_score

from ich.ensemble.metrics import operating_points
from ich.report.page import charts, curves

HOSTILE = '<img src=x onerror=alert(1)> & <b>"bold"</b>'


def drawn(n: int, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Labels and probabilities, by falling probability."""
    random = np.random.default_rng(0)
    y = (random.random(n) < share).astype(float)
    p = 1 / (1 + np.exp(3 - 2 * y - random.normal(size=n)))
    return y[np.argsort(-p)], np.sort(p)[::-1]


def test_curves_of_four_slices_match_those_by_hand():
    steps = operating_points(np.array([1, 0, 1, 0.0]), np.array([0.9, 0.64, 0.36, 0.04]))
    np.testing.assert_allclose(curves.roc(*steps), [[0, 0], [0, 0.5], [0.5, 0.5], [0.5, 1], [1, 1]])
    np.testing.assert_allclose(curves.precision_recall(*steps), [[0.5, 1], [0.5, 0.5], [1, 2 / 3], [1, 0.5]])
    found = curves.f_by_threshold(*steps, beta=1)
    at = [1, math.sqrt(0.9), math.sqrt(0.9), 0.8, 0.8, 0.6, 0.6, 0.2, 0.2, 0]
    np.testing.assert_allclose(found[:, 0], at)
    np.testing.assert_allclose(found[:, 1], [0, 0, 2 / 3, 2 / 3, 0.5, 0.5, 0.8, 0.8, 2 / 3, 2 / 3])


@pytest.mark.parametrize(("n", "share"), [(40, 0.5), (2000, 0.05), (60_000, 0.004), (60_000, 0.3)])
def test_thinned_curves_keep_the_auc_and_the_maximum_of_f(n, share):
    y, p = drawn(n, share)
    steps = operating_points(y, p)
    roc, f = curves.roc(*steps), curves.f_by_threshold(*steps, beta=2)
    assert max(len(roc), len(f)) <= curves.MOST
    assert (roc[[0, -1]] == [[0, 0], [1, 1]]).all()
    assert np.trapezoid(roc[:, 1], roc[:, 0]) == pytest.approx(roc_auc_score(y, p), abs=1e-3)
    best = f[f[:, 1].argmax()]
    assert best[1] == pytest.approx(fbeta_score(y, p >= best[0] ** 2 - 1e-12, beta=2), abs=1e-9)
    assert best[1] >= max(fbeta_score(y, p >= t, beta=2) for t in np.quantile(p, np.linspace(0, 1, 50)))


# ---- figures


def cell(value: float | None, half: float = 0.1) -> dict[str, float | None]:
    low, high = (None, None) if value is None else (value - half, value + half)
    return {"value": value, "low": low, "high": high}


POINTS = np.array([[0, 0.1], [0.4, 0.8], [1, 1]])
CURVES = charts.Curves(POINTS, [POINTS, POINTS[:2]])


HISTORY = [{"epoch": e, "loss": 1 / (e + 1), "valid_loss": 0.5, "inner_f1": 0.1 * e} for e in (0.0, 1.0, 2.0)]
FIGURES = {
    "scores": lambda: charts.scores({"out of fold": [cell(0.1), cell(None), cell(0.2)]}, [HOSTILE, "a", "blend"], "F2"),
    "roc": lambda: charts.roc(CURVES),
    "precision_recall": lambda: charts.precision_recall(CURVES, 0.1),
    "f": lambda: charts.f_by_threshold(CURVES, "F2", 0.2, 0.7, cell(0.6)),
    "f, never": lambda: charts.f_by_threshold(CURVES, "F2", 2.0, 0.0, cell(0.0)),
    "f, unknown": lambda: charts.f_by_threshold(CURVES, "F2", 0.2, 0.7, cell(None)),
    "reliability": lambda: charts.reliability([0.01, 0.2], [cell(0.0, 0), cell(0.3)], [10, 9]),
    "reliability, one bin": lambda: charts.reliability([0.0], [cell(0.0, 0)], [10]),
    "confusion": lambda: charts.confusion(5, 10, 1, 1000),
    "confusion, empty": lambda: charts.confusion(0, 0, 3, 0),
    "learning": lambda: charts.learning({0: HISTORY, 1: HISTORY[:1]}, {"loss": HOSTILE, "inner_f1": "F1"}, "inner_f1"),
    "correlation": lambda: charts.correlation(np.array([[1, np.nan], [np.nan, np.nan]]), [HOSTILE, "b"]),
    "correlation, unknown": lambda: charts.correlation(np.array([[np.nan]]), [HOSTILE]),
    "weights": lambda: charts.weights(np.full((2, 3, 1), 1 / 3), [HOSTILE, "1e3", "2020-01-01"], [HOSTILE]),
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


def test_the_tuned_threshold_is_marked_at_its_square_root_with_both_scores():
    marks = {trace["name"]: trace for trace in FIGURES["f"]()["data"]}
    assert marks["in-sample"]["x"] == marks["cross-fitted"]["x"] == [pytest.approx(math.sqrt(0.2), abs=1e-6)]
    assert (marks["in-sample"]["y"], marks["cross-fitted"]["y"]) == ([0.7], [0.6])
    assert marks["cross-fitted"]["error_y"]["array"] == marks["cross-fitted"]["error_y"]["arrayminus"] == [0.1]
    assert [trace["name"] for trace in FIGURES["f, never"]()["data"]] == ["each fold", "each fold", "all folds"]


def test_reliability_bins_and_intervals_are_square_roots():
    bins = FIGURES["reliability"]()["data"][-1]
    assert bins["x"] == pytest.approx([0.1, math.sqrt(0.2)], abs=1e-6)
    top, bottom = (bins["y"][1] + bins["error_y"]["array"][1], bins["y"][1] - bins["error_y"]["arrayminus"][1])
    assert (top**2, bottom**2) == pytest.approx((0.4, 0.2), abs=1e-5)
    assert bins["text"][1] == "9 slices<br>predicted 0.2000<br>positive 0.3000 0.2000-0.4000"


def test_heat_maps_show_counts_with_row_shares_and_mean_weights():
    (cells,) = FIGURES["confusion"]()["data"]
    assert cells["text"][0] == ["true positive<br>5<br>83.3%", "false negative<br>1<br>16.7%"]
    assert cells["text"][1] == ["false positive<br>10<br>1.0%", "true negative<br>1,000<br>99.0%"]
    by_fold = np.array([[[0.2], [0.8]], [[0.4], [0.6]]])
    (cells,) = charts.weights(by_fold, ["a", "b"], ["any"])["data"]
    assert cells["text"] == [["0.30"], ["0.70"]]
    assert cells["customdata"][0] == ["a, any<br>fold 0 0.20, fold 1 0.40"]


def test_scores_have_intervals_and_the_blend_is_highlighted():
    reference, others, blend = FIGURES["scores"]()["data"]
    assert (others["x"], blend["x"]) == ([0.1, None], [0.2])
    assert reference["x"] == [0.2, 0.2]
    assert blend["error_x"]["array"] == [0.1]
    assert blend["meta"] == {"color": "strong"}
    assert blend["text"] == ["0.2000 0.1000-0.3000"]


def test_the_best_epoch_has_the_lowest_loss_or_the_highest_score():
    assert charts.best_epoch(HISTORY, "loss") == 2
    assert charts.best_epoch(HISTORY, "valid_loss") == 0  # the first of equals
    assert charts.best_epoch(HISTORY, "inner_f1") == 2
    (kept,) = [trace for trace in FIGURES["learning"]()["data"] if trace["name"] == "epoch kept"]
    assert (kept["x"], kept["y"], kept["yaxis"]) == ([3, 1], [0.2, 0], "y2")
