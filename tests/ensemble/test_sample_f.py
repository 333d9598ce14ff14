"""Coordinate ascent against brute force over all combinations of thresholds, in exact arithmetic."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ich.ensemble import metrics
from ich.ensemble.thresholds import Goal, apply, tune
from ich.ensemble.thresholds.sample_f import SampleF, best_samples


def small(seed, n=12, classes=3):
    random = np.random.default_rng(seed)
    y = (random.random((n, classes)) < 0.4).astype(float)
    return y, np.round(random.random((n, classes)) * 0.7 + 0.3 * y, 1)


def mean_f(y, decided, beta, zero_division):
    """From the definition: each row's (1 + b^2) TP / (b^2 actual + predicted)."""
    found = []
    for labels, row in zip(y, decided, strict=True):
        below = beta**2 * int(labels.sum()) + int(row.sum())
        found.append((1 + beta**2) * int((labels * row).sum()) / Fraction(below) if below else Fraction(zero_division))
    return sum(found) / len(found)


def best_of_all(y, p, beta, zero_division, recall=0.0):
    options = []
    for labels, scores in zip(y.T, p.T, strict=True):
        every = [scores >= value for value in (*np.unique(scores), 2)] if labels.any() else [scores > 2]
        options.append([one for one in every if not labels.any() or labels[one].sum() / labels.sum() >= recall])
    return max(mean_f(y, np.stack(columns, axis=1), beta, zero_division) for columns in itertools.product(*options))


@pytest.mark.parametrize(("zero_division", "recall"), [(0, 0.0), (1, 0.0), (0, 0.7)])
def test_small_tables_nearly_always_end_at_the_global_optimum(zero_division, recall):
    reached = []
    for seed in range(40):
        y, p = small(seed, n=8)
        found = tune(y, p, list("abc"), Goal(2.0, "samples", zero_division, (recall,) * 3), trials=0, seed=0)
        score = mean_f(y, apply(p, list(found.thresholds.values())), 2, zero_division)
        best = best_of_all(y, p, 2, zero_division, recall)
        assert score <= best
        reached.append(score == best)
    assert np.mean(reached) >= 0.9


@settings(max_examples=50)
@given(st.integers(0, 10**6), st.sampled_from([0.5, 1.0, 2.0]), st.sampled_from([0, 1]), st.sampled_from([0.0, 0.6]))
def test_one_class_is_solved_exactly(seed, beta, zero_division, recall):
    y, p = small(seed, n=15, classes=1)
    found = tune(y, p, ["a"], Goal(beta, "samples", zero_division, (recall,)), trials=0, seed=0)
    score = mean_f(y, apply(p, list(found.thresholds.values())), Fraction(beta), zero_division)
    assert score == best_of_all(y, p, Fraction(beta), zero_division, recall)


@settings(max_examples=150)
@example(2116, 1)  # the middle of one class's plateau lets another class gain
@given(st.integers(0, 10**6), st.sampled_from([0, 1]))
def test_the_score_never_falls_and_no_single_threshold_can_be_better_at_the_end(seed, zero_division):
    y, p = small(seed)
    problem, passed = SampleF(y, p, 1.0, zero_division, [0.0] * 3), []

    def greedy(_round, _c, values):
        passed.append(problem.score)
        return int(values.argmax())

    problem.start([0.5, 0.5, 0.5])
    passed.append(problem.ascend(greedy))
    assert np.all(np.diff(passed) >= -1e-12)
    problem.thresholds()
    assert problem.score == pytest.approx(passed[-1])  # the middle of a plateau is on the plateau
    thresholds, best = best_samples(problem, [[0.5, 0.5, 0.5]])
    assert metrics.f_beta(y, apply(p, thresholds), 1.0, "samples", zero_division) == pytest.approx(best)
    for c in range(3):
        for value in (*np.unique(p[:, c]), 2):
            moved = [value if k == c else t for k, t in enumerate(thresholds)]
            assert metrics.f_beta(y, apply(p, moved), 1.0, "samples", zero_division) <= best + 1e-12


def test_of_several_starts_the_best_is_taken():
    y, p = small(3)
    starts = [[0.1, 0.9, 0.5], [2.0, 2.0, 2.0], [0.0, 0.0, 0.0], [0.4, 0.4, 0.4]]
    alone = [best_samples(SampleF(y, p, 2.0, 1, [0.0] * 3), [start])[1] for start in starts]
    assert best_samples(SampleF(y, p, 2.0, 1, [0.0] * 3), starts)[1] == max(alone)


def test_a_tie_is_decided_by_the_middle_of_the_plateau():
    """One class: rows 0.8 and 0.2 are positive, 0.1 is not. Without zero_division row 0.1 scores 0 whatever happens."""
    y, p = np.array([[1.0], [1.0], [0.0]]), np.array([[0.8], [0.2], [0.1]])
    ignored = tune(y, p, ["a"], Goal(1.0, "samples", 0), trials=0, seed=0)
    assert (ignored.thresholds["a"], ignored.score) == (pytest.approx(0.1), pytest.approx(2 / 3))  # 0 to 0.2
    counted = tune(y, p, ["a"], Goal(1.0, "samples", 1), trials=0, seed=0)
    assert (counted.thresholds["a"], counted.score) == (pytest.approx(0.15), 1.0)  # 0.1 to 0.2
