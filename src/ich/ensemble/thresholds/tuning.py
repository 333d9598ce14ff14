"""Decision thresholds that maximise F-beta: searched by Optuna, with the exact optimum and an honest score beside it.

A row is positive where its probability >= the threshold. Every search is over the operating points of sorted
probabilities, so that a trial is a look-up, whatever the number of rows: operating_points and sample_f hold the exact
optima, surfaces what Optuna's studies look at, search the studies.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ich.ensemble.intervals import Bootstrap, interval
from ich.ensemble.metrics import f_from_counts, rows
from ich.ensemble.thresholds import surfaces
from ich.ensemble.thresholds.operating_points import NEVER, Steps, best_macro
from ich.ensemble.thresholds.problem import Goal, Problem

__all__ = ["NEVER", "Goal", "Tuned", "apply", "exact", "exact_all", "f_interval", "tune"]

VERSION = 1  # of the search: trials of another one are not gone on with


@dataclass(frozen=True)
class Tuned:
    """Thresholds by class and what they are worth.

    score: F-beta of the thresholds on the rows that tuned them, hence flattering. score_cross_fitted: each fold decided
    with the exact thresholds of the other folds, F taken once over all those decisions; None without folds; decided
    [n, c] are those decisions. exact: the highest value of the goal that any thresholds reach on these rows (for
    samples: that coordinate ascent reaches), and thresholds that reach it. gap: how far below the search ended. Both
    are of F-beta itself only where the goal does not shrink; else of F-beta with shrunk labels, which is no score of
    the thresholds. warnings: sentences for the user.
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
    journal: Path | None = None,
    processes: int = 1,
    advance: Callable[[int], object] | None = None,
) -> Tuned:
    """Search the thresholds that serve the goal best.

    y [n, c] of 0 and 1, p [n, c] probabilities, fold [n] or None. Optuna's TPE, one-dimensional, seeded, `trials`
    trials a class (micro: in all); the threshold is then moved to the middle of those that decide alike. trials = 0
    takes the exact optimum without a search. journal, processes, advance: see search.search. A class without positives
    gets the threshold NEVER and a warning: whatever it predicts is wrong.

    Raises ValueError, naming rows and column, for labels other than 0 and 1, and for probabilities outside 0..1 or NaN.
    """
    problem = Problem.of(y, p, classes, goal)
    if trials < 0:
        raise ValueError(f"trials is {trials}; it must be 0 (the exact optimum) or more.")
    steps = problem.steps()
    exact_thresholds, best = problem.best(steps)
    thresholds, found = exact_thresholds, best
    if trials:
        thresholds, found = _search(problem, steps, trials, seed, journal, processes, advance)
    cross_fitted = decided = None
    if fold is not None:
        decided = problem.cross_fitted(np.asarray(fold))
        cross_fitted = problem.f(decided)
    return Tuned(
        dict(zip(classes, thresholds, strict=True)),
        problem.f(problem.decide(thresholds)),
        cross_fitted,
        decided,
        best,
        dict(zip(classes, exact_thresholds, strict=True)),
        best - found,
        tuple(problem.warnings(thresholds)),
    )


def apply(p: ArrayLike, thresholds: Sequence[float] | NDArray) -> NDArray[np.bool_]:
    """Decisions [n, c], p >= threshold; p [n, c], thresholds [c] in class order. ValueError for NaN in p."""
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
    one = Problem.of(np.reshape(y_column, (-1, 1)), np.reshape(p_column, (-1, 1)), ["the class"], Goal(beta))
    return best_macro(one.steps()[0], beta)


def exact_all(
    y: ArrayLike, p: ArrayLike, goal: Goal, positive_factor: Sequence[float], negative_factor: Sequence[float]
) -> list[float]:
    """The exact thresholds [c] where a positive row of class c stands for positive_factor[c] rows, a negative likewise.

    For a prevalence other than that of the rows at hand; p are probabilities at that other one. ValueError where the
    goal averages over slices: a slice has labels of several classes, and no one weight.
    """
    if goal.average == "samples":
        raise ValueError("a shift of prevalence is one of classes; it has no meaning for an average over samples.")
    problem = Problem.of(y, p, [f"class {c}" for c in range(np.shape(y)[1])], goal)
    return problem.best(problem.steps(list(zip(positive_factor, negative_factor, strict=True))))[0]


def f_interval(
    y: ArrayLike, decided: NDArray[np.bool_], goal: Goal, bootstrap: Bootstrap | None, *, resamples: int = 1000
) -> tuple[float, float]:
    """The ends of the 95 % interval of the F-beta of decisions [n, c] with labels y [n, c], averaged as the goal says.

    bootstrap: draws of the rows' patients; without it rows are drawn as if they were independent (so many times). A
    draw that lacks the positives of a class which has some is judged by the other classes.
    """
    labels = np.asarray(y, dtype=np.float64)
    sums = _independent(labels, decided, resamples) if bootstrap is None else bootstrap.sums
    right = labels * decided
    if goal.average == "samples":
        values = f_from_counts(right.sum(1), decided.sum(1), labels.sum(1), goal.beta, goal.zero_division)
        return interval(sums(values) / sums(np.ones(len(values))))
    counts = [np.stack([sums(column) for column in table.T]) for table in (right, decided, labels)]
    if goal.average == "micro":
        counts = [count.sum(axis=0, keepdims=True) for count in counts]
    draws = f_from_counts(counts[0], counts[1], counts[2], goal.beta, goal.zero_division)
    known = (counts[2] > 0) | (counts[2].max(axis=1, keepdims=True) == 0)
    return interval(np.where(known, draws, 0).sum(axis=0) / np.maximum(known.sum(axis=0), 1))


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


def _search(
    problem: Problem,
    steps: Sequence[Steps],
    trials: int,
    seed: int,
    journal: Path | None,
    processes: int,
    advance: Callable[[int], object] | None,
) -> tuple[list[float], float]:
    """Thresholds that Optuna finds, in class order, and the goal that they reach."""
    from ich.ensemble.thresholds import search  # Optuna takes half a second to import; the exact optimum does without

    tag = "" if journal is None else problem.digest(seed, VERSION)
    if journal is not None:
        search.mend(journal, tag)

    def find(some: Sequence[surfaces.Surface], trials: int) -> list[int]:
        named = [replace(one, name=f"{tag} {one.name}") for one in some]
        how: dict[str, Any] = {"journal": journal, "processes": processes, "advance": advance}
        return search.search(named, trials=trials, seed=seed, **how)

    beta, zero = problem.goal.beta, problem.goal.zero_division
    if problem.goal.average == "macro":
        return surfaces.search_macro(problem.classes, steps, beta, zero, find, trials)
    if problem.goal.average == "micro":
        return surfaces.search_micro(steps, beta, zero, find, trials)
    macro = [best_macro(one, beta, zero)[0] for one in steps]
    return surfaces.search_samples(problem.classes, problem.sample_f(), macro, find, trials)
