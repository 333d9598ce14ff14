import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ich.ensemble import blend, metrics
from ich.ensemble.members import sigmoid

WEIGHTS = [1, 1, 2]


def simulated(seed, n=900, noise=(1.0, 1.0, 1.0)):
    """Members that see the truth's calibrated logit through noise of their own: labels, logits, folds."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(-1, 2, (n, 3))
    y = (rng.random((n, 3)) < sigmoid(truth)).astype(float)
    logits = {f"m{i}": truth + rng.normal(0, level, (n, 3)) for i, level in enumerate(noise)}
    return y, logits, np.arange(n) % 3


def test_blended_logits_are_the_weighted_mean_whatever_the_weights_sum():
    logits = {"a": np.array([[1.0, 2.0]]), "b": np.array([[5.0, 6.0]])}
    assert blend.blend_logits(logits, {"b": 1, "a": 3}).tolist() == [[2.0, 3.0]]


@pytest.mark.parametrize("weights", [{"a": 1.0}, {"a": 1.0, "b": -0.1}, {"a": 0.0, "b": 0.0}, {"a": 1, "c": 1}])
def test_weights_that_do_not_fit_the_members_are_refused(weights):
    with pytest.raises(ValueError, match="weights"):
        blend.blend_logits({"a": np.zeros((2, 1)), "b": np.zeros((2, 1))}, weights)


def test_a_useless_member_loses_its_weight():
    y, logits, fold = simulated(0, noise=(0.5, 0.5, 8.0))
    chosen = blend.choose(logits, y, fold, WEIGHTS, trials=60, seed=1)
    assert chosen.method == "optuna"
    assert chosen.weights["m2"] < 0.05
    assert sum(chosen.weights.values()) == pytest.approx(1)
    assert chosen.score_cross_fitted < chosen.score_equal


def test_the_scores_are_those_of_the_metric_on_the_blended_probabilities():
    y, logits, fold = simulated(0, noise=(0.5, 0.5, 8.0))
    chosen = blend.choose(logits, y, fold, WEIGHTS, trials=20, seed=1)
    tuned = metrics.weighted_log_loss(y, sigmoid(blend.blend_logits(logits, chosen.weights)), WEIGHTS)
    equal = metrics.weighted_log_loss(y, sigmoid(np.mean(list(logits.values()), axis=0)), WEIGHTS)
    assert chosen.score == pytest.approx(tuned, rel=1e-9)
    assert chosen.score_equal == pytest.approx(equal, rel=1e-9)


def test_certain_logits_cost_what_the_metric_charges():
    y = np.array([[1.0], [0.0]])
    chosen = blend.choose({"a": np.array([[-900.0], [900.0]])}, y, [0, 1], [1], trials=1, seed=0)
    assert chosen.score == pytest.approx(-np.log(1e-7), rel=1e-6)


def test_equally_good_members_keep_equal_weights_most_of_the_time():
    methods = []
    for seed in range(6):
        y, logits, fold = simulated(seed, n=300)
        methods.append(blend.choose(logits, y, fold, WEIGHTS, trials=15, seed=seed).method)
    assert methods.count("equal") >= 4


def test_weights_tuned_on_noise_look_better_than_they_are():
    rng = np.random.default_rng(3)
    y, fold = (rng.random((60, 2)) < 0.5).astype(float), np.arange(60) % 3
    logits = {f"m{i}": rng.normal(0, 2, (60, 2)) for i in range(6)}
    share, cube = np.array([0.5, 0.5]), np.stack(list(logits.values()))
    chosen = blend.choose(logits, y, fold, [1, 1], trials=40, seed=0)
    in_sample = blend._row_losses(cube, y, share, blend._search(cube, y, share, 40, 0)).mean()
    assert in_sample < chosen.score_cross_fitted


def test_the_weights_judged_on_a_fold_do_not_depend_on_its_labels():
    y, logits, fold = simulated(5, n=240, noise=(0.3, 2.0, 4.0))
    cube, share = np.stack(list(logits.values())), np.array([0.25, 0.25, 0.5])
    tuned = [blend._search(cube[:, fold != k], y[fold != k], share, 15, 7) for k in range(3)]
    by_hand = np.empty(len(y))
    for k, weights in enumerate(tuned):
        by_hand[fold == k] = blend._row_losses(cube, y, share, weights)[fold == k]
    chosen = blend.choose(logits, y, fold, WEIGHTS, trials=15, seed=7)
    assert chosen.score_cross_fitted == pytest.approx(by_hand.mean(), rel=1e-12)


def test_one_member_needs_no_search():
    y, logits, fold = simulated(0, n=30)
    chosen = blend.choose({"m0": logits["m0"]}, y, fold, WEIGHTS, trials=1, seed=0)
    assert (chosen.weights, chosen.method) == ({"m0": 1.0}, "equal")


def test_the_same_seed_chooses_the_same_weights():
    y, logits, fold = simulated(0, n=200, noise=(0.5, 1.0, 8.0))
    first, second = (blend.choose(logits, y, fold, WEIGHTS, trials=15, seed=4) for _ in range(2))
    assert first == second


def test_a_search_over_many_rows_is_judged_on_all_of_them(monkeypatch):
    monkeypatch.setattr(blend, "SEARCH_ROWS", 100)
    y, logits, fold = simulated(0, n=600, noise=(0.5, 0.5, 8.0))
    chosen = blend.choose(logits, y, fold, WEIGHTS, trials=20, seed=1)
    expected = metrics.weighted_log_loss(y, sigmoid(blend.blend_logits(logits, chosen.weights)), WEIGHTS)
    assert chosen.method == "optuna"
    assert chosen.score == pytest.approx(expected, rel=1e-9)


@settings(max_examples=30)
@given(st.lists(st.lists(st.floats(0, 1), min_size=3, max_size=3), min_size=1, max_size=8))
def test_any_is_raised_to_the_largest_subtype_and_nothing_else_changes(p):
    raised = blend.raise_any(np.array(p), ["epidural", "any", "subdural"])
    for before, after in zip(p, raised.tolist(), strict=True):
        assert after == [before[0], max(before), before[2]]


def test_without_a_class_any_nothing_is_raised():
    assert blend.raise_any(np.array([[0.9, 0.1]]), ["epidural", "subdural"]).tolist() == [[0.9, 0.1]]
