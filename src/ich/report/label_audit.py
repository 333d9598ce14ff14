"""Find labels that are likely wrong: breaks in the labels of a series, and labels that the model contradicts."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import logit
from sklearn.metrics import average_precision_score

Labels = NDArray[np.floating]  # [n, c] of 0, 1 and NaN for unknown
Codes = NDArray[np.integer]

EDGE = 1e-7  # probabilities are clipped to EDGE..1 - EDGE


def patterns(labels: Labels, series: Codes, index: Codes) -> NDArray[np.bool_]:
    """Labels that differ from those of both neighbouring slices, bool [n, c]: the inner ones of 101, 010, 10101.

    series [n] and index [n] give the series of each slice and its place there. Labels with an unknown or missing
    neighbour are never flagged. (docs/background/seeds.md, HOHOHO: search for mislabelled slices)
    """
    before, after = _neighbours(labels, series, index)
    return (before == 1 - labels) & (after == 1 - labels)


def disagreement(labels: Labels, probability: NDArray[np.floating]) -> NDArray[np.float64]:
    """Log loss of each label under the out-of-fold probability, float64 [n, c]; NaN for unknown labels."""
    p = probability.astype(np.float64).clip(EDGE, 1 - EDGE)
    return np.where(np.isnan(labels), np.nan, -np.log(np.where(labels == 1, p, 1 - p)))


def suspicion(labels: Labels, probability: NDArray[np.floating], series: Codes, index: Codes) -> NDArray[np.float64]:
    """Log odds that a label is wrong, float64 [n, c], from the image and from the labels of the neighbours.

    p(y | image) is the out-of-fold probability. p(y | neighbours) is the frequency of the label among slices with as
    many known and as many positive neighbours. If both are independent given y, p(y | both) is proportional to
    p(y | image) p(y | neighbours) / p(y).
    """
    p = probability.astype(np.float64).clip(EDGE, 1 - EDGE)
    known = ~np.isnan(labels)
    share = (np.where(known, labels, 0).sum(axis=0) + 1) / (known.sum(axis=0) + 2)
    positive = logit(p) - logit(share) + logit(_by_neighbours(labels, series, index))
    return np.where(known, np.where(labels == 1, -positive, positive), np.nan)


def _by_neighbours(labels: Labels, series: Codes, index: Codes) -> NDArray[np.float64]:
    """p(label is 1 | number of known and of positive neighbours) [n, c], counted without the label itself."""
    beside = np.stack(_neighbours(labels, series, index))
    cell = 3 * (~np.isnan(beside)).sum(axis=0) + np.nansum(beside, axis=0).astype(int)
    known, ones = ~np.isnan(labels), np.where(np.isnan(labels), 0, labels)
    found = np.empty(labels.shape)
    for k in range(labels.shape[1]):
        count = np.bincount(cell[:, k], known[:, k], minlength=9)[cell[:, k]] - known[:, k]
        found[:, k] = (np.bincount(cell[:, k], ones[:, k], minlength=9)[cell[:, k]] - ones[:, k] + 1) / (count + 2)
    return found


def _neighbours(labels: Labels, series: Codes, index: Codes) -> tuple[Labels, Labels]:
    """Labels [n, c] of the previous and of the next slice; NaN if there is none."""
    order = np.lexsort((index, series))
    joined = (np.diff(series[order]) == 0) & (np.diff(index[order]) == 1)
    before, after = np.full(labels.shape, np.nan), np.full(labels.shape, np.nan)
    before[order[1:][joined]] = labels[order[:-1][joined]]
    after[order[:-1][joined]] = labels[order[1:][joined]]
    return before, after


def rank_labels(
    slices: pd.DataFrame, classes: Sequence[str], probability: NDArray[np.floating], most: int
) -> pd.DataFrame:
    """The `most` suspicious labels and those that break a pattern, the most suspicious first.

    slices: image_id, study_id, series, index and one column per class, in any order; probability [n, c].
    Columns: rank (from 1), image_id, study_id, index, class, label, probability, pattern (0 or 1), disagreement,
    suspicion.
    """
    labels = slices[list(classes)].to_numpy(float)
    series, index = slices["series"].to_numpy(), slices["index"].to_numpy()
    flagged, odds = patterns(labels, series, index), suspicion(labels, probability, series, index)
    order = np.argsort(-odds.ravel(), kind="stable")  # NaN comes last
    order = order[np.isfinite(odds.ravel()[order])]
    place = np.arange(len(order))
    rows, columns = np.unravel_index(order[(place < most) | flagged.ravel()[order]], labels.shape)
    table = slices[["image_id", "study_id", "index"]].iloc[rows].reset_index(drop=True)
    table.insert(0, "rank", np.arange(1, len(rows) + 1))
    return table.assign(
        **{"class": np.asarray(classes, dtype=object)[columns]},
        label=labels[rows, columns].astype(int),
        probability=probability[rows, columns],
        pattern=flagged[rows, columns].astype(int),
        disagreement=disagreement(labels, probability)[rows, columns],
        suspicion=odds[rows, columns],
    )


def evaluate_flags(wrong: NDArray[np.bool_], flagged: NDArray[np.bool_]) -> dict[str, float]:
    """Precision and recall of flagged labels [n, c]; NaN where undefined."""
    hits, count, errors = int((wrong & flagged).sum()), int(flagged.sum()), int(wrong.sum())
    precision, recall = hits / count if count else np.nan, hits / errors if errors else np.nan
    return {"flagged": count, "precision": precision, "recall": recall, "average_precision": np.nan}


def evaluate_ranking(wrong: NDArray[np.bool_], score: NDArray[np.floating]) -> dict[str, float]:
    """The same of a ranking by score [n, c], which flags as many labels as are wrong; NaN scores come last."""
    flat, errors = np.where(np.isnan(score), -np.inf, score).ravel(), int(wrong.sum())
    order = np.argsort(-flat, kind="stable")[:errors]
    flagged = np.zeros(wrong.size, dtype=bool)
    flagged[order[np.isfinite(flat[order])]] = True
    found = evaluate_flags(wrong, flagged.reshape(wrong.shape))
    if errors:
        finite = flat.clip(np.finfo(float).min, np.finfo(float).max)
        found["average_precision"] = float(average_precision_score(wrong.ravel(), finite))
    return found
