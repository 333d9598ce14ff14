"""Curves of a class over all thresholds, [k, 2], thinned to the points that an eye can tell from all of them."""

from collections.abc import Sequence
from heapq import heapify, heappop, heappush
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

Points = NDArray[np.float64]

ALIKE = 5e-4  # of the unit square: a fifth of a pixel on a plot of 400
MOST = 300  # points of a curve


def roc(predicted: ArrayLike, true: ArrayLike, most: int = MOST) -> Points:
    """False positive rate and sensitivity; predicted and true [g]: rows and positives at or above each falling score.

    The last entry holds all rows. There have to be positives and negatives.
    """
    hits, alarms = _counts(predicted, true)
    points = np.column_stack([alarms / alarms[-1], hits / hits[-1]])
    return thinned(np.vstack([[[0.0, 0.0]], points]), most)


def precision_recall(predicted: ArrayLike, true: ArrayLike, most: int = MOST) -> Points:
    """Recall and precision of the same; nothing is drawn left of the highest score."""
    hits, alarms = _counts(predicted, true)
    return thinned(np.column_stack([hits / hits[-1], hits / (hits + alarms)]), most)


def by_threshold(scores: ArrayLike, values: ArrayLike, most: int = MOST) -> Points:
    """Square roots of the thresholds 1..0 and what each one is worth; values [g] of the falling, distinct scores [g].

    A threshold between two scores is worth what the upper one is, one above all scores 0. The highest value is kept.
    """
    score, value = np.asarray(scores, dtype=np.float64), np.asarray(values, dtype=np.float64)
    x = np.repeat(np.concatenate([[1.0], score, [0.0]]), 2)[1:-1]
    y = np.repeat(np.concatenate([[0.0], value]), 2)
    best = 2 + 2 * int(np.argmax(value))
    return thinned(np.column_stack([np.sqrt(x), y]), most, [best])


def thinned(points: Points, most: int = MOST, kept: Sequence[int] = ()) -> Points:
    """At most so many of the points [n, 2] of a line: its ends, those `kept`, and the corners that it needs most.

    Douglas and Peucker, "Algorithms for the reduction of the number of points" (1973), the widest gap first, until
    none is wider than ALIKE. Of points next to each other in a cell of half that width only the first is looked at.
    """
    cell = np.floor(points * (2 / ALIKE))
    seen = np.append(True, (cell[1:] != cell[:-1]).any(axis=1))
    seen[[-1, *kept]] = True
    places = np.flatnonzero(seen)
    few, at = points[places], sorted({0, *np.searchsorted(places, kept).tolist(), len(places) - 1})
    gaps = [_widest(few, a, b) for a, b in pairwise(at)]
    heapify(gaps)
    while gaps and len(at) < most and gaps[0][0] < -ALIKE:
        _, a, corner, b = heappop(gaps)
        at.append(corner)
        heappush(gaps, _widest(few, a, corner))
        heappush(gaps, _widest(few, corner, b))
    return few[sorted(at)]


def _widest(points: Points, a: int, b: int) -> tuple[float, int, int, int]:
    """Minus the largest distance of the points between a and b from the line from one to the other, and its point."""
    if b - a < 2:
        return 0.0, a, a, b
    (u, v), (x, y) = points[b] - points[a], (points[a + 1 : b] - points[a]).T
    length = u * u + v * v
    share = np.clip((x * u + y * v) / length, 0, 1) if length > 0 else np.zeros(len(x))
    distance = np.hypot(x - share * u, y - share * v)
    corner = int(distance.argmax())
    return -float(distance[corner]), a, a + 1 + corner, b


def _counts(predicted: ArrayLike, true: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    hits = np.asarray(true, dtype=np.float64)
    return hits, np.asarray(predicted, dtype=np.float64) - hits
