"""Confidence intervals of scores: percentile intervals of the bootstrap over patients.

Patients are drawn with replacement, with all their rows, because rows of one patient are not independent (Efron and
Tibshirani, "An introduction to the bootstrap", 1993, chapter 13).
"""

from collections.abc import Mapping
from copy import copy
from functools import cached_property
from typing import Self

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csc_array

from ich.ensemble.metrics import class_auc

LEVEL = 0.95  # of all confidence intervals
BINS = 8192  # of scores, in which a draw's AUC and average precision are computed


class Bootstrap:
    """The same draws of patients for every score, so that two scores can be compared draw by draw.

    owner [n]: index of each row's patient, 0..g-1; counts float64 [b, g]: how often each draw contains each patient.
    """

    def __init__(self, patients: ArrayLike, *, resamples: int = 1000, seed: int = 7) -> None:
        self.owner, names = pd.factorize(np.asarray(patients), sort=True)
        random, g = np.random.default_rng(seed), len(names)
        self.counts = np.empty((resamples, g))
        for draw in self.counts:
            draw[:] = np.bincount(random.integers(g, size=g), minlength=g)

    def of_rows(self, rows: NDArray[np.integer]) -> Self:
        """The same draws for some of the rows."""
        some = copy(self)
        some.owner = self.owner[rows]
        return some

    def sums(self, values: ArrayLike) -> NDArray[np.float64]:
        """Sum of `values` [n] over the rows of each draw [b]."""
        of_patient = np.bincount(
            self.owner, weights=np.asarray(values, dtype=np.float64), minlength=self.counts.shape[1]
        )
        # einsum, not BLAS, whose last bits depend on the number of threads
        return np.einsum("bg,g->b", self.counts, of_patient)

    def means(self, values: ArrayLike) -> NDArray[np.float64]:
        """Mean of `values` [n] over the rows of each draw [b]."""
        return self.sums(values) / self.sums(np.ones(len(self.owner)))

    def ranks(self, labels: ArrayLike, scores: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """AUC and average precision per draw [b] of labels and scores [n]; NaN in a draw of one label only.

        Exact where at most BINS / 2 - 1 distinct scores belong to positives. Otherwise scores are binned, with at most
        2 / BINS of the positives and of the negatives in a bin (equal scores may exceed it), and an AUC changes by less
        than 1 / BINS. Measured: an AUC by 1e-6, an average precision by 1e-4.
        """
        positive, ranks = np.asarray(labels) > 0, _bins(np.asarray(labels, dtype=np.float64), np.asarray(scores))
        bins = int(ranks.max()) + 1
        # rows per bin and patient, the positives' bins above the negatives': whole numbers, exact in float32
        entry = (np.where(positive, ranks, ranks + bins), self.owner)
        table = csc_array((np.ones(len(ranks), np.float32), entry), shape=(2 * bins, self.counts.shape[1]))
        found = [_rank_scores(table @ block, bins) for block in self._blocks]
        auc, precision = np.concatenate(found, axis=1)
        return auc, precision

    @cached_property
    def _blocks(self) -> list[NDArray[np.float32]]:
        """The counts in blocks [g, at most 64 draws], so that a product with a sparse table stays within the cache."""
        blocks = range(0, len(self.counts), 64)
        return [np.ascontiguousarray(self.counts[k : k + 64].T, dtype=np.float32) for k in blocks]


def interval(draws: NDArray[np.float64]) -> tuple[float, float]:
    """The ends of the 95 % percentile interval of a score's draws [b], ignoring NaN."""
    if np.isnan(draws).all():
        return float("nan"), float("nan")
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.nanpercentile(draws, [tail, 100 - tail])
    return float(low), float(high)


def simplest(losses: Mapping[str, NDArray[np.float64]]) -> str:
    """The simplest candidate that no later one beats significantly.

    losses: the draws [b] of each, the simplest first, lower is better. A later candidate replaces the current one only
    if the interval of their difference lies below 0.
    """
    best = next(iter(losses))
    for name in losses:
        if interval(losses[name] - losses[best])[1] < 0:
            best = name
    return best


def auc_interval(
    y: ArrayLike, p: ArrayLike, patients: ArrayLike, *, resamples: int = 1000
) -> tuple[float, float, float]:
    """The AUC of labels y [n] and scores p [n] of `patients` [n], and the ends of its interval; NaN for one label."""
    labels, scores = np.asarray(y, dtype=np.float64), np.asarray(p, dtype=np.float64)
    value = float(class_auc(labels[:, None], scores[:, None])[0])
    auc, _ = Bootstrap(patients, resamples=resamples).ranks(labels, scores)
    return value, *interval(auc)


def _bins(labels: NDArray[np.float64], scores: NDArray[np.float64]) -> NDArray[np.intp]:
    """The bin of each row, 0 for the highest scores; equal scores share one.

    Negatives with no positive between them share a bin, which changes neither metric. If that leaves more than BINS, a
    bin ends at every 2 / BINS of the positives and of the negatives.
    """
    order = np.argsort(-scores, kind="stable")
    starts = np.flatnonzero(np.append(True, np.diff(scores[order]) != 0))
    some = np.add.reduceat(labels[order], starts)
    all_ = np.diff(np.append(starts, len(order)))
    new = np.append(True, (some[1:] > 0) | (some[:-1] > 0))
    if new.sum() > BINS:
        share = [np.cumsum(x) * (BINS // 2) // max(x.sum(), 1) for x in (some, all_ - some)]
        new = np.append(True, (np.diff(share[0]) > 0) | (np.diff(share[1]) > 0))
    found = np.empty(len(order), dtype=np.intp)
    found[order] = np.repeat(np.cumsum(new) - 1, all_)
    return found


def _rank_scores(counts: NDArray[np.float32], bins: int) -> NDArray[np.float64]:
    """AUC and average precision [2, b] from the counts [2 * bins, b] of positives, then negatives, by falling score."""
    positives, negatives = counts[:bins], counts[bins:]
    true, false = np.cumsum(positives, axis=0, dtype=np.float64), np.cumsum(negatives, axis=0, dtype=np.float64)
    both = np.where((true[-1] > 0) & (false[-1] > 0), 1.0, np.nan)
    area = np.einsum("kb,kb->b", negatives, true - positives / 2) / np.maximum(true[-1] * false[-1], 1)
    precision = np.einsum("kb,kb->b", positives, true / np.maximum(true + false, 1)) / np.maximum(true[-1], 1)
    return np.stack([area * both, precision * both])
