"""Scores of slice-level predictions: log loss, AUC, average precision, F-beta, confusion; numpy only.

Shapes: n slices, c classes. Labels are 0 or 1 and complete: a table with an unlabelled (NaN) row is refused,
because a score over whatever happened to be labelled is not comparable with any other.
"""

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Average = Literal["macro", "micro", "samples"]

EPS = 1e-7  # the RSNA 2019 log loss clips probabilities to EPS..1 - EPS
LIMIT = float(np.log((1 - EPS) / EPS))  # the same bound as a logit


def weighted_log_loss(y: ArrayLike, p: ArrayLike, weights: ArrayLike) -> float:
    """The RSNA 2019 score: mean over slices of the class-weighted binary cross-entropy.

    Per slice sum_c w_c * bce_c / sum_c w_c, with p [n, c] clipped to EPS..1-EPS. The competition's weights
    are 1 for each subtype and 2 for "any" (https://www.kaggle.com/c/rsna-intracranial-hemorrhage-detection,
    Evaluation).
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


def class_auc(y: ArrayLike, p: ArrayLike) -> NDArray[np.float64]:
    """Area under the ROC curve of each class [c], ties counted half; NaN where a class has one label only."""
    labels, scores = checked_pair(y, p)
    return np.array([_auc(labels[:, c], scores[:, c]) for c in range(labels.shape[1])])


def class_average_precision(y: ArrayLike, p: ArrayLike) -> NDArray[np.float64]:
    """Average precision of each class [c], sum of (recall step x precision) without interpolation.

    NaN for a class with one label value only, so that it leaves the macro mean together with its AUC.
    """
    labels, scores = checked_pair(y, p)
    return np.array([_average_precision(labels[:, c], scores[:, c]) for c in range(labels.shape[1])])


def f_beta(y: ArrayLike, positive: ArrayLike, beta: float, average: Average, zero_division: float = 0) -> float:
    """F-beta of the decisions `positive` [n, c], (1 + b^2) TP / ((1 + b^2) TP + b^2 FN + FP).

    macro is the mean over classes, micro pools the counts of all classes, samples is the mean over slices. Where
    neither a positive nor a prediction exists, the ratio 0/0 counts as `zero_division`, as in scikit-learn. With 0 a
    class without positives costs every solution the same, and so does in samples a slice without positives.
    """
    labels, decided = _checked_decisions(y, positive, "F-beta is")
    if average == "samples":
        counts = (np.einsum("nc,nc->n", labels, decided), decided.sum(axis=1), labels.sum(axis=1))
    else:
        counts = (np.einsum("nc,nc->c", labels, decided), decided.sum(axis=0), labels.sum(axis=0))
    if average == "micro":
        counts = (counts[0].sum(), counts[1].sum(), counts[2].sum())
    elif average not in ("macro", "samples"):
        raise ValueError(f"average is {average!r}; it must be 'macro', 'micro' or 'samples'.")
    return float(np.mean(f_from_counts(*counts, beta, zero_division)))


def f_from_counts(
    true: ArrayLike, predicted: ArrayLike, actual: ArrayLike, beta: float, zero_division: float = 0
) -> NDArray[np.float64]:
    """F-beta from true, predicted and actual positives; `zero_division` where there are none of the last two.

    TP + FP = predicted and TP + FN = actual turn the usual formula into (1 + b^2) TP / (b^2 actual +
    predicted).
    """
    if not (np.isfinite(beta) and beta > 0):
        raise ValueError(f"beta is {beta}; it must be a positive number (1 for F1, 2 for F2).")
    square = beta * beta
    below = square * np.asarray(actual, dtype=np.float64) + np.asarray(predicted, dtype=np.float64)
    above = (1 + square) * np.asarray(true, dtype=np.float64)
    return np.where(below > 0, above / np.where(below > 0, below, 1), zero_division)


def confusion(y: ArrayLike, positive: ArrayLike) -> dict[str, NDArray[np.int64] | NDArray[np.float64]]:
    """What the decisions `positive` [n, c] make of each class: arrays [c] by name.

    tp, fp, fn and tn are counts; accuracy, precision, recall and f1 are shares. A share of nothing counts as 0
    (scikit-learn's zero_division=0): the precision without a prediction, the recall without a positive.
    """
    labels, decided = _checked_decisions(y, positive, "A confusion matrix is")
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
    array = np.asarray(values, dtype=np.float64)
    known = array[~np.isnan(array)]
    return float(known.mean()) if known.size else float("nan")


def operating_points(
    labels: NDArray[np.float64], scores: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]:
    """What each possible threshold does: (score, predicted, true) for each distinct score, highest first.

    labels and scores [n], n > 0, must be sorted by falling score. Entry i answers "positive where score >=
    score[i]": predicted[i] slices are positive, true[i] of them rightly. Equal scores cannot be told apart
    and share an entry.
    """
    last = np.flatnonzero(np.append(scores[1:] != scores[:-1], True))
    return scores[last], last + 1, np.cumsum(labels)[last]


def checked_pair(y: ArrayLike, p: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Labels and predictions as two float64 arrays [n, c].

    Raises ValueError for differing or empty shapes, labels other than 0 and 1, and predictions that are not
    finite.
    """
    labels, predictions = np.asarray(y, dtype=np.float64), np.asarray(p, dtype=np.float64)
    if labels.ndim != 2 or labels.shape != predictions.shape or labels.size == 0:
        raise ValueError(f"labels {labels.shape} and predictions {predictions.shape} must be two tables [n, c], n > 0.")
    wrong = np.flatnonzero(~((labels == 0) | (labels == 1)).all(axis=1))
    if wrong.size:
        raise ValueError(f"labels must be 0 or 1; other values or NaN stand in {rows(wrong)}.")
    wrong = np.flatnonzero(~np.isfinite(predictions).all(axis=1))
    if wrong.size:
        raise ValueError(f"predictions must be finite; NaN or infinity stands in {rows(wrong)}.")
    return labels, predictions


def checked_probabilities(y: ArrayLike, p: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """As checked_pair, and the predictions must lie in 0..1."""
    labels, probabilities = checked_pair(y, p)
    wrong = np.flatnonzero(~((probabilities >= 0) & (probabilities <= 1)).all(axis=1))
    if wrong.size:
        raise ValueError(f"probabilities must lie in 0..1 (are these logits?); see {rows(wrong)}.")
    return labels, probabilities


def checked_weights(weights: ArrayLike, classes: int) -> NDArray[np.float64]:
    """Class weights [c] scaled to sum to 1; ValueError for negative ones, only zeros or another length."""
    array = np.asarray(weights, dtype=np.float64)
    if array.shape != (classes,) or not (np.isfinite(array).all() and (array >= 0).all() and array.sum() > 0):
        raise ValueError(f"class weights {array.tolist()} must be {classes} numbers >= 0, not all of them 0.")
    return array / array.sum()


def rows(numbers: NDArray[np.intp], most: int = 5) -> str:
    """The offending rows in words, for an error message: "3 rows: 4, 17, 20"."""
    shown = ", ".join(str(number) for number in numbers[:most]) + (", ..." if len(numbers) > most else "")
    return f"{len(numbers)} row{'s' if len(numbers) > 1 else ''}: {shown}"


def _checked_decisions(y: ArrayLike, positive: ArrayLike, what: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    labels, decided = checked_pair(y, positive)
    if not ((decided == 0) | (decided == 1)).all():
        raise ValueError(f"{what} taken of decisions (true or false), not of probabilities; apply thresholds first.")
    return labels, decided


def _descending(labels: NDArray[np.float64], scores: NDArray[np.float64]) -> tuple[NDArray, NDArray]:
    order = np.argsort(-scores)
    return labels[order], scores[order]


def _auc(labels: NDArray[np.float64], scores: NDArray[np.float64]) -> float:
    _, predicted, true = operating_points(*_descending(labels, scores))
    positives, negatives = true[-1], predicted[-1] - true[-1]
    if positives == 0 or negatives == 0:
        return float("nan")
    hit = np.concatenate([[0.0], true]) / positives
    alarm = np.concatenate([[0.0], predicted - true]) / negatives
    return float(np.trapezoid(hit, alarm))


def _average_precision(labels: NDArray[np.float64], scores: NDArray[np.float64]) -> float:
    _, predicted, true = operating_points(*_descending(labels, scores))
    positives = true[-1]
    if positives in {0, predicted[-1]}:
        return float("nan")
    return float(np.sum(np.diff(true, prepend=0.0) / positives * (true / predicted)))
