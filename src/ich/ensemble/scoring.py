"""All scores of a model's predictions, per class and over all classes, with confidence intervals of the same draws."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ich.ensemble import metrics
from ich.ensemble.intervals import Bootstrap, interval

DIGITS = 6  # of a score in JSON; tables and CSV files round the same number to four

FOLD_GAP = 0.02  # difference of the AUC over all rows and its mean over folds that is warned of

Cell = dict[str, float | None]  # value, low, high; None where a score is undefined


class Score(NamedTuple):
    """A score per class and, last, over all classes: values [c + 1], and those of each bootstrap draw [b, c + 1]."""

    values: NDArray[np.float64]
    draws: NDArray[np.float64]

    def cell(self, column: int = -1) -> Cell:
        """The value of one class, by default of all, and its interval."""
        return _cell(self.values[column], self.draws[:, column])

    def minus(self, other: "Score") -> Cell:
        """The difference of two models' scores over all classes, on the same rows and draws, and its interval."""
        return _cell(self.values[-1] - other.values[-1], self.draws[:, -1] - other.draws[:, -1])


class Decisions(NamedTuple):
    """Decisions, bool [n, c], and the beta of the F-beta that evaluates them."""

    beta: float
    positive: NDArray[np.bool_]


def all_scores(
    bootstrap: Bootstrap, y: NDArray, p: NDArray, decisions: Mapping[str, Decisions], weights: Sequence[float]
) -> dict[str, Score]:
    """log_loss (over all classes: weighted), auc, ap (macro means), and the macro F-beta of each of the `decisions`.

    y [n, c] of 0 and 1, p [n, c] probabilities, weights [c]. A class with one label only has no AUC and no average
    precision and is excluded from their macro means, also in a draw. Its F is included (see `metrics.f_beta`), except
    in a draw without positives where the table has some. Raises ValueError as metrics does.
    """
    labels, probabilities = metrics.checked_probabilities(y, p)
    losses, share = metrics.row_losses(labels, probabilities), metrics.checked_weights(weights, labels.shape[1])
    drawn = np.stack([bootstrap.means(column) for column in losses.T], axis=1)
    found = {
        "log_loss": Score(
            np.append(losses.mean(axis=0), metrics.weighted_log_loss(y, p, weights)),
            np.column_stack([drawn, np.einsum("bc,c->b", drawn, share)]),
        )
    }
    ranks = [bootstrap.ranks(labels[:, c], probabilities[:, c]) for c in range(labels.shape[1])]
    auc, precision = (np.stack(draws, axis=1) for draws in zip(*ranks, strict=True))
    found["auc"] = _with_macro(metrics.class_auc(labels, probabilities), auc)
    found["ap"] = _with_macro(metrics.class_average_precision(labels, probabilities), precision)
    for name, (beta, positive) in decisions.items():
        counts = ((labels * positive).sum(axis=0), positive.sum(axis=0), labels.sum(axis=0))
        drawn = metrics.f_draws(labels, positive, beta, bootstrap.sums)
        found[name] = _with_macro(metrics.f_from_counts(*counts, beta), drawn)
    return found


def scores_by_fold(
    y: NDArray, p: NDArray, fold: NDArray, decisions: Mapping[str, Decisions], weights: Sequence[float]
) -> dict[str, tuple[float, float]]:
    """Each of `all_scores` within folds: its mean over the folds [n] of the rows, and the standard deviation.

    A class counts in the folds that have both of its labels (auc, ap) or positives (F-beta).
    """
    folds = [fold == k for k in np.unique(fold)]
    found = {
        "log_loss": np.array([[metrics.weighted_log_loss(y[k], p[k], weights)] for k in folds]),
        "auc": np.stack([metrics.class_auc(y[k], p[k]) for k in folds]),
        "ap": np.stack([metrics.class_average_precision(y[k], p[k]) for k in folds]),
    }
    for name, (beta, positive) in decisions.items():
        found[name] = metrics.f_draws(y, positive, beta, lambda values: np.array([values[k].sum() for k in folds]))
    return {name: _mean_and_deviation(values) for name, values in found.items()}


def _mean_and_deviation(values: NDArray[np.float64]) -> tuple[float, float]:
    """Of values [k, c] of folds and classes: mean over folds, then classes; deviation of the folds' macro means."""
    of_folds = metrics.macro_rows(values)
    of_folds = of_folds[~np.isnan(of_folds)]
    return metrics.macro(metrics.macro_rows(values.T)), float(of_folds.std(ddof=1)) if len(of_folds) > 1 else np.nan


def fold_warnings(auc: Mapping[str, tuple[float, float]]) -> Iterator[str]:
    """Warn of models whose macro AUC over all rows differs from its mean over folds; auc: both, by name."""
    for name, (pooled, mean) in auc.items():
        if abs(pooled - mean) > FOLD_GAP:
            yield (
                f"{name}: the macro AUC is {pooled:.4f} over all rows, but {mean:.4f} on average within a fold. The"
                " logits of the folds are on different scales. Compare models by the mean of the folds; thresholds or"
                " a calibration per fold help"
            )


def study_scores(bootstrap: Bootstrap, y: NDArray, p: NDArray, positive: NDArray) -> dict[str, Score]:
    """auc, sensitivity and specificity of studies, per class and as macro means.

    y [s, c] of 0 and 1, p [s, c] probabilities, positive [s, c] decisions; the bootstrap draws the patients of the s
    studies. A class with one label only has no AUC, and no sensitivity or no specificity; means exclude it.
    """
    labels, probabilities = metrics.checked_probabilities(y, p)
    auc = [bootstrap.ranks(*pair)[0] for pair in zip(labels.T, probabilities.T, strict=True)]
    found = {"auc": _with_macro(metrics.class_auc(labels, probabilities), np.stack(auc, axis=1))}
    for name, known, right in (("sensitivity", labels, positive), ("specificity", 1 - labels, ~positive)):
        counts = [(bootstrap.sums(k * r), bootstrap.sums(k)) for k, r in zip(known.T, right.T, strict=True)]
        draws = np.stack([_share(*pair) for pair in counts], axis=1)
        found[name] = _with_macro(_share((known * right).sum(axis=0), known.sum(axis=0)), draws)
    return found


def _share(part: NDArray, whole: NDArray) -> NDArray[np.float64]:
    """part / whole, NaN for 0 / 0."""
    return np.where(whole > 0, part / np.maximum(whole, 1), np.nan)


def rounded(value: float) -> float | None:
    """The value as written to JSON: None for NaN."""
    return None if np.isnan(value) else round(float(value), DIGITS)


def _cell(value: float, draws: NDArray[np.float64]) -> Cell:
    low, high = interval(draws) if not np.isnan(value) else (np.nan, np.nan)
    return {"value": rounded(value), "low": rounded(low), "high": rounded(high)}


def _with_macro(values: NDArray, draws: NDArray) -> Score:
    """From values [c] and draws [b, c] of each class, both with their macro mean appended."""
    return Score(np.append(values, metrics.macro(values)), np.column_stack([draws, metrics.macro_rows(draws)]))
