"""Curves of one class over all thresholds as points [k, 2], with few enough points for a plot.

Their input are the `operating_points` of a class: the distinct scores [g], highest first, and at each of them the
number of positive predictions and of true positives.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ich.ensemble.metrics import f_from_counts

Points = NDArray[np.float64]
Counts = NDArray[Any]

MOST = 300  # points of a curve


def roc(_scores: Points, predicted: Counts, true: Counts) -> Points:
    """False positive rate and sensitivity. Both labels must occur."""
    false = predicted - true
    points = np.column_stack([false / false[-1], true / true[-1]])
    return thinned(np.vstack([[[0.0, 0.0]], points]))


def precision_recall(_scores: Points, predicted: Counts, true: Counts) -> Points:
    """Recall and precision, from the highest score on."""
    return thinned(np.column_stack([true / true[-1], true / predicted]))


def f_by_threshold(scores: Points, predicted: Counts, true: Counts, beta: float) -> Points:
    """Square roots of the thresholds 1..0, and F-beta at each of them.

    F is constant between two scores, and 0 above all scores. The maximum is kept.
    """
    f = f_from_counts(true, predicted, true[-1], beta)
    x = np.repeat(np.concatenate([[1.0], scores, [0.0]]), 2)[1:-1]
    y = np.repeat(np.concatenate([[0.0], f]), 2)
    return thinned(np.column_stack([np.sqrt(x), y]), 2 + 2 * int(np.argmax(f)))


def thinned(points: Points, *kept: int) -> Points:
    """At most MOST points of a line [n, 2], evenly spaced along it; both ends and the points `kept` are among them."""
    if len(points) <= MOST:
        return points
    along = np.append(0, np.abs(np.diff(points, axis=0)).sum(axis=1).cumsum())
    places = np.searchsorted(along, np.linspace(0, along[-1], MOST - len(kept)))
    return points[np.unique([*places, *kept])]
