"""Tune decision thresholds for F-beta: Optuna's search next to the exact optimum and the cross-fitted score.

A row is positive where its probability >= the threshold. Every search runs over the operating points of sorted
probabilities, so that a trial is a look-up, whatever the number of rows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ich.ensemble.intervals import Bootstrap, interval
from ich.ensemble.metrics import f_beta, f_draws, f_from_counts, macro_rows, rows
from ich.ensemble.thresholds.operating_points import best_macro
from ich.ensemble.thresholds.problem import Goal, Problem
from ich.ensemble.thresholds.search import search_macro, search_micro, search_samples


@dataclass(frozen=True)
class Tuned:
    """Thresholds by class and their scores.

    score: in-sample F-beta. score_cross_fitted: each fold decided with the exact thresholds of the other folds, F taken
    once over all those decisions; None without folds; decided [n, c] are those decisions. exact: the highest value of
    the goal that any thresholds reach on these rows (for samples: that coordinate ascent reaches), and thresholds that
    reach it. gap: how far below it the search ended. With shrink > 0, exact and gap are of F-beta with shrunk labels,
    which is not the F-beta of the thresholds. warnings: sentences for the user.
    """

    thresholds: dict[str, float]
    score: float
    score_cross_fitted: float | None
    decided: NDArray[np.bool_] | None = field(compare=False)
    exact: float
    thresholds_exact: dict[str, float]
    gap: float
    warnings: tuple[str, ...]


def tune(
    y: ArrayLike,
    p: ArrayLike,
    classes: Sequence[str],
    goal: Goal,
    *,
    trials: int,
    seed: int,
    fold: ArrayLike | None = None,
) -> Tuned:
    """Tune the thresholds of classes for the goal.

    y [n, c] of 0 and 1, p [n, c] probabilities, fold [n] or None. Optuna's TPE runs `trials` trials per class (micro:
    in all); the threshold is then moved to the middle of those with the same decisions. trials = 0 takes the exact
    optimum. A class without positives gets the threshold NEVER and a warning. Raises ValueError as Problem does.
    """
    problem = Problem(y, p, classes, goal)
    if trials < 0:
        raise ValueError(f"trials is {trials}; it must be 0 (the exact optimum) or more.")
    steps = problem.steps()
    beta, zero = goal.beta, goal.zero_division
    exact_thresholds, best = problem.best(steps)
    if not trials:
        thresholds, found = exact_thresholds, best
    elif goal.average == "macro":
        thresholds, found = search_macro(steps, beta, zero, trials, seed)
    elif goal.average == "micro":
        thresholds, found = search_micro(steps, beta, zero, trials, seed)
    else:
        start = [best_macro(one, beta, zero)[0] for one in steps]
        thresholds, found = search_samples(problem.sample_f(), start, trials, seed)
    decided = None if fold is None else problem.cross_fitted(np.asarray(fold))
    return Tuned(
        dict(zip(classes, thresholds, strict=True)),
        f_beta(problem.y, problem.p >= thresholds, beta, goal.average, zero),
        None if decided is None else f_beta(problem.y, decided, beta, goal.average, zero),
        decided,
        best,
        dict(zip(classes, exact_thresholds, strict=True)),
        best - found,
        tuple(problem.warnings(thresholds)),
    )


def apply(p: ArrayLike, thresholds: Sequence[float] | NDArray) -> NDArray[np.bool_]:
    """Decisions [n, c], p >= threshold; p [n, c], thresholds [c] in class order. Raises ValueError for NaN in p."""
    probabilities, limits = np.asarray(p, dtype=np.float64), np.asarray(thresholds, dtype=np.float64)
    if probabilities.ndim != 2 or limits.shape != (probabilities.shape[1],):
        raise ValueError(f"probabilities {probabilities.shape} must be [n, c] and thresholds {limits.shape} [c].")
    unknown = np.flatnonzero(np.isnan(probabilities).any(axis=1))
    if unknown.size:
        raise ValueError(f"probabilities must not be NaN; it stands in {rows(unknown)}.")
    return probabilities >= limits


def exact(y_column: ArrayLike, p_column: ArrayLike, beta: float) -> tuple[float, float]:
    """The threshold with the highest F-beta of one class, and that F-beta; (NEVER, 0.0) without positives.

    y_column [n] of 0 and 1, p_column [n] in 0..1. One sort, O(n log n).
    """
    one = Problem(np.reshape(y_column, (-1, 1)), np.reshape(p_column, (-1, 1)), ["the class"], Goal(beta))
    return best_macro(one.steps()[0], beta)


def exact_all(
    y: ArrayLike, p: ArrayLike, goal: Goal, positive_factor: Sequence[float], negative_factor: Sequence[float]
) -> list[float]:
    """Exact thresholds [c] where positive rows of class c have the weight positive_factor[c], negative rows likewise.

    For a prevalence other than that of the rows at hand; p are probabilities at that prevalence. Raises ValueError for
    the average samples: a slice has labels of several classes, so it has no single weight.
    """
    if goal.average == "samples":
        raise ValueError("prevalence is per class, so that it cannot be shifted for an average over samples.")
    problem = Problem(y, p, [f"class {c}" for c in range(np.shape(y)[1])], goal)
    return problem.best(problem.steps(list(zip(positive_factor, negative_factor, strict=True))))[0]


def f_interval(
    y: ArrayLike, decided: NDArray[np.bool_], goal: Goal, bootstrap: Bootstrap | None, *, resamples: int = 1000
) -> tuple[float, float]:
    """95 % confidence interval of the F-beta of decisions [n, c] with labels y [n, c], averaged as in the goal.

    bootstrap: draws of the rows' patients; without it `resamples` draws of rows, as if they were independent. In a
    draw without the positives of a class that has some, the class is left out.
    """
    labels = np.asarray(y, dtype=np.float64)
    sums = _independent(labels, decided, resamples) if bootstrap is None else bootstrap.sums
    right = labels * decided
    if goal.average == "samples":
        values = f_from_counts(right.sum(1), decided.sum(1), labels.sum(1), goal.beta, goal.zero_division)
        return interval(sums(values) / sums(np.ones(len(values))))
    if goal.average == "micro":
        true, predicted, actual = (sums(table.sum(axis=1)) for table in (right, decided, labels))
        return interval(f_from_counts(true, predicted, actual, goal.beta, goal.zero_division))
    return interval(macro_rows(f_draws(labels, decided, goal.beta, sums, goal.zero_division)))


def _independent(
    labels: NDArray, decided: NDArray[np.bool_], resamples: int
) -> Callable[[NDArray], NDArray[np.float64]]:
    """Sums over draws of single rows. Rows with the same labels and decisions are counted, not drawn one by one."""
    kind = np.zeros(len(labels), dtype=np.int64)
    for label, yes in zip(labels.T, decided.T, strict=True):
        kind = np.unique(4 * kind + 2 * (label > 0) + yes, return_inverse=True)[1]
    _, first, count = np.unique(kind, return_index=True, return_counts=True)
    draws = np.random.default_rng(7).multinomial(len(kind), count / len(kind), size=resamples).astype(np.float64)
    return lambda values: np.einsum("bg,g->b", draws, np.asarray(values, dtype=np.float64)[first])
