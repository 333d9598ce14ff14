"""How sure a score is: percentile intervals of the bootstrap over patients."""

from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike

from ich.ensemble.metrics import class_auc


def auc_interval(
    y: ArrayLike, p: ArrayLike, patients: ArrayLike, *, resamples: int = 1000, level: float = 0.95, seed: int = 7
) -> tuple[float, float, float]:
    """The AUC of labels y [n] and scores p [n], and the ends of its interval.

    `patients` [n] says whose each row is: patients are drawn with replacement, with all their rows, because rows of one
    patient are not independent (Efron and Tibshirani, "An introduction to the bootstrap", 1993, chapter 13). Draws
    in which one label is missing have no AUC and are left out. NaN where there is no AUC at all.
    """
    labels, scores = np.asarray(y, dtype=np.float64), np.asarray(p, dtype=np.float64)
    value = float(class_auc(labels[:, None], scores[:, None])[0])
    if np.isnan(value):
        return value, value, value
    _, owner = np.unique(np.asarray(patients), return_inverse=True)
    order = np.argsort(owner, kind="stable")
    starts = np.append(np.flatnonzero(np.diff(owner[order], prepend=-1)), len(order))
    rows_of = [order[a:b] for a, b in pairwise(starts)]
    random = np.random.default_rng(seed)
    found = np.empty(resamples)
    for k in range(resamples):
        rows = np.concatenate([rows_of[i] for i in random.integers(len(rows_of), size=len(rows_of))])
        found[k] = class_auc(labels[rows, None], scores[rows, None])[0]
    tail = 100 * (1 - level) / 2
    low, high = np.nanpercentile(found, [tail, 100 - tail]) if not np.isnan(found).all() else (np.nan, np.nan)
    return value, float(low), float(high)
