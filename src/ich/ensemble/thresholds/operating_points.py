"""Operating points of a class, and the exact optima of macro and micro F-beta among them.

With the rows sorted by falling probability there is one operating point per distinct probability, and its counts are
cumulative sums. F-beta is a step function of the threshold. Of the best thresholds, the middle of the widest run of
adjacent operating points is taken: it is furthest from where the score changes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ich.ensemble.metrics import f_from_counts, operating_points

Column = NDArray[np.float64]

NEVER = 2.0  # a threshold above all probabilities; unlike infinity it can be written to JSON
ALIKE = 1e-15  # equal scores differ by a rounding or two, others by 1 / rows^2 at least


@dataclass(frozen=True)
class Ladder:
    """Groups of thresholds with the same decisions, falling [g]: low < threshold <= high.

    The first group may be that of the thresholds above all rows, up to NEVER. Groups i and i + 1 are adjacent where
    low[i] = high[i + 1].
    """

    high: Column
    low: Column

    def middle_of_widest(self, best: NDArray[np.bool_]) -> float:
        """The middle of the widest run of adjacent groups among the `best`; of equally wide ones, the highest."""
        index = np.flatnonzero(best)
        breaks = np.flatnonzero(self.low[index[:-1]] != self.high[index[1:]])
        first, last = index[np.append(0, breaks + 1)], index[np.append(breaks, len(index) - 1)]
        widest = int(np.argmax(np.minimum(self.high[first], 1.0) - self.low[last]))
        return self._middle(first[widest], last[widest])

    def middle_around(self, alike: NDArray[np.bool_], at: int) -> float:
        """The middle of the run of adjacent groups among `alike` that contains group `at`."""
        breaks = np.flatnonzero(~(alike[1:] & alike[:-1] & (self.low[:-1] == self.high[1:])))
        first = breaks[breaks < at].max(initial=-1) + 1
        return self._middle(first, breaks[breaks >= at].min(initial=len(alike) - 1))

    def _middle(self, first: np.intp, last: np.intp) -> float:
        """The threshold in the middle of the groups first..last, as far as they lie in 0..1."""
        high, low = min(float(self.high[first]), 1.0), float(self.low[last])
        if low >= 1:
            return NEVER
        half = low + (high - low) / 2
        return half if half > low else high


@dataclass(frozen=True)
class Steps(Ladder):
    """The allowed thresholds of a class that may be best; one just below a negative row never is.

    predicted, true [g]: rows and positives at or above each, sums of weights if rows are weighted. actual: all
    positives; a class without positives has only the group above all rows.
    """

    predicted: Column
    true: Column
    actual: float

    @classmethod
    def of(
        cls,
        labels: Column,
        scores: Column,
        *,
        min_recall: float = 0.0,
        shrink: float = 0.0,
        factors: tuple[float, float] = (1.0, 1.0),
        copies: Column | float = 1.0,
    ) -> "Steps":
        """From labels and scores [n], sorted by falling score.

        min_recall: minimum recall of the thresholds. shrink: a row counts as w y + (1 - w) p of a positive, w =
        positives / (positives + shrink). factors: weights of a positive and a negative row; the scores are
        probabilities among the weighted rows. copies [n]: the number of rows that each one represents.
        """
        score, until, hits = operating_points(copies * labels, scores)
        predicted = np.cumsum(np.broadcast_to(copies, labels.shape))[until - 1]
        positives, (gain, cost) = hits[-1], factors
        true, kept = hits, np.flatnonzero(np.diff(hits, prepend=0) > 0)
        if shrink > 0 and positives:
            weight = positives / (positives + shrink)
            chance = cost * scores / (cost * scores + gain * (1 - scores))  # among the rows as they are
            true = weight * hits + (1 - weight) * np.cumsum(copies * chance)[until - 1]
            kept = np.arange(len(score))
        constrained = min_recall > 0 and positives
        kept = kept[hits[kept] / positives >= min_recall] if constrained else np.append(-1, kept)
        high, low = np.append(score, NEVER), np.append(np.append(score[1:], 0.0), score[0])
        true, predicted = np.append(true, 0.0)[kept], np.append(predicted, 0)[kept]
        return cls(
            high[kept], low[kept], gain * true + cost * (predicted - true), gain * true, gain * float(true.max())
        )


def best_macro(steps: Steps, beta: float, zero_division: float = 0) -> tuple[float, float]:
    """The threshold with the highest F-beta of one class, and that F-beta; NEVER without positives."""
    if steps.actual == 0:
        return NEVER, float(zero_division)
    values = f_from_counts(steps.true, steps.predicted, steps.actual, beta)
    best = values.max()
    return steps.middle_of_widest(values >= best * (1 - ALIKE)), float(best)


def best_micro(classes: Sequence[Steps], beta: float, zero_division: float = 0) -> tuple[list[float], float]:
    """The thresholds with the highest pooled F-beta, and that F-beta; NEVER for a class without positives.

    F = N / D with N = (1 + b^2) TP and D = b^2 P + predicted, both sums over classes. For a given v, the maximum of
    N - v D separates by class. v becomes the F found, until it no longer rises (Dinkelbach, "On nonlinear fractional
    programming", 1967). Then no thresholds are better, as theirs would have N - v D > 0. About six iterations.
    """
    if not any(one.actual for one in classes):
        return [NEVER] * len(classes), float(zero_division)
    weight, actual = 1 + beta * beta, beta * beta * sum(one.actual for one in classes)
    n, d = 0.0, 1.0
    while True:
        gains = [micro_gain(one, beta, n, d) for one in classes]
        at = [int(gain.argmax()) for gain in gains]
        more = weight * sum(one.true[k] for one, k in zip(classes, at, strict=True))
        cost = actual + sum(one.predicted[k] for one, k in zip(classes, at, strict=True))
        if more * d <= n * cost * (1 + ALIKE):
            break
        n, d = float(more), float(cost)
    thresholds = [
        one.middle_of_widest(gain >= gain.max() - 4 * ALIKE * n * d) if one.actual else NEVER
        for one, gain in zip(classes, gains, strict=True)
    ]
    return thresholds, n / d


def micro_gain(steps: Steps, beta: float, n: float, d: float) -> Column:
    """The contribution of each operating point to N - v D at v = n / d, times d so that integers stay integers."""
    return (1 + beta * beta) * d * steps.true - n * steps.predicted
