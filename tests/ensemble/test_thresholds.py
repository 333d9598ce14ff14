import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import fbeta_score

from ich.ensemble import metrics, thresholds
from ich.ensemble.members import sigmoid

CLASSES = ["epidural", "subdural", "any"]


@st.composite
def columns(draw, rows=25):
    """One class's labels and probabilities, ends and ties included, at least one row."""
    n = draw(st.integers(1, rows))
    y = draw(st.lists(st.sampled_from([0.0, 1.0]), min_size=n, max_size=n))
    grid = st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0])
    p = draw(st.lists(st.one_of(grid, st.floats(0, 1)), min_size=n, max_size=n))
    return np.array(y), np.array(p)


def simulated(seed, n=400, prevalence=(0.05, 0.2, 0.3)):
    rng = np.random.default_rng(seed)
    y = (rng.random((n, 3)) < prevalence).astype(float)
    return y, sigmoid(rng.normal(0, 1, (n, 3)) + 2 * y - 2), np.arange(n) % 4


def every_decision(p):
    """All decisions [n] that some threshold makes of the probabilities p [n]."""
    return [p >= value for value in np.unique(p)] + [np.zeros(len(p), dtype=bool)]


@given(columns(), st.sampled_from([0.5, 1.0, 2.0]))
def test_the_exact_threshold_is_the_best_of_all_by_brute_force(column, beta):
    y, p = column
    threshold, score = thresholds.exact(y, p, beta)
    best = max(fbeta_score(y, decision, beta=beta, zero_division=0) for decision in every_decision(p))
    assert score == pytest.approx(best)
    assert fbeta_score(y, p >= threshold, beta=beta, zero_division=0) == pytest.approx(best)


@settings(max_examples=60)
@given(columns(rows=7), columns(rows=7), st.sampled_from([1.0, 2.0]))
def test_the_exact_micro_score_is_the_best_of_all_combinations_by_brute_force(first, second, beta):
    n = min(len(first[0]), len(second[0]))
    y = np.stack([first[0][:n], second[0][:n]], axis=1)
    p = np.stack([first[1][:n], second[1][:n]], axis=1)
    tuned = thresholds.tune(y, p, ["a", "b"], beta=beta, average="micro", trials=0, seed=0, fold=None)
    best = max(
        fbeta_score(y, np.stack(pair, axis=1), beta=beta, average="micro", zero_division=0)
        for pair in itertools.product(every_decision(p[:, 0]), every_decision(p[:, 1]))
    )
    assert tuned.exact == pytest.approx(best)
    assert tuned.score == pytest.approx(best)


@pytest.mark.parametrize("average", ["macro", "micro"])
@pytest.mark.parametrize("beta", [1, 2])
def test_two_hundred_trials_come_close_to_the_exact_optimum(average, beta):
    y, p, _ = simulated(0, n=3000)
    tuned = thresholds.tune(y, p, CLASSES, beta=beta, average=average, trials=200, seed=3, fold=None)
    assert tuned.exact - 5e-4 <= tuned.score <= tuned.exact + 1e-12


@pytest.mark.parametrize("average", ["macro", "micro"])
def test_the_score_is_what_scikit_learn_says_of_the_thresholds(average):
    y, p, _ = simulated(1)
    tuned = thresholds.tune(y, p, CLASSES, beta=2, average=average, trials=20, seed=3, fold=None)
    positive = p >= np.array([tuned.thresholds[name] for name in CLASSES])
    assert tuned.score == pytest.approx(fbeta_score(y, positive, beta=2, average=average))
    assert tuned.score_cross_fitted is None


def test_a_threshold_lies_midway_between_the_probabilities_that_it_parts():
    assert thresholds.exact([0, 0, 1, 1], [0.1, 0.2, 0.6, 0.9], 1)[0] == pytest.approx(0.4)
    assert thresholds.exact([1, 1], [0.5, 0.8], 1)[0] == pytest.approx(0.25)
    tuned = thresholds.tune(
        [[0.0], [0.0], [1.0], [1.0]],
        [[0.1], [0.2], [0.6], [0.9]],
        ["any"],
        beta=1,
        average="macro",
        trials=10,
        seed=0,
        fold=None,
    )
    assert tuned.thresholds["any"] == pytest.approx(0.4)


@pytest.mark.parametrize("low", [0.3, np.nextafter(0.3, 1)])  # midpoints of these round up and down
def test_neighbouring_floats_are_still_parted(low):
    high = np.nextafter(low, 1)
    threshold, score = thresholds.exact([0, 1], [low, high], 1)
    assert score == 1
    assert low < threshold <= high


@pytest.mark.parametrize("average", ["macro", "micro"])
def test_cross_fitting_pools_decisions_of_thresholds_tuned_on_the_other_folds(average):
    y, p, fold = simulated(2)
    tuned = thresholds.tune(y, p, CLASSES, beta=1, average=average, trials=15, seed=5, fold=fold)
    decided = np.zeros(y.shape, dtype=bool)
    for k in range(4):
        rest = fold != k
        without = thresholds.tune(y[rest], p[rest], CLASSES, beta=1, average=average, trials=15, seed=5, fold=None)
        decided[~rest] = thresholds.apply(p[~rest], list(without.thresholds.values()))
    assert tuned.score_cross_fitted == pytest.approx(fbeta_score(y, decided, beta=1, average=average))


def test_on_noise_the_tuned_score_flatters_and_the_cross_fitted_one_does_not():
    tuned, honest, chance = [], [], []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        y, p = (rng.random((150, 3)) < 0.1).astype(float), rng.random((150, 3))
        found = thresholds.tune(y, p, CLASSES, beta=1, average="macro", trials=0, seed=seed, fold=np.arange(150) % 3)
        tuned.append(found.score)
        honest.append(found.score_cross_fitted)
        chance.append(metrics.f_beta(y, np.ones(y.shape, dtype=bool), 1, "macro"))
    assert np.mean(tuned) > np.mean(honest) + 0.05
    assert np.mean(honest) < np.mean(chance) + 0.02


@pytest.mark.parametrize("average", ["macro", "micro"])
def test_a_class_without_positives_is_never_predicted(average):
    y, p, fold = simulated(3)
    y[:, 0], p[0, 0] = 0, 1.0
    tuned = thresholds.tune(y, p, CLASSES, beta=1, average=average, trials=10, seed=0, fold=fold)
    assert tuned.thresholds["epidural"] == thresholds.NEVER
    assert not thresholds.apply(p, list(tuned.thresholds.values()))[:, 0].any()
    assert any(w.startswith("epidural: no positive row") for w in tuned.warnings)
    assert json.loads(json.dumps(tuned.thresholds)) == tuned.thresholds


@pytest.mark.parametrize("average", ["macro", "micro"])
def test_nothing_positive_anywhere_scores_zero(average):
    tuned = thresholds.tune(
        np.zeros((5, 3)), np.ones((5, 3)), CLASSES, beta=2, average=average, trials=5, seed=0, fold=None
    )
    assert (tuned.score, tuned.exact, set(tuned.thresholds.values())) == (0, 0, {thresholds.NEVER})


@pytest.mark.parametrize("average", ["macro", "micro"])
def test_an_all_positive_class_is_always_predicted(average):
    y, p, _ = simulated(4)
    y[:, 2] = 1
    tuned = thresholds.tune(y, p, CLASSES, beta=1, average=average, trials=0, seed=0, fold=None)
    assert thresholds.apply(p, list(tuned.thresholds.values()))[:, 2].all()
    assert any(w.startswith("any: every row is positive") for w in tuned.warnings)


def test_a_class_with_one_distinct_probability_is_predicted_wholly_with_a_warning():
    y, p, _ = simulated(4)
    p[:, 1] = 0.7
    tuned = thresholds.tune(y, p, CLASSES, beta=1, average="macro", trials=5, seed=0, fold=None)
    assert tuned.thresholds["subdural"] == pytest.approx(0.35)
    assert any(w.startswith("subdural: all rows have the same probability") for w in tuned.warnings)


def test_few_positives_are_warned_about():
    y, p, _ = simulated(4)
    tuned = thresholds.tune(y, p, CLASSES, beta=1, average="macro", trials=0, seed=0, fold=None)
    assert tuned.warnings == (f"epidural: only {y[:, 0].sum():.0f} positive rows; trust the cross-fitted score.",)


def test_a_class_that_spoils_the_pooled_score_is_never_predicted_and_said_so():
    y = np.array([[1, 0], [1, 0], [0, 0], [0, 1]], dtype=float)
    p = np.array([[0.9, 0.5], [0.8, 0.5], [0.1, 0.5], [0.2, 0.5]])
    tuned = thresholds.tune(y, p, ["a", "b"], beta=1, average="micro", trials=0, seed=0, fold=None)
    assert tuned.exact == pytest.approx(4 / 5)  # TP 2, FN 1 against TP 3, FP 3: 6 / 9
    assert tuned.thresholds["b"] == pytest.approx(0.75)
    assert "b: the best pooled score comes from never predicting it." in tuned.warnings


@pytest.mark.parametrize("value", [np.nan, -0.1, 1.5, np.inf])
def test_probabilities_outside_0_to_1_are_refused_by_row(value):
    y, p, _ = simulated(0)
    p[[7, 11], 1] = value
    with pytest.raises(ValueError, match="2 rows: 7, 11"):
        thresholds.tune(y, p, CLASSES, beta=1, average="macro", trials=5, seed=0, fold=None)


def test_the_order_of_rows_does_not_matter():
    y, p, fold = simulated(6)
    shuffled = np.random.default_rng(0).permutation(len(y))
    settings_ = {"beta": 2, "average": "macro", "trials": 15, "seed": 9}
    first = thresholds.tune(y, p, CLASSES, fold=fold, **settings_)
    second = thresholds.tune(y[shuffled], p[shuffled], CLASSES, fold=fold[shuffled], **settings_)
    assert first == second
    assert first.decided is not None
    np.testing.assert_array_equal(first.decided[shuffled], second.decided)


def test_a_class_gets_the_threshold_that_it_gets_alone():
    y, p, _ = simulated(6)
    settings_ = {"beta": 1, "average": "macro", "trials": 15, "seed": 9, "fold": None}
    together = thresholds.tune(y, p, CLASSES, **settings_)
    alone = thresholds.tune(y[:, 1:2], p[:, 1:2], ["subdural"], **settings_)
    assert together.thresholds["subdural"] == alone.thresholds["subdural"]


def test_a_row_is_positive_at_its_threshold():
    assert thresholds.apply([[0.5, 0.4]], [0.5, 0.5]).tolist() == [[True, False]]
    with pytest.raises(ValueError, match="1 row: 1"):
        thresholds.apply([[0.5], [np.nan]], [0.5])


@pytest.mark.parametrize("rows", [60, 500, 5000])
@pytest.mark.parametrize("seed", range(4))
def test_two_hundred_trials_reach_the_exact_optimum_of_a_ragged_surface(rows, seed):
    """Probabilities that mean nothing: F-beta has as many local summits as it can have."""
    random = np.random.default_rng(seed)
    y, p = (random.random((rows, 1)) < 0.2).astype(float), random.random((rows, 1))
    found = thresholds.tune(y, p, ["a"], beta=1.0, average="macro", trials=200, seed=7, fold=None)
    assert found.exact - found.score <= 5e-4
