"""Coordinate ascent against brute force over all combinations of thresholds, in exact arithmetic."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ich.ensemble import metrics
from ich.ensemble.thresholds import Goal, apply, tune
from ich.ensemble.thresholds.sample_f import SampleF, best_samples
from tests.ensemble.test_thresholds import best_of_all, f_in_fractions


def small(seed, n=12, classes=3):
    random = np.random.default_rng(seed)
    y = (random.random((n, classes)) < 0.4).astype(float)
    return y, np.round(random.random((n, classes)) * 0.7 + 0.3 * y, 1)


@pytest.mark.parametrize(("zero_division", "recall"), [(0, 0.0), (1, 0.0), (0, 0.7)])
@pytest.mark.parametrize(("classes", "sure"), [(1, 1.0), (2, 0.9), (3, 0.9)])
def test_small_tables_nearly_always_reach_the_global_optimum(zero_division, recall, classes, sure):
    reached = []
    for seed in range(12 if classes == 3 else 24):
        y, p = small(seed, n=8, classes=classes)
        goal = Goal(2.0, "samples", zero_division, (recall,) * classes)
        found = tune(y, p, list("abc")[:classes], goal)
        score = f_in_fractions(y, apply(p, list(found.thresholds.values())), 2, "samples", zero_division)
        best = best_of_all(y, p, goal)
        assert score <= best
        reached.append(score == best)
    assert np.mean(reached) >= sure


@settings(max_examples=60)
@example(2116, 1)  # the middle of one class's plateau lets another class gain
@given(st.integers(0, 10**6), st.sampled_from([0, 1]))
def test_the_ascent_ends_at_a_local_optimum_above_its_start(seed, zero_division):
    y, p = small(seed)
    problem = SampleF(y, p, 1.0, zero_division, [0.0] * 3)
    start = metrics.f_beta(y, p >= 0.5, 1.0, "samples", zero_division)
    thresholds, best = best_samples(problem, [[0.5, 0.5, 0.5]])
    assert metrics.f_beta(y, apply(p, thresholds), 1.0, "samples", zero_division) == pytest.approx(best)
    assert best >= start - 1e-12
    for c in range(3):
        for value in (*np.unique(p[:, c]), 2):
            moved = [value if k == c else t for k, t in enumerate(thresholds)]
            assert metrics.f_beta(y, apply(p, moved), 1.0, "samples", zero_division) <= best + 1e-12


def test_a_tie_is_decided_by_the_middle_of_the_plateau():
    """One class: rows 0.8 and 0.2 are positive, 0.1 is not. Without zero_division row 0.1 scores 0 whatever happens."""
    y, p = np.array([[1.0], [1.0], [0.0]]), np.array([[0.8], [0.2], [0.1]])
    ignored = tune(y, p, ["a"], Goal(1.0, "samples", 0))
    assert (ignored.thresholds["a"], ignored.score) == (pytest.approx(0.1), pytest.approx(2 / 3))  # 0 to 0.2
    counted = tune(y, p, ["a"], Goal(1.0, "samples", 1))
    assert (counted.thresholds["a"], counted.score) == (pytest.approx(0.15), 1.0)  # 0.1 to 0.2
