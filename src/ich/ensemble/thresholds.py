"""Decision thresholds that maximise F-beta: searched by Optuna, with the exact optimum and an honest score.

A row is positive where its probability >= the threshold. Every search is over the operating points of sorted
probabilities (metrics.operating_points), so that a trial is a look-up, whatever the number of rows.

macro: the mean of the classes' F falls apart by class; each class has its own one-dimensional search.

micro: the pooled F does not. But its best thresholds are those where the classes' calibrated probabilities
(isotonic regression, in each class) cross one common value. For, with F* the best score, they maximise
(1 + b^2) TP - F* predicted (Dinkelbach 1967, fractional programming); that is a sum over classes, and each
summand is largest at a vertex of the concave hull of the class's (predicted, TP), the ends of blocks.
So micro is one one-dimensional search over pooled calibrated probabilities, and has an exact optimum too.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import optuna
from numpy.typing import ArrayLike, NDArray

from ich.ensemble.metrics import Average, checked_probabilities, f_beta, f_from_counts, operating_points, rows

optuna.logging.set_verbosity(optuna.logging.WARNING)

Column = NDArray[np.float64]

NEVER = 2.0  # a threshold that no probability reaches, and that survives JSON and rounding
FEW = 50  # positives below which a tuned threshold is a guess: tuned minus honest F1 is about 0.05 there


@dataclass(frozen=True)
class Tuned:
    """Thresholds by class and what they are worth.

    score: F-beta of the thresholds on the rows that tuned them, hence flattering. score_cross_fitted: each
    fold decided with thresholds tuned on the other folds, F taken once over all those decisions; None without
    folds; decided [n, c] are those decisions. exact: the highest F-beta that any thresholds reach on these rows.
    warnings: sentences for the user.
    """

    thresholds: dict[str, float]
    score: float
    score_cross_fitted: float | None
    decided: NDArray[np.bool_] | None = field(compare=False)
    exact: float
    warnings: tuple[str, ...]


class _Points(NamedTuple):
    """Operating points of a class: distinct scores, falling; rows and true positives at or above each."""

    score: Column
    predicted: NDArray[np.int64]
    true: Column

    @property
    def actual(self) -> float:
        return float(self.true[-1])

    def threshold(self, last: int) -> float:
        """Midway between score[last], the lowest that is positive, and the next one; -1: none is positive."""
        high = self.score[last] if last >= 0 else 1.0
        low = self.score[last + 1] if last + 1 < len(self.score) else 0.0
        if last < 0 and low >= 1:
            return NEVER
        middle = low + (high - low) / 2
        return float(middle if middle > low else high)


def tune(
    y: ArrayLike,
    p: ArrayLike,
    classes: Sequence[str],
    *,
    beta: float,
    average: Average,
    trials: int,
    seed: int,
    fold: ArrayLike | None,
) -> Tuned:
    """Search the thresholds that maximise macro or micro F-beta.

    y [n, c] of 0 and 1, p [n, c] probabilities, fold [n] or None. Optuna's TPE, one-dimensional, seeded,
    `trials` trials a search (one search a class for macro, one in all for micro); the threshold is then moved
    to the middle of the gap between the two probabilities that it parts. trials = 0 takes the exact optimum
    without a search. A class without positives gets the threshold NEVER and a warning: whatever it predicts
    is wrong.

    Raises ValueError, naming rows, for labels other than 0 and 1 and for probabilities outside 0..1 or NaN.
    """
    labels, probabilities = checked_probabilities(y, p)
    if len(classes) != labels.shape[1]:
        raise ValueError(f"there are {labels.shape[1]} columns of labels, but {len(classes)} classes.")
    if trials < 0:
        raise ValueError(f"trials is {trials}; it must be 0 (the exact optimum) or more.")
    order = [np.argsort(-probabilities[:, c]) for c in range(len(classes))]
    points = [_points(labels[o, c], probabilities[o, c]) for c, o in enumerate(order)]
    thresholds, exact_score = _search_all(points, beta, average, trials, seed)
    warnings = _warnings(points, classes, thresholds)

    cross_fitted = decided = None
    if fold is not None:
        folds = np.asarray(fold)
        if folds.shape != (len(labels),) or len(np.unique(folds)) < 2:
            raise ValueError(f"fold must have {len(labels)} entries, one a row, and two values or more.")
        decided = np.zeros(labels.shape, dtype=bool)
        for number in np.unique(folds):
            kept = [o[folds[o] != number] for o in order]
            others = [_points(labels[o, c], probabilities[o, c]) for c, o in enumerate(kept)]
            without, _ = _search_all(others, beta, average, trials, seed)
            decided[folds == number] = apply(probabilities[folds == number], without)
        cross_fitted = f_beta(labels, decided, beta, average)
    score = f_beta(labels, apply(probabilities, thresholds), beta, average)
    return Tuned(
        dict(zip(classes, thresholds, strict=True)), score, cross_fitted, decided, exact_score, tuple(warnings)
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

    y_column [n] of 0 and 1, p_column [n] in 0..1. Of equal ones the highest. One sort, O(n log n).
    """
    labels, probabilities = checked_probabilities(np.reshape(y_column, (-1, 1)), np.reshape(p_column, (-1, 1)))
    order = np.argsort(-probabilities[:, 0])
    points = _points(labels[order, 0], probabilities[order, 0])
    if points.actual == 0:
        return NEVER, 0.0
    values = f_from_counts(points.true, points.predicted, points.actual, beta)
    best = int(np.argmax(values))
    return points.threshold(best), float(values[best])


def _points(labels: Column, scores: Column) -> _Points:
    return _Points(*operating_points(labels, scores))


def _search_all(
    points: Sequence[_Points], beta: float, average: Average, trials: int, seed: int
) -> tuple[list[float], float]:
    """Thresholds in class order, and the exact optimum of the averaged F-beta."""
    if average == "micro":
        return _search_micro(points, beta, trials, seed)
    thresholds, best = [], []
    for one in points:
        values = f_from_counts(one.true, one.predicted, one.actual, beta)
        best.append(float(values.max()))
        thresholds.append(one.threshold(_search(one, values, trials, seed)) if one.actual else NEVER)
    return thresholds, float(np.mean(best))


def _search_micro(points: Sequence[_Points], beta: float, trials: int, seed: int) -> tuple[list[float], float]:
    calibrated = [_isotonic(one) for one in points]
    able = [c for c, one in enumerate(points) if one.actual]
    if not able:
        return [NEVER] * len(points), 0.0
    rate = np.concatenate([calibrated[c] for c in able])
    order = np.argsort(-rate)
    added = np.concatenate([np.diff(points[c].predicted, prepend=0) for c in able])[order]
    hits = np.concatenate([np.diff(points[c].true, prepend=0) for c in able])[order]
    last = np.flatnonzero(np.append(np.diff(rate[order]) != 0, True))
    pooled = _Points(rate[order][last], np.cumsum(added)[last], np.cumsum(hits)[last])
    values = f_from_counts(pooled.true, pooled.predicted, pooled.actual, beta)
    cut = pooled.score[_search(pooled, values, trials, seed)]
    thresholds = [
        one.threshold(int(np.sum(rates >= cut)) - 1) if one.actual else NEVER
        for one, rates in zip(points, calibrated, strict=True)
    ]
    return thresholds, float(values.max())


def _isotonic(points: _Points) -> Column:
    """Share of positives at each score, falling with it: slopes of the concave hull of (predicted, true)."""
    from scipy.optimize import isotonic_regression  # slow to import, and macro does without

    added = np.diff(points.predicted, prepend=0)
    return isotonic_regression(np.diff(points.true, prepend=0) / added, weights=added, increasing=False).x


def _search(points: _Points, values: Column, trials: int, seed: int) -> int:
    """Index of the best operating point that a one-dimensional TPE study finds; `values` [g] is F-beta.

    The search variable is the number of positive rows, on a log scale: F-beta is smooth in it and the best
    number is of the order of the actual positives, however rare they are and however the probabilities are
    calibrated.
    """
    if trials == 0 or len(values) == 1:
        return int(np.argmax(values))
    rows_in_all = int(points.predicted[-1])
    tried: list[int] = []

    def objective(trial: optuna.Trial) -> float:
        wanted = trial.suggest_float("predicted", 1, rows_in_all, log=True)
        tried.append(int(np.searchsorted(points.predicted, wanted)))
        return float(values[tried[-1]])

    sampler = optuna.samplers.TPESampler(seed=seed, multivariate=False, constant_liar=False)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    at_half = int(np.searchsorted(-points.score, -0.5, side="right")) - 1
    # An even ladder over all numbers first: where F-beta is ragged, few positives say, its summit may stand anywhere.
    ladder = np.geomspace(1, rows_in_all, trials // 4)
    for start in (float(points.actual), float(points.predicted[max(at_half, 0)]), *ladder.tolist()):
        study.enqueue_trial({"predicted": start}, skip_if_exists=True)
    study.optimize(objective, n_trials=trials)
    return _summit(values, np.unique(tried))


def _summit(values: Column, tried: NDArray[np.integer]) -> int:
    """The best index between the neighbours that were tried of each of the five best ones that were."""
    best = np.argsort(-values[tried], kind="stable")[:5]
    low, high = tried[np.maximum(best - 1, 0)], tried[np.minimum(best + 1, len(tried) - 1)]
    summits = [int(a + np.argmax(values[a : b + 1])) for a, b in zip(low, high, strict=True)]
    return max(summits, key=lambda index: values[index])


def _warnings(points: Sequence[_Points], classes: Sequence[str], thresholds: Sequence[float]) -> list[str]:
    found = []
    for name, one, threshold in zip(classes, points, thresholds, strict=True):
        if one.actual == 0:
            found.append(f"{name}: no positive row; its threshold is {NEVER:g}, so that it is never predicted.")
        elif one.actual == one.predicted[-1]:
            found.append(f"{name}: every row is positive, so that its threshold says nothing about new rows.")
        elif one.actual < FEW:
            found.append(f"{name}: only {one.actual:.0f} positive rows; trust the cross-fitted score.")
        if len(one.score) == 1:
            found.append(f"{name}: all rows have the same probability, so that there is nothing to tune.")
        if one.actual and threshold > one.score[0]:
            found.append(f"{name}: the best pooled score comes from never predicting it.")
    return found
