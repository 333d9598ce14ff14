import json
import warnings
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata
from sklearn.metrics import fbeta_score

from ich.ensemble import blend
from ich.ensemble.blend import METHODS, Combination, fitting
from ich.ensemble.blend.combination import equal
from ich.ensemble.intervals import Bootstrap
from ich.ensemble.metrics import LIMIT
from ich.ensemble.predictions import sigmoid
from ich.ensemble.thresholds import exact

TUNED = ("ranks", "greedy", "weights")
UNDEFINED: dict[str, Any] = {"zero_division": 0.0}


def simulated(seed, n=600, noise=(1.0, 1.0, 1.0), centre=-1.0):
    """Models that predict the true logit with independent noise: logits [n, m], labels, folds."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(centre, 2, n)
    y = (rng.random(n) < sigmoid(truth)).astype(float)
    z = np.column_stack([truth + rng.normal(0, level, n) for level in noise])
    return z, y, np.arange(n) % 3


def choose(z, y, fold, **options):
    return blend.choose_combination(z, y, fold, Bootstrap(np.arange(len(y)), resamples=300), **options)


def fit(method, z, y, *, metric="log_loss", trials=100, seed=7):
    return fitting.fit(method, fitting.Rows.sample(z, y, seed), metric, trials, seed)


# ---- combinations


def test_means_of_logits_and_of_probabilities_by_hand():
    z = np.array([[0.0, np.log(3)], [-40.0, 40.0]])
    assert equal(2).apply(z) == pytest.approx([np.log(3) / 2, 0])
    assert equal(2, "probabilities").apply(z) == pytest.approx([np.log(0.625 / 0.375), 0])
    assert Combination("weights", (0.25, 0.75)).apply(z[:1]) == pytest.approx([0.75 * np.log(3)])
    assert equal(2).apply([[1e9, 0.0]]) == pytest.approx([LIMIT / 2]), "clipped where log loss clips"


def test_ranks_are_the_mean_quantile_calibrated_by_platt():
    z, y, _ = simulated(0, n=200, noise=(1.0, 2.0))
    fitted = fit("ranks", z, y)
    assert fitted.ranks is not None
    mean = np.mean([(rankdata(column) - 0.5) / len(y) for column in z.T], axis=0)
    line = fitted.ranks.slope * np.log(mean / (1 - mean)) + fitted.ranks.intercept
    assert fitted.apply(z) == pytest.approx(np.clip(line, -LIMIT, LIMIT), abs=1e-9)
    assert sigmoid(line).mean() == pytest.approx(y.mean(), rel=1e-2)  # as in logistic regression, but for a ridge
    assert fitted.apply(z[17:18]).tolist() == fitted.apply(z)[17:18].tolist()


@settings(max_examples=15, deadline=None)
@example(999999, 5, np.arctan)  # all rows have one mean quantile
@given(st.integers(0, 10**6), st.integers(5, 60), st.sampled_from([np.arctan, np.cbrt, lambda x: 3 * x - 2, np.exp]))
def test_ranks_are_invariant_to_monotonic_changes_of_a_model(seed, n, change):
    rng = np.random.default_rng(seed)
    z, new = (rng.integers(-20, 20, (rows, 2)).astype(float) for rows in (n, 30))
    y = np.append([0.0, 0, 1, 1], rng.integers(0, 2, n - 4))

    def changed(x):
        return np.column_stack([change(x[:, 0]), x[:, 1]])

    expected = fit("ranks", z, y).apply(new)
    assert fit("ranks", changed(z), y).apply(changed(new)).tolist() == expected.tolist()


def test_ranks_of_many_rows_are_binned_most_finely_at_both_ends(monkeypatch):
    monkeypatch.setattr(fitting, "BINS", 50)
    z, y, _ = simulated(0, n=5000, noise=(1.0,) * 2)
    ranks = fit("ranks", z, y).ranks
    assert ranks is not None
    for column, edges, quantiles in zip(z.T, ranks.edges, ranks.quantiles, strict=True):
        assert 30 < len(edges) <= 50
        exact = (rankdata(column) - 0.5) / len(y)
        found = np.array(quantiles)[np.searchsorted(edges, column, side="right")]
        step = 2 * np.log(2 * len(y)) / 49
        assert np.abs(np.log(found / (1 - found)) - np.log(exact / (1 - exact))).max() < 1.5 * step


RANKS = {"edges": [[0.0, 1.0]], "quantiles": [[0.2, 0.5, 0.8]], "slope": 1.0, "intercept": 0.0}


@pytest.mark.parametrize(
    "change",
    [
        *({"more": 1}, {"method": "median"}, {"method": "logits"}, {"ranks": None}),
        *({"weights": weights} for weights in ([], "1", [0.5, 0.5], [1.5, -0.5], [float("nan")])),
        *({"ranks": RANKS | {"edges": edges}} for edges in ([[1.0, 0.0]], [0.0, 1.0], [[0.0]])),
        *({"ranks": RANKS | {"quantiles": quantiles}} for quantiles in ([[0.2, 0.5, 1.8]], [[0.2, 0.6, 0.5]])),
        *({"ranks": RANKS | {"slope": slope}} for slope in (-1.0, float("inf"), "0")),
    ],
)
def test_malformed_combinations_raise_in_one_sentence(change):
    with pytest.raises(ValueError, match=r"^[^\n]{20,200}\.$"):
        Combination.from_dict({"method": "ranks", "weights": [1.0], "ranks": RANKS} | change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": [0, 1, 2]}, "labels must be 0 or 1"),
        ({"z": [[np.nan, 0], [0, 0], [0, 0]]}, "finite"),
        ({"fold": [0, 1]}, "fold"),
    ],
)
def test_invalid_arrays_raise(change, message):
    data = {"z": np.zeros((3, 2)), "y": [0, 1, 1], "fold": [0, 1, 1]} | change
    with pytest.raises(ValueError, match=message):
        blend.choose_combination(bootstrap=Bootstrap([0, 1, 2]), **data)
    with pytest.raises(ValueError, match="logits"):
        equal(2).apply([[1.0, np.nan]])


# ---- fitting


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 8), st.integers(-5, 2), st.sampled_from([0.1, 1.0, 10.0]))
def test_no_weights_have_a_lower_log_loss(seed, models, centre, scale):
    noise = np.random.default_rng(seed).uniform(0, 4, models)
    z, y, _ = simulated(seed, n=200, noise=noise, centre=centre)
    z = np.clip(scale * z, -LIMIT, LIMIT)
    y[:4] = 0, 0, 1, 1
    weights = np.array(fit("weights", z, y).weights)
    assert weights.sum() == pytest.approx(1, abs=1e-12)
    assert weights.min() >= 0
    # a convex function lies above its tangent, so nothing in the simplex is lower by more
    slope = ((sigmoid(z @ weights) - y)[:, None] * z).mean(axis=0)
    assert slope @ weights - slope.min() < 1e-5 * scale


def test_greedy_selection_by_hand():
    # Losses per row, softplus of -+z. Alone: a 0.2201 (rows 0.127, 0.313), b as a with the rows exchanged, c 0.6931.
    # a comes first; then (a + b) / 2 has 1.5 in both rows, 0.2014, and no later share of a and b is better than halves.
    z, y = np.array([[2.0, 1.0, 0.0], [-1.0, -2.0, 0.0]]), np.array([1.0, 0.0])
    assert fitting._greedy(fitting.Rows(z, y, np.ones(2)), "log_loss") == (0.5, 0.5, 0.0)
    z, y, _ = simulated(0, n=100, noise=(1.0,))  # identical models: greedy takes the first, weights divide evenly
    assert fit("greedy", np.repeat(z, 3, axis=1), y).weights == (1.0, 0.0, 0.0)
    assert fit("weights", np.repeat(z, 3, axis=1), y).weights == pytest.approx([1 / 3] * 3, abs=2e-6)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-4, 4), st.integers(0, 1), st.integers(1, 4)), min_size=2, max_size=20),
    st.sampled_from([0.5, 1, 2]),
)
def test_the_best_threshold_equals_brute_force(rows, beta):
    z, y, copies = np.array(rows, dtype=float).T
    threshold, value = fitting.best_f(z, y, copies, beta)
    p, y = (np.repeat(values, copies.astype(int)) for values in (sigmoid(z), y))
    tried = [fbeta_score(y, p >= t, beta=beta, **UNDEFINED) for t in p]
    assert value == pytest.approx(max(tried), abs=1e-12)
    assert fbeta_score(y, p >= threshold, beta=beta, **UNDEFINED) == pytest.approx(value, abs=1e-12)
    assert threshold == pytest.approx(exact(y, p, beta)[0], abs=1e-12)


@pytest.mark.parametrize("metric", ["log_loss", 2.0])
def test_a_noisy_model_is_dropped(metric):
    z, y, fold = simulated(1, n=1500, noise=(0.5, 0.5, 9.0))
    choice = choose(z, y, fold, metric=metric, trials=40)
    assert choice.combination.method in TUNED
    for method in ("greedy", "weights"):
        assert fit(method, z, y, metric=metric, trials=40).weights[2] < 0.05
        scores = choice.scores[method]["cross_fitted"], choice.scores["logits"]["cross_fitted"]
        assert scores[0] < scores[1] if metric == "log_loss" else scores[0] > scores[1]
        low, high = choice.scores[method]["difference"]
        assert low <= scores[0] - scores[1] <= high


def test_the_search_for_f_is_seeded_and_starts_with_equal_weights():
    z, y, _ = simulated(2, n=200, noise=(0.5, 1.0, 3.0))
    first, again, one = (fit("weights", z, y, metric=2.0, trials=t, seed=3) for t in (25, 25, 1))
    assert first == again
    assert one.weights == pytest.approx([1 / 3] * 3, abs=1e-6)


def test_a_sample_of_rows_is_weighted_to_the_prevalence(monkeypatch):
    monkeypatch.setattr(fitting, "SEARCH_ROWS", 400)
    z, y, _ = simulated(0, n=3000, noise=(0.5, 0.5, 8.0), centre=-5)
    rows = fitting.Rows.sample(z, y, 1)
    assert len(rows.y) == 400
    assert rows.y.sum() == min(y.sum(), 200)
    assert (rows.copies * rows.y).sum() == pytest.approx(y.sum())
    assert rows.copies.sum() == pytest.approx(3000)
    assert fit("weights", z, y).weights[2] < 0.05
    ranks, prevalence = fit("ranks", z, y), y.mean()
    assert sigmoid(ranks.apply(z)).mean() == pytest.approx(prevalence, rel=0.2)


# ---- choosing by cross-fitting


@pytest.mark.parametrize("metric", ["log_loss", 1.0])
@pytest.mark.parametrize("method", METHODS)
def test_a_fold_is_predicted_without_its_labels(method, metric):
    z, y, fold = simulated(5, n=150, noise=(0.3, 2.0, 4.0))
    turned = np.where(fold == 0, 1 - y, y)
    one, other = (choose(z, labels, fold, method=method, metric=metric, trials=12) for labels in (y, turned))
    assert one.out_of_fold[fold == 0].tolist() == other.out_of_fold[fold == 0].tolist()
    if method in TUNED:
        assert one.out_of_fold[fold != 0].tolist() != other.out_of_fold[fold != 0].tolist()
    by_hand = fit(method, z[fold != 2], y[fold != 2], metric=metric, trials=12).apply(z[fold == 2])
    assert one.out_of_fold[fold == 2].tolist() == by_hand.tolist()


def test_cross_fitted_f_uses_the_thresholds_of_the_other_folds():
    z, y, fold = simulated(6, n=120, noise=(1.0, 1.0))
    mean, decided = z.mean(axis=1), np.zeros(120)
    for k in range(3):
        threshold, _ = exact(y[fold != k], sigmoid(mean[fold != k]), 2)
        decided[fold == k] = sigmoid(mean[fold == k]) >= threshold
    found = choose(z, y, fold, method="logits", metric=2.0).scores["logits"]
    assert found["cross_fitted"] == pytest.approx(fbeta_score(y, decided, beta=2), abs=1e-12)
    assert found["in_sample"] == pytest.approx(max(fbeta_score(y, mean >= t, beta=2) for t in mean), abs=1e-12)


def test_overconfidence_does_not_change_the_choice():
    z, y, fold = simulated(7, n=900, noise=(0.5, 0.5, 0.5))
    usual, sure = choose(z, y, fold), choose(3 * z, y, fold)
    assert sure.combination.method == usual.combination.method == "logits"
    assert sure.scores["logits"]["in_sample"] == pytest.approx(usual.scores["logits"]["in_sample"], abs=1e-3)


def test_equal_models_and_shuffled_labels_give_the_mean():
    methods, gains = [], []
    for seed in range(6):
        z, y, fold = simulated(seed, n=300)
        methods.append(choose(z, y, fold).combination.method)
        choice = choose(z, np.random.default_rng(seed).permutation(y), fold)
        methods.append(choice.combination.method)
        scores = {name: score["cross_fitted"] for name, score in choice.scores.items()}
        gains += [scores["logits"] - scores[name] for name in TUNED]
    assert methods.count("logits") >= 10
    assert np.mean(gains) <= 0.001


def test_a_named_method_is_compared_with_the_mean_only():
    z, y, fold = simulated(10, n=200, noise=(1.0, 1.0))
    for method in METHODS:
        choice = choose(z, y, fold, method=method)
        assert choice.combination == fit(method, z, y)
        assert list(choice.scores) == list(dict.fromkeys(("logits", method)))
        assert json.loads(json.dumps(choice.as_dict()))["method"] == method
        alone = choose(z[:, :1], y, fold, method=method)
        assert (alone.combination, alone.out_of_fold.tolist()) == (equal(1), z[:, 0].tolist())


@pytest.mark.parametrize(
    ("method", "expected"), [("auto", "logits"), ("weights", "logits"), ("probabilities", "probabilities")]
)
def test_with_one_fold_only_methods_without_tuning_are_taken(method, expected):
    z, y, _ = simulated(0, n=60)
    choice = choose(z, y, np.zeros(60), method=method)
    assert choice.combination == equal(3, expected)
    assert choice.out_of_fold.tolist() == choice.combination.apply(z).tolist()
    assert choice.scores[expected]["cross_fitted"] is None


LABELS = {"none": [], "one": [4], "two": [4, 5], "all": range(30), "all but one": range(1, 30)}
MODELS = {
    "usual": lambda rng: rng.normal(0, 2, (30, 3)),
    "constant": lambda _: np.tile([-1.0, 0.0, 2.0], (30, 1)),
    "identical": lambda rng: np.repeat(rng.normal(0, 2, (30, 1)), 3, axis=1),
    "huge": lambda rng: rng.choice([-1e30, 0.0, 1e30], (30, 3)),
}


@pytest.mark.parametrize(("labels", "metric"), list(product(LABELS, ["log_loss", 2.0])))
@pytest.mark.parametrize("models", MODELS)
def test_degenerate_labels_and_models_give_finite_logits_without_warnings(labels, models, metric):
    y, fold = np.zeros(30), np.arange(30) % 3
    y[list(LABELS[labels])] = 1
    z = MODELS[models](np.random.default_rng(0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for method in ("auto", *METHODS):
            choice = choose(z, y, fold, method=method, metric=metric, trials=3)
            assert np.isfinite(choice.out_of_fold).all()
            assert np.isfinite(choice.combination.apply(z)).all()
            assert Combination.from_dict(json.loads(json.dumps(choice.combination.as_dict()))) == choice.combination
            assert all(np.isfinite([s["in_sample"], s["cross_fitted"]]).all() for s in choice.scores.values())
            if labels not in {"two"} and method in {"auto", *TUNED}:
                assert choice.combination == equal(3)
