"""Choose the combination of one class's models by cross-fitting.

Shapes: z [n, m] are the out-of-fold logits of m models for n rows, y [n] their labels.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit

from ich.ensemble import calibration
from ich.ensemble.blend import fitting
from ich.ensemble.blend.combination import METHODS, Combination, Method, checked_logits
from ich.ensemble.blend.fitting import UNTUNED, Metric, Rows
from ich.ensemble.intervals import Bootstrap, interval, simplest
from ich.ensemble.metrics import f_from_counts, limited, logit_losses, refuse_rows

Column = NDArray[np.float64]


@dataclass(frozen=True)
class CombinationChoice:
    """The combination of a class's models, and the scores that it was chosen by.

    combination: fitted on all rows. out_of_fold [n]: each row's logit by the chosen method fitted without its fold.
    scores: for each method tried, `in_sample` (fitted and evaluated on all rows), `cross_fitted` (each fold evaluated
    with what was fitted without it) and `difference` (the 95 % confidence interval of its cross-fitted score minus that
    of the mean of logits, by draws of patients). None where there is a single fold or nothing to compare.

    A score is a mean log loss after Platt scaling, lower is better, or F at the best threshold, higher is better;
    scaling and threshold are fitted on the rows that the method was fitted on. Without the scaling, ranks would win
    among overconfident models, however good their order is.
    """

    combination: Combination
    out_of_fold: Column = field(compare=False)
    scores: dict[str, dict[str, Any]]

    def as_dict(self) -> dict[str, Any]:
        """Method, weights and scores, for a record."""
        return {"method": self.combination.method, "weights": list(self.combination.weights), "scores": self.scores}


def choose_combination(
    z: ArrayLike,
    y: ArrayLike,
    fold: ArrayLike,
    bootstrap: Bootstrap,
    *,
    method: Method | Literal["auto"] = "auto",
    metric: Metric = "log_loss",
    trials: int = 100,
    seed: int = 7,
) -> CombinationChoice:
    """Choose a class's combination: z [n, m], y [n], fold [n]; bootstrap draws the patients of these rows.

    auto takes, in the order of METHODS, the simplest method that no later one beats significantly (intervals.simplest)
    when cross-fitted; with fewer than fitting.FEWEST positives or negatives, the simplest. A single model is taken as
    it is. With one fold there is no cross-fitting, so that only methods without tuning are taken.
    """
    logits, labels, folds = checked_logits(z), np.asarray(y, dtype=np.float64), np.asarray(fold)
    if not len(logits) or not labels.shape == folds.shape == logits.shape[:1]:
        raise ValueError(f"logits {logits.shape}, labels {labels.shape} and fold {folds.shape} must have n > 0 rows.")
    refuse_rows(~((labels == 0) | (labels == 1)), "labels must be 0 or 1")
    numbers = np.unique(folds)
    names = _candidates(method, logits.shape[1], len(numbers))
    if method == "auto" and not fitting.tunable(labels):
        names = METHODS[:1]
    rows = Rows.sample(logits, labels, seed)
    fitted = {name: fitting.fit(name, rows, metric, trials, seed) for name in names}
    scores: dict[str, dict[str, Any]] = {}
    for name, combination in fitted.items():
        losses = _evaluated(combination, rows, combination.apply(logits), labels, metric)
        scores[name] = {"in_sample": _score(losses, labels, metric), "cross_fitted": None, "difference": None}
    if len(numbers) == 1:
        return CombinationChoice(fitted[names[0]], fitted[names[0]].apply(logits), scores)

    out_of_fold, evaluated = ({name: np.empty(len(labels)) for name in names} for _ in range(2))
    for number in numbers:
        inside = folds == number
        rows = Rows.sample(logits[~inside], labels[~inside], seed)
        for name in names:
            combination = fitting.fit(name, rows, metric, trials, seed)
            found = combination.apply(logits[inside])
            out_of_fold[name][inside] = found
            evaluated[name][inside] = _evaluated(combination, rows, found, labels[inside], metric)
    draws = {name: _draws(evaluated[name], labels, metric, bootstrap) for name in names}
    for name in names:
        scores[name]["cross_fitted"] = _score(evaluated[name], labels, metric)
        if name != names[0]:
            scores[name]["difference"] = list(interval(draws[name] - draws[names[0]]))
    losses = draws if metric == "log_loss" else {name: -values for name, values in draws.items()}
    best = simplest(losses) if method == "auto" else names[-1]
    return CombinationChoice(fitted[best], out_of_fold[best], scores)


def _candidates(method: Method | Literal["auto"], models: int, folds: int) -> tuple[Method, ...]:
    """The methods to try: a named one comes last, after the simplest, which it is compared with."""
    if models == 1:
        return METHODS[:1]
    if folds == 1:
        return (method,) if method in UNTUNED else METHODS[:1]
    return METHODS if method == "auto" else tuple(dict.fromkeys((METHODS[0], method)))


def _evaluated(combination: Combination, rows: Rows, z: Column, y: Column, metric: Metric) -> Column:
    """Log losses [n], or decisions of 0 and 1, of logits z [n] of a combination fitted on `rows`."""
    before = combination.apply(rows.z)
    if metric == "log_loss":
        calibrator = calibration.fit("platt", before, rows.y, rows.copies)
        return logit_losses(limited(calibrator.apply(z)), y)
    return (expit(z) >= fitting.best_f(before, rows.y, rows.copies, metric)[0]).astype(np.float64)


def _score(evaluated: Column, y: Column, metric: Metric) -> float:
    if metric == "log_loss":
        return float(evaluated.mean())
    return float(f_from_counts((evaluated * y).sum(), evaluated.sum(), y.sum(), metric))


def _draws(evaluated: Column, y: Column, metric: Metric, bootstrap: Bootstrap) -> Column:
    if metric == "log_loss":
        return bootstrap.means(evaluated)
    return f_from_counts(bootstrap.sums(evaluated * y), bootstrap.sums(evaluated), bootstrap.sums(y), metric)
