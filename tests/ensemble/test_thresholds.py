import itertools
import json
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import fbeta_score

from ich.ensemble import metrics, thresholds
from ich.ensemble.intervals import Bootstrap
from ich.ensemble.predictions import sigmoid
from ich.ensemble.thresholds import Goal, tune
from ich.ensemble.thresholds.search import Search

CLASSES = ["epidural", "subdural", "any"]
BETAS = st.sampled_from([0.5, 1.0, 1.5, 2.0, 3.0])  # whose squares are exact
RECALLS = st.sampled_from([0.0, 0.3, 0.5, 0.95, 1.0])


@st.composite
def tables(draw, rows=25, classes=1):
    """Labels and probabilities [n, c], ends and ties included, at least one row."""
    n = draw(st.integers(1, rows))
    grid = st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0])
    y = [draw(st.lists(st.sampled_from([0.0, 1.0]), min_size=n, max_size=n)) for _ in range(classes)]
    p = [draw(st.lists(st.one_of(grid, st.floats(0, 1)), min_size=n, max_size=n)) for _ in range(classes)]
    return np.array(y).T, np.array(p).T


def simulated(seed, n=400, prevalence=(0.05, 0.2, 0.3)):
    rng = np.random.default_rng(seed)
    y = (rng.random((n, 3)) < prevalence).astype(float)
    return y, sigmoid(rng.normal(0, 1, (n, 3)) + 2 * y - 2), np.arange(n) % 4


def every_decision(y, p, recall=0.0):
    """Decisions [n] of all thresholds of the probabilities p [n] with this recall.

    A class without positives is never predicted.
    """
    if not y.any():
        return [np.zeros(len(p), dtype=bool)]
    all_ = [p >= value for value in np.unique(p)] + [np.zeros(len(p), dtype=bool)]
    return [one for one in all_ if y[one].sum() / y.sum() >= recall]


def f_in_fractions(y, decided, beta, average, zero_division=0):
    """F-beta [n, c] in exact arithmetic, from the definition."""

    def one(true, predicted, actual):
        below = Fraction(beta) ** 2 * int(actual) + int(predicted)
        return (1 + Fraction(beta) ** 2) * int(true) / below if below else Fraction(zero_division)

    axis = 1 if average == "samples" else 0
    counts = [(y * decided).sum(axis=axis), decided.sum(axis=axis), y.sum(axis=axis)]
    if average == "micro":
        return one(*(count.sum() for count in counts))
    parts = [one(*count) for count in zip(*counts, strict=True)]
    return sum(parts) / len(parts)


def best_of_all(y, p, goal):
    options = [every_decision(y[:, c], p[:, c], goal.recall(c)) for c in range(y.shape[1])]
    return max(
        f_in_fractions(y, np.stack(columns, axis=1), goal.beta, goal.average, goal.zero_division)
        for columns in itertools.product(*options)
    )


def of(tuned):
    return list(tuned.thresholds.values())


# ---- the exact optimum


@given(tables(), BETAS, RECALLS, st.sampled_from([0, 1]))
def test_the_macro_optimum_equals_brute_force(table, beta, recall, zero_division):
    y, p = table
    goal = Goal(beta, "macro", zero_division, (recall,))
    tuned = tune(y, p, ["a"], goal)
    decided = thresholds.apply(p, of(tuned))
    assert f_in_fractions(y, decided, beta, "macro", zero_division) == best_of_all(y, p, goal)
    assert tuned.score == tuned.exact == pytest.approx(float(best_of_all(y, p, goal)), abs=1e-15)
    assert all(0 <= threshold <= 1 or threshold == thresholds.NEVER for threshold in of(tuned))


@settings(max_examples=60)
@given(
    st.one_of(tables(rows=7, classes=2), tables(rows=6, classes=3)), BETAS, RECALLS, RECALLS, st.sampled_from([0, 1])
)
def test_the_micro_optimum_equals_brute_force(table, beta, first, second, zero_division):
    y, p = table
    goal = Goal(beta, "micro", zero_division, (first, second, first)[: y.shape[1]])
    tuned = tune(y, p, CLASSES[: y.shape[1]], goal)
    best = best_of_all(y, p, goal)
    assert f_in_fractions(y, thresholds.apply(p, of(tuned)), beta, "micro", zero_division) == best
    assert tuned.exact == pytest.approx(float(best), abs=1e-15)


@pytest.mark.parametrize("zero_division", [0, 1])
@pytest.mark.parametrize("average", ["macro", "micro", "samples"])
def test_the_score_equals_scikit_learns(average, zero_division):
    y, p, _ = simulated(1)
    y[:, 1] = 0
    goal = Goal(2.0, average, zero_division)
    tuned = tune(y, p, CLASSES, goal, search=Search(20, 3))
    found = fbeta_score(y, p >= np.array(of(tuned)), beta=2, average=average, zero_division=zero_division)
    assert (tuned.score, tuned.score_cross_fitted) == (pytest.approx(found), None)


# ---- the middle of the plateau, by hand


def middle(y, p, beta=1.0):
    return thresholds.exact(y, p, beta)[0]


def test_a_threshold_is_midway_between_the_two_probabilities_around_it():
    assert middle([0, 0, 1, 1], [0.1, 0.2, 0.6, 0.9]) == pytest.approx(0.4)
    assert middle([1, 1], [0.5, 0.8]) == pytest.approx(0.25)
    tuned = tune([[0.0], [0.0], [1.0], [1.0]], [[0.1], [0.2], [0.6], [0.9]], ["any"], Goal(1.0), search=Search(10, 0))
    assert tuned.thresholds["any"] == pytest.approx(0.4)
    assert thresholds.exact([1, 1, 0], [1.0, 1.0, 0.0], 1.0) == (0.5, 1.0)
    for low in (0.3, np.nextafter(0.3, 1)):  # whose midpoints with the next number round up and down
        threshold, score = thresholds.exact([0, 1], [low, np.nextafter(low, 1)], 1)
        assert (score, low < threshold <= np.nextafter(low, 1)) == (1, True)


def test_adjacent_operating_points_with_the_same_score_are_one_plateau():
    """1 of 1 predicted: F1 = 2 / 3. The three rows at 0.5 with their one positive: 2 * 2 / (2 + 4) = 2 / 3 as well."""
    assert middle([1, 0, 1, 0, 0], [0.9, 0.5, 0.5, 0.5, 0.1]) == pytest.approx(0.5)  # 0.1 to 0.9


@pytest.mark.parametrize(
    ("p", "threshold"),
    [([0.9, 0.8, 0.5, 0.4], 0.2), ([0.9, 0.3, 0.25, 0.2], 0.6)],  # 0 to 0.4 against 0.8 to 0.9; 0.3 to 0.9, 0 to 0.2
)
def test_the_wider_of_two_plateaus_is_taken(p, threshold):
    """Labels 1, 0, 0, 1: one predicted, F1 = 2 / 3; all four, 4 / 6; with two and three it is lower."""
    assert middle([1, 0, 0, 1], p) == pytest.approx(threshold)


def test_plateaus_of_the_micro_score_by_hand():
    """Class a is perfect alone; b adds 2 true and 2 false positives at once, or not: (2 * 4) / (4 + 6) = 4 / 5;
    without b, 2 * 2 / (4 + 2) = 2 / 3. So b is cut between 0.3 and 0.1."""
    y = np.array([[1, 1], [1, 1], [0, 0], [0, 0], [0, 0]], dtype=float)
    p = np.array([[0.9, 0.3], [0.8, 0.3], [0.2, 0.3], [0.1, 0.3], [0.1, 0.1]])
    tuned = tune(y, p, ["a", "b"], Goal(1.0, "micro"))
    assert tuned.exact == pytest.approx(4 / 5)
    assert of(tuned) == pytest.approx([0.5, 0.2])


# ---- Optuna


@pytest.mark.parametrize(
    ("average", "shrink", "recall"),
    [("macro", 0.0, 0.0), ("macro", 30.0, 0.9), ("micro", 0.0, 0.9), ("samples", 0.0, 0.0)],
)
def test_two_hundred_trials_nearly_reach_the_exact_optimum(average, shrink, recall):
    y, p, _ = simulated(0, n=3000)
    tuned = tune(y, p, CLASSES, Goal(2.0, average, 0, (recall,) * 3, shrink), search=Search(200, 3))
    assert metrics.confusion(y, thresholds.apply(p, of(tuned)))["recall"].min() >= recall
    assert -1e-12 <= tuned.gap <= 5e-4
    assert shrink or tuned.gap == pytest.approx(tuned.exact - tuned.score, abs=1e-12)


# ---- cross-fitting


@pytest.mark.parametrize("average", ["macro", "micro", "samples"])
def test_cross_fitted_decisions_use_the_thresholds_of_the_other_folds(average):
    y, p, fold = simulated(2)
    goal = Goal(1.0, average, 0, (0.5, 0.5, 0.5))
    tuned = tune(y, p, CLASSES, goal, fold=fold)
    decided = np.zeros(y.shape, dtype=bool)
    for k in range(4):
        rest = fold != k
        decided[~rest] = thresholds.apply(p[~rest], of(tune(y[rest], p[rest], CLASSES, goal)))
    np.testing.assert_array_equal(tuned.decided, decided)
    assert tuned.score_cross_fitted == pytest.approx(fbeta_score(y, decided, beta=1, average=average, zero_division=0))


# ---- degenerate classes


@pytest.mark.parametrize("zero_division", [0, 1])
@pytest.mark.parametrize("average", ["macro", "micro", "samples"])
def test_a_class_without_positives_is_never_predicted(average, zero_division):
    y, p, fold = simulated(3)
    y[:, 0], p[0, 0] = 0, 1.0
    tuned = tune(y, p, CLASSES, Goal(1.0, average, zero_division, (0.5, 0, 0)), search=Search(10, 0), fold=fold)
    assert tuned.thresholds["epidural"] == tuned.thresholds_exact["epidural"] == thresholds.NEVER
    assert not thresholds.apply(p, of(tuned))[:, 0].any()
    assert any(w.startswith("epidural: no positive row") for w in tuned.warnings)
    assert json.loads(json.dumps(tuned.thresholds)) == tuned.thresholds
    nothing = tune(np.zeros((5, 3)), np.ones((5, 3)), CLASSES, Goal(2.0, average, zero_division), search=Search(5, 0))
    assert (nothing.score, nothing.exact, set(of(nothing))) == (zero_division, zero_division, {thresholds.NEVER})


@pytest.mark.parametrize("value", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("average", ["macro", "micro", "samples"])
def test_constant_and_all_positive_classes_warn(average, value):
    y, p, _ = simulated(4)
    p[:, 1], y[:, 2] = value, 1
    for search in (None, Search(8, 0)):
        tuned = tune(y, p, CLASSES, Goal(1.0, average), search=search)
        decided = thresholds.apply(p, of(tuned))
        assert len(set(decided[:, 1])) == 1
        assert decided[:, 2].all()
        assert any(w.startswith("subdural: all rows have the same probability") for w in tuned.warnings)
        assert any(w.startswith("any: every row is positive") for w in tuned.warnings)
        if average == "macro":
            assert tuned.thresholds["subdural"] == pytest.approx(value / 2)


# ---- errors


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        *(("p", value, "probabilities of subdural .* 2 rows: 7, 11") for value in (np.nan, -0.1, 1.5)),
        *(("y", value, "labels of subdural must be 0 or 1.* 2 rows: 7, 11") for value in (np.nan, 0.5)),
    ],
)
def test_invalid_values_raise_with_class_and_row(where, value, message):
    y, p, _ = simulated(0)
    {"y": y, "p": p}[where][[7, 11], 1] = value
    with pytest.raises(ValueError, match=message):
        tune(y, p, CLASSES, Goal(1.0))


# ---- shrinkage


def test_shrinkage_mixes_labels_with_probabilities():
    """Two of four rows are positive, shrink 2: each row counts as (y + p) / 2 of a positive, 2.15 / 2 + 1 in all."""
    y, p = np.array([[1.0], [0.0], [1.0], [0.0]]), np.array([[0.9], [0.8], [0.3], [0.15]])
    soft = (y + p)[:, 0] / 2
    values = [2 * soft[: k + 1].sum() / (soft.sum() + k + 1) for k in range(4)]
    tuned = tune(y, p, ["a"], Goal(1.0, shrink=2.0))
    assert tuned.exact == pytest.approx(max(values))
    assert tuned.thresholds["a"] == pytest.approx((p[np.argmax(values), 0] + p[np.argmax(values) + 1, 0]) / 2)
    assert tuned.score == pytest.approx(fbeta_score(y, p >= tuned.thresholds["a"], beta=1))  # of the labels


def test_shrinkage_at_another_prevalence():
    """Rows [n] that are p of a positive; positives weigh 0.3, negatives 1.1, and F1 is that of the weights."""
    random = np.random.default_rng(1)
    p = random.beta(0.5, 2, 3000)
    y, (gain, cost) = (random.random(3000) < p).astype(float), (0.3, 1.1)
    positive, weight = gain * p, gain * p + cost * (1 - p)
    there, order = positive / weight, np.argsort(-p)
    values = 2 * np.cumsum(positive[order]) / (positive.sum() + np.cumsum(weight[order]))
    best = int(values.argmax())
    [found] = thresholds.exact_all(y[:, None], there[:, None], Goal(1.0, shrink=1e12), [(gain, cost)])
    assert found == pytest.approx(there[order][best : best + 2].mean())


# ---- rows, factors, intervals


def test_the_order_of_rows_does_not_matter():
    y, p, fold = simulated(6)
    shuffled = np.random.default_rng(0).permutation(len(y))
    for average in ("macro", "micro", "samples"):
        first = tune(y, p, CLASSES, Goal(2.0, average), search=Search(40, 9), fold=fold)
        second = tune(y[shuffled], p[shuffled], CLASSES, Goal(2.0, average), search=Search(40, 9), fold=fold[shuffled])
        assert first.thresholds == second.thresholds
        assert first.decided is not None
        np.testing.assert_array_equal(first.decided[shuffled], second.decided)


def test_a_row_is_positive_at_its_threshold():
    assert thresholds.apply([[0.5, 0.4]], [0.5, 0.5]).tolist() == [[True, False]]
    with pytest.raises(ValueError, match="1 row: 1"):
        thresholds.apply([[0.5], [np.nan]], [0.5])


@pytest.mark.parametrize("average", ["macro", "micro"])
def test_factors_equal_copies_of_rows(average):
    """Positives with the weight 3 and negatives with 2, as in a table with copies of them."""
    y, p, _ = simulated(7, prevalence=(0.3, 0.3, 0.3))
    y = np.repeat(y[:, :1], 3, axis=1) if average == "micro" else y
    goal = Goal(2.0, average, 0, (0.0, 0.5, 0.95))
    found = thresholds.exact_all(y, p, goal, [(3, 2)] * 3)
    copies = np.repeat(np.arange(len(y)), np.where(y[:, 0] > 0, 3, 2))
    copied = of(tune(y[copies], p[copies], CLASSES, goal))
    assert found == pytest.approx(copied if average == "micro" else [copied[0], found[1], found[2]])
    assert thresholds.exact_all(y, p, goal, [(1, 1)] * 3) == of(tune(y, p, CLASSES, goal))


@pytest.mark.parametrize("average", ["macro", "micro", "samples"])
def test_an_interval_of_rows_equals_that_of_patients_with_one_row(average):
    y, p, _ = simulated(5, n=2000)
    goal, decided = Goal(2.0, average, 1), p >= 0.3
    single = thresholds.f_interval(y, decided, goal, None)
    patients = thresholds.f_interval(y, decided, goal, Bootstrap(np.arange(len(y)), seed=3))
    assert single[0] < metrics.f_beta(y, decided, 2.0, average, 1) < single[1]
    assert single == pytest.approx(patients, abs=0.006)  # two times 1000 draws
    copies = np.tile(np.arange(2000), 4)
    clusters = thresholds.f_interval(y[copies], decided[copies], goal, Bootstrap(copies))
    assert clusters == pytest.approx(patients, abs=0.006)


def test_thresholds_are_transferred_by_the_number_of_positives():
    mean = np.array([[0.1, 0.1], [0.4, 0.2], [0.3, 0.3], [0.2, 0.4]])
    folds = [np.where(mean >= 0.4, 0.9, 0.0), np.where(mean >= 0.2, 0.9, 0.0)]
    assert thresholds.transfer([0.5, 0.5], folds, mean) == pytest.approx([0.25, 0.25])  # 1 and 3 positives: 2
    assert thresholds.transfer([thresholds.NEVER, 0.0], folds, mean) == [thresholds.NEVER, 0.0]
    assert thresholds.transfer([0.3, 0.3], [mean[:0]], mean[:0]) == [0.3, 0.3]
