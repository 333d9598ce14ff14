"""Tune, apply and evaluate decision thresholds for F-beta; a row is positive where its probability >= threshold."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ich.ensemble.intervals import Bootstrap, interval
from ich.ensemble.metrics import f_beta, f_draws, f_from_counts, macro_rows, refuse_rows
from ich.ensemble.thresholds.operating_points import Steps, best_macro
from ich.ensemble.thresholds.problem import Goal, Problem

DRAWS = 1000  # of single rows


@dataclass(frozen=True)
class Tuned:
    """Thresholds by class and their scores.

    score: in-sample F-beta. score_cross_fitted: F-beta of `decided` [n, c] by `cross_fitted`, the exact thresholds
    [n, c] of the other folds; None without folds. exact: the highest value of the goal on these rows (samples: that
    coordinate ascent reaches), and its thresholds. gap: exact minus the value that the search reached. With shrink > 0,
    exact and gap are of F-beta with shrunk labels. warnings: sentences for the user.
    """

    thresholds: dict[str, float]
    score: float
    score_cross_fitted: float | None
    decided: NDArray[np.bool_] | None = field(compare=False)
    cross_fitted: NDArray[np.float64] | None = field(compare=False)
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
    fold: ArrayLike | None = None,
    search: Callable[[Problem, Sequence[Steps]], tuple[list[float], float]] | None = None,
) -> Tuned:
    """Tune the thresholds of classes for the goal: the exact optimum, or what `search` finds (see search.Search).

    y [n, c] of 0 and 1, p [n, c] probabilities, fold [n] or None. A class without positives gets the threshold NEVER
    and a warning. Raises ValueError as Problem does.
    """
    problem = Problem(y, p, classes, goal)
    steps = problem.steps()
    exact_thresholds, best = problem.best(steps)
    thresholds, found = search(problem, steps) if search else (exact_thresholds, best)
    cross_fitted = None if fold is None else problem.cross_fitted(np.asarray(fold))
    decided = None if cross_fitted is None else problem.p >= cross_fitted

    def score(decisions: NDArray[np.bool_]) -> float:
        return f_beta(problem.y, decisions, goal.beta, goal.average, goal.zero_division)

    return Tuned(
        dict(zip(classes, thresholds, strict=True)),
        score(problem.p >= thresholds),
        None if decided is None else score(decided),
        decided,
        cross_fitted,
        best,
        dict(zip(classes, exact_thresholds, strict=True)),
        best - found,
        tuple(problem.warnings(thresholds)),
    )


def apply(p: ArrayLike, thresholds: Sequence[float] | NDArray) -> NDArray[np.bool_]:
    """Decisions [n, c], p >= threshold; p [n, c], thresholds [c] in class order. Raises ValueError for NaN in p."""
    probabilities, limits = np.asarray(p, dtype=np.float64), np.asarray(thresholds, dtype=np.float64)
    refuse_rows(np.isnan(probabilities), "probabilities must not be NaN")
    return probabilities >= limits


def transfer(thresholds: Sequence[float], folds: Sequence[NDArray], mean: NDArray) -> list[float]:
    """Thresholds [c] for the mean of folds, with as many positives as the folds have on average by `thresholds` [c].

    folds: probabilities [m, c] of the same rows by each fold; mean [m, c]: of the mean logits. A threshold that no row
    or every row reaches stays as it is.
    """
    counts = np.rint(np.mean([apply(p, thresholds).sum(axis=0) for p in folds], axis=0)).astype(int)
    falling = -np.sort(-mean, axis=0)
    return [
        float(column[n - 1] + column[n]) / 2 if 0 < n < len(column) else threshold
        for threshold, n, column in zip(thresholds, counts, falling.T, strict=True)
    ]


def exact(y_column: ArrayLike, p_column: ArrayLike, beta: float) -> tuple[float, float]:
    """The threshold with the highest F-beta of one class, and that F-beta; (NEVER, 0.0) without positives.

    y_column [n] of 0 and 1, p_column [n] in 0..1.
    """
    one = Problem(np.reshape(y_column, (-1, 1)), np.reshape(p_column, (-1, 1)), ["the class"], Goal(beta))
    return best_macro(one.steps()[0], beta)


def exact_all(y: ArrayLike, p: ArrayLike, goal: Goal, factors: Sequence[tuple[float, float]]) -> list[float]:
    """Exact thresholds [c] at another prevalence than that of the rows.

    p: probabilities at that prevalence; factors [c]: the weights of a positive and a negative row of each class. Not
    for the average samples, in which a row has no single weight.
    """
    problem = Problem(y, p, [f"class {c}" for c in range(len(factors))], goal)
    return problem.best(problem.steps(factors))[0]


def f_interval(
    y: ArrayLike, decided: NDArray[np.bool_], goal: Goal, bootstrap: Bootstrap | None
) -> tuple[float, float]:
    """95 % confidence interval of the F-beta of decisions [n, c] with labels y [n, c], averaged as in the goal.

    bootstrap: draws of the rows' patients; None: rows are independent. A class with positives is excluded from
    the draws without any of them.
    """
    labels = np.asarray(y, dtype=np.float64)
    sums = _independent(labels, decided) if bootstrap is None else bootstrap.sums
    hits = labels * decided
    if goal.average == "samples":
        values = f_from_counts(hits.sum(1), decided.sum(1), labels.sum(1), goal.beta, goal.zero_division)
        return interval(sums(values) / sums(np.ones(len(values))))
    if goal.average == "micro":
        true, predicted, actual = (sums(table.sum(axis=1)) for table in (hits, decided, labels))
        return interval(f_from_counts(true, predicted, actual, goal.beta, goal.zero_division))
    return interval(macro_rows(f_draws(labels, decided, goal.beta, sums, goal.zero_division)))


def _independent(labels: NDArray, decided: NDArray[np.bool_]) -> Callable[[NDArray], NDArray[np.float64]]:
    """Sums over draws of single rows, by the counts of rows with the same labels and decisions."""
    kind = np.zeros(len(labels), dtype=np.int64)
    for label, yes in zip(labels.T, decided.T, strict=True):
        kind = np.unique(4 * kind + 2 * (label > 0) + yes, return_inverse=True)[1]
    _, first, count = np.unique(kind, return_index=True, return_counts=True)
    draws = np.random.default_rng(7).multinomial(len(kind), count / len(kind), size=DRAWS).astype(np.float64)
    return lambda values: np.einsum("bg,g->b", draws, np.asarray(values, dtype=np.float64)[first])
