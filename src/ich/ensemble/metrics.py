"""Metrics of slice-level predictions: log loss, AUC, average precision, F-beta, confusion matrix; numpy only.

Shapes: n slices, c classes. Labels are 0 or 1 without NaN: scores of different subsets of rows are not comparable.
"""

from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Average = Literal["macro", "micro", "samples"]

EPS = 1e-7  # the RSNA 2019 log loss clips probabilities to EPS..1 - EPS
LIMIT = float(np.log((1 - EPS) / EPS))  # the same bound as a logit


def weighted_log_loss(y: ArrayLike, p: ArrayLike, weights: ArrayLike) -> float:
    """The RSNA 2019 score: mean over slices of the class-weighted binary cross-entropy.

    Per slice sum_c w_c * bce_c / sum_c w_c, with p [n, c] clipped to EPS..1-EPS. The competition's weights are 1 for
    each subtype and 2 for "any" (https://www.kaggle.com/c/rsna-intracranial-hemorrhage-detection, Evaluation).
    """
    loss = row_losses(y, p)
    return float((loss.mean(axis=0) * checked_weights(weights, loss.shape[1])).sum())


def row_losses(y: ArrayLike, p: ArrayLike) -> NDArray[np.float64]:
    """Binary cross-entropy of each row and class [n, c], with p [n, c] clipped to EPS..1-EPS."""
    labels, probabilities = checked_probabilities(y, p)
    clipped = np.clip(probabilities, EPS, 1 - EPS)
    return -(labels * np.log(clipped) + (1 - labels) * np.log1p(-clipped))


def logit_losses(z: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Binary cross-entropy of finite logits z with labels y of the same shape; clipped only if z is `limited`."""
    return np.logaddexp(0, z) - y * z


def limited(z: NDArray[np.float64]) -> NDArray[np.float64]:
    """Logits clipped to -LIMIT..LIMIT, where log loss clips their probabilities."""
    return np.clip(z, -LIMIT, LIMIT)


def logit_cells(z: NDArray[np.float64], cells: int) -> NDArray[np.int64]:
    """Index of each logit, 0..cells-1, among cells of equal width over -LIMIT..LIMIT."""
    return np.minimum(((limited(z) + LIMIT) * (cells / (2 * LIMIT))).astype(np.int64), cells - 1)


def class_auc(y: ArrayLike, p: ArrayLike) -> NDArray[np.float64]:
    """Area under the ROC curve per class [c], ties counted half; NaN for a class with one label only."""

    def area(predicted: NDArray, true: NDArray) -> float:
        sensitivity = np.concatenate([[0.0], true]) / true[-1]
        false_positives = np.concatenate([[0.0], predicted - true]) / (predicted[-1] - true[-1])
        return float(np.trapezoid(sensitivity, false_positives))

    return _per_class(area, y, p)


def class_average_precision(y: ArrayLike, p: ArrayLike) -> NDArray[np.float64]:
    """Average precision per class [c], sum of (recall step x precision); NaN for a class with one label only."""

    def sum_of_steps(predicted: NDArray, true: NDArray) -> float:
        return float(np.sum(np.diff(true, prepend=0.0) / true[-1] * (true / predicted)))

    return _per_class(sum_of_steps, y, p)


def f_beta(y: ArrayLike, positive: ArrayLike, beta: float, average: Average, zero_division: float = 0) -> float:
    """F-beta of the decisions `positive` [n, c], (1 + b^2) TP / ((1 + b^2) TP + b^2 FN + FP).

    macro is the mean over classes, micro pools the counts of all classes, samples is the mean over slices. 0 / 0, with
    neither a positive nor a prediction, counts as `zero_division`, as in scikit-learn.
    """
    labels, decided = _checked_decisions(y, positive)
    if average == "samples":
        counts = (np.einsum("nc,nc->n", labels, decided), decided.sum(axis=1), labels.sum(axis=1))
    else:
        counts = (np.einsum("nc,nc->c", labels, decided), decided.sum(axis=0), labels.sum(axis=0))
    if average == "micro":
        counts = (counts[0].sum(), counts[1].sum(), counts[2].sum())
    return float(np.mean(f_from_counts(*counts, beta, zero_division)))


def f_from_counts(
    true: ArrayLike, predicted: ArrayLike, actual: ArrayLike, beta: float, zero_division: float = 0
) -> NDArray[np.float64]:
    """F-beta from true, predicted and actual positives, (1 + b^2) TP / (b^2 actual + predicted)."""
    square = beta * beta
    below = square * np.asarray(actual, dtype=np.float64) + np.asarray(predicted, dtype=np.float64)
    above = (1 + square) * np.asarray(true, dtype=np.float64)
    return np.where(below > 0, above / np.where(below > 0, below, 1), zero_division)


def f_draws(
    labels: NDArray[np.float64],
    decided: NDArray,
    beta: float,
    sums: Callable[[NDArray], NDArray[np.float64]],
    zero_division: float = 0,
) -> NDArray[np.float64]:
    """F-beta per bootstrap draw and class [b, c]; NaN in a draw without positives of a class that has some.

    labels and decided [n, c]; sums: values [n] -> their sum over the rows of each draw [b], as Bootstrap.sums.
    """
    true, predicted, actual = (
        np.stack([sums(column) for column in table.T], axis=1) for table in (labels * decided, decided, labels)
    )
    lacks = (actual == 0) & labels.any(axis=0)
    return np.where(lacks, np.nan, f_from_counts(true, predicted, actual, beta, zero_division))


def confusion(y: ArrayLike, positive: ArrayLike) -> dict[str, NDArray[np.int64] | NDArray[np.float64]]:
    """Confusion matrix of the decisions `positive` [n, c]: arrays [c] by name.

    tp, fp, fn and tn are counts. accuracy, precision, recall and f1 are shares, 0 for 0 / 0.
    """
    labels, decided = _checked_decisions(y, positive)
    actual, predicted, tp = (x.sum(axis=0).astype(np.int64) for x in (labels, decided, labels * decided))
    fp, fn = predicted - tp, actual - tp
    tn = len(labels) - tp - fp - fn
    return {
        "tp": tp,
        "fp": fp,
        "fn": fn,
        "tn": tn,
        "accuracy": (tp + tn) / len(labels),
        "precision": tp / np.maximum(predicted, 1),
        "recall": tp / np.maximum(actual, 1),
        "f1": f_from_counts(tp, predicted, actual, 1),
    }


def macro(values: ArrayLike) -> float:
    """Mean of the values that are not NaN; NaN if there are none."""
    return float(macro_rows(np.asarray(values, dtype=np.float64)[None])[0])


def macro_rows(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """`macro` of each row [b] of values [b, c]."""
    known = ~np.isnan(values)
    count = known.sum(axis=1)
    return np.where(count > 0, np.where(known, values, 0).sum(axis=1) / np.maximum(count, 1), np.nan)


def operating_points(
    labels: NDArray[np.float64], scores: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]:
    """(score, predicted, true) for each distinct score, highest first: the counts at every possible threshold.

    labels and scores [n], n > 0, must be sorted by falling score. With the threshold score[i], predicted[i] slices are
    positive, true[i] of them correctly.
    """
    last = np.flatnonzero(np.append(scores[1:] != scores[:-1], True))
    return scores[last], last + 1, np.cumsum(labels)[last]


def checked_pair(y: ArrayLike, p: ArrayLike, ndim: int = 2) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Labels and predictions as float64 [n, c], or [n] with ndim 1.

    Raises ValueError for differing or empty shapes, labels other than 0 and 1, and predictions that are not finite.
    """
    labels, predictions = np.asarray(y, dtype=np.float64), np.asarray(p, dtype=np.float64)
    if labels.ndim != ndim or labels.shape != predictions.shape or labels.size == 0:
        shape = "[n, c]" if ndim == 2 else "[n]"
        raise ValueError(f"labels {labels.shape} and predictions {predictions.shape} must both be {shape}, n > 0.")
    refuse_rows(~((labels == 0) | (labels == 1)), "labels must be 0 or 1")
    refuse_rows(~np.isfinite(predictions), "predictions must be finite")
    return labels, predictions


def checked_probabilities(y: ArrayLike, p: ArrayLike, ndim: int = 2) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """As checked_pair; raises ValueError for predictions outside 0..1 too."""
    labels, probabilities = checked_pair(y, p, ndim)
    refuse_rows((probabilities < 0) | (probabilities > 1), "probabilities must lie in 0..1 (are these logits?)")
    return labels, probabilities


def checked_weights(weights: ArrayLike, classes: int) -> NDArray[np.float64]:
    """Class weights [c] scaled to sum to 1; ValueError for negative ones, only zeros or another length."""
    array = np.asarray(weights, dtype=np.float64)
    if array.shape != (classes,) or not (np.isfinite(array).all() and (array >= 0).all() and array.sum() > 0):
        raise ValueError(f"class weights {array.tolist()} must be {classes} numbers >= 0, not all of them 0.")
    return array / array.sum()


def refuse_rows(wrong: NDArray[np.bool_], problem: str) -> None:
    """Raise ValueError if any entry of `wrong` [n] or [n, c] is True: the problem, and the first of the rows."""
    numbers = np.flatnonzero(wrong.any(axis=tuple(range(1, wrong.ndim))))
    if numbers.size:
        shown = ", ".join(map(str, numbers[:5])) + (", ..." if numbers.size > 5 else "")
        rows = f"{numbers.size} row{'s' if numbers.size > 1 else ''}"
        raise ValueError(f"{problem}; see {rows}: {shown} (counted from 0).")


def _checked_decisions(y: ArrayLike, positive: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    labels, decided = checked_pair(y, positive)
    if not ((decided == 0) | (decided == 1)).all():
        raise ValueError("decisions must be True or False; apply thresholds to probabilities first.")
    return labels, decided


def _per_class(score: Callable[[NDArray, NDArray], float], y: ArrayLike, p: ArrayLike) -> NDArray[np.float64]:
    """score(predicted, true) per class [c], from the counts of `operating_points`; NaN for one label only."""
    labels, scores = checked_pair(y, p)
    found = np.full(labels.shape[1], np.nan)
    for c in range(labels.shape[1]):
        order = np.argsort(-scores[:, c])
        _, predicted, true = operating_points(labels[order, c], scores[order, c])
        if 0 < true[-1] < predicted[-1]:
            found[c] = score(predicted, true)
    return found
