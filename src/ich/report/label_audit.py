"""Which labels look wrong: breaks in a study's labels, and labels that the out-of-fold probabilities contradict."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score

Labels = NDArray[np.floating]  # [n, c] of 0, 1 and NaN for unknown
Codes = NDArray[np.integer]

EDGE = 1e-7  # probabilities stay this far from 0 and 1


def patterns(labels: Labels, series: Codes, index: Codes) -> NDArray[np.bool_]:
    """Labels that differ from those of both neighbouring slices, bool [n, c]: the inner ones of 101, 010, 10101.

    series [n] holds a code a series and index [n] the slice's place in it; rows may stand in any order. A slice
    that is missing is nobody's neighbour, so the ends of a series are never flagged, nor is an unknown label or one
    beside an unknown one. (docs/background/seeds.md, HOHOHO: search for mislabelled slices)
    """
    before, after = _neighbours(labels, series, index)
    return (before == 1 - labels) & (after == 1 - labels)


def disagreement(labels: Labels, probability: NDArray[np.floating]) -> NDArray[np.float64]:
    """Log loss of each written label, float64 [n, c]; the probability is that of a model that never saw the label."""
    p = probability.astype(np.float64).clip(EDGE, 1 - EDGE)
    return np.where(np.isnan(labels), np.nan, -np.log(np.where(labels == 1, p, 1 - p)))


def suspicion(labels: Labels, probability: NDArray[np.floating], series: Codes, index: Codes) -> NDArray[np.float64]:
    """Log odds that a label is wrong, float64 [n, c], by two witnesses: the picture and the neighbours' labels.

    The first is the out-of-fold probability p(y | picture). The second, p(y | neighbours), is the frequency of the
    label among the class's other slices with as many known and as many positive neighbours: 1 is rare between two 0
    and 0 is rare between two 1, so a break in a run adds most, and a slice inside a run that a network overlooks is
    acquitted, while at the ends of a lesion the picture decides. Where the witnesses are independent given y,
    p(y | both) is proportional to p(y | picture) p(y | neighbours) / p(y).
    """
    p = probability.astype(np.float64).clip(EDGE, 1 - EDGE)
    known = ~np.isnan(labels)
    share = (np.where(known, labels, 0).sum(axis=0) + 1) / (known.sum(axis=0) + 2)
    positive = _logit(p) - _logit(share) + _logit(_by_neighbours(labels, series, index))
    return np.where(known, np.where(labels == 1, -positive, positive), np.nan)


def _by_neighbours(labels: Labels, series: Codes, index: Codes) -> NDArray[np.float64]:
    """p(label is 1 | how many neighbours are known, how many of them 1) [n, c], counted without the label itself."""
    beside = np.stack(_neighbours(labels, series, index))
    cell = 3 * (~np.isnan(beside)).sum(axis=0) + np.nansum(beside, axis=0).astype(int)
    known, ones = ~np.isnan(labels), np.where(np.isnan(labels), 0, labels)
    found = np.empty(labels.shape)
    for k in range(labels.shape[1]):
        count = np.bincount(cell[:, k], known[:, k], minlength=9)[cell[:, k]] - known[:, k]
        found[:, k] = (np.bincount(cell[:, k], ones[:, k], minlength=9)[cell[:, k]] - ones[:, k] + 1) / (count + 2)
    return found


def _neighbours(labels: Labels, series: Codes, index: Codes) -> tuple[Labels, Labels]:
    """The labels [n, c] of the slices just before and just after, NaN where there is none."""
    if labels.ndim != 2 or not len(labels) == len(series) == len(index):
        raise ValueError(
            f"labels {list(labels.shape)} [n, c], {len(series)} series and {len(index)} indices do not fit"
        )
    order = np.lexsort((index, series))
    joined = (np.diff(series[order]) == 0) & (np.diff(index[order]) == 1)
    before, after = np.full(labels.shape, np.nan), np.full(labels.shape, np.nan)
    before[order[1:][joined]] = labels[order[:-1][joined]]
    after[order[:-1][joined]] = labels[order[1:][joined]]
    return before, after


def _logit(p: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.log(p) - np.log1p(-p)


def ranked(slices: pd.DataFrame, classes: Sequence[str], probability: NDArray[np.floating], most: int) -> pd.DataFrame:
    """The suspicious labels, worst first: those that break a pattern, and the `most` of the largest suspicion.

    slices: image_id, study_id, series (a code), index and a column a class (0, 1, NaN), in any order; probability
    [n, c] is theirs. Columns: rank (from 1), image_id, study_id, index, class, label, probability, pattern (0 or 1),
    disagreement, suspicion.
    """
    labels, series, index = (
        slices[list(classes)].to_numpy(float),
        slices["series"].to_numpy(),
        slices["index"].to_numpy(),
    )
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


@dataclass(frozen=True)
class Judged:
    """How a rule finds the labels that are wrong."""

    flagged: int
    precision: float
    """Share of the flagged labels that are wrong; NaN where nothing is flagged."""
    recall: float
    """Share of the wrong labels that are flagged; NaN where nothing is wrong."""
    average_precision: float
    """Of the ranking; NaN for a rule that does not rank, and where nothing is wrong."""


def judge_set(wrong: NDArray[np.bool_], flagged: NDArray[np.bool_]) -> Judged:
    """A rule that flags labels [n, c], against those that are wrong [n, c]."""
    hits, count, errors = int((wrong & flagged).sum()), int(flagged.sum()), int(wrong.sum())
    return Judged(count, hits / count if count else np.nan, hits / errors if errors else np.nan, np.nan)


def judge_ranking(wrong: NDArray[np.bool_], score: NDArray[np.floating]) -> Judged:
    """A score of every label [n, c] against those that are wrong [n, c]; it flags as many as are wrong, largest first.

    NaN is no score: such labels come last and are never flagged.
    """
    flat, errors = np.where(np.isnan(score), -np.inf, score).ravel(), int(wrong.sum())
    order = np.argsort(-flat, kind="stable")[:errors]
    flagged = np.zeros(wrong.size, dtype=bool)
    flagged[order[np.isfinite(flat[order])]] = True
    found = judge_set(wrong, flagged.reshape(wrong.shape))
    finite = flat.clip(np.finfo(float).min, np.finfo(float).max)
    ap = float(average_precision_score(wrong.ravel(), finite)) if errors else np.nan
    return Judged(found.flagged, found.precision, found.recall, ap)
