"""What every threshold of a class does, and the best of them: exact optima of macro and micro F-beta.

With the rows in order of falling probability, a threshold is a place where the order is cut: one step for each
distinct probability, its counts from one cumulative sum. After the sort an optimum is a look through those sums.

Ties: the score as a function of the threshold is a step function. Of the thresholds with the best score, the widest
run of adjacent steps is taken, and of that its middle: the threshold that is furthest from where the score changes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ich.ensemble.metrics import f_from_counts, operating_points

Column = NDArray[np.float64]

NEVER = 2.0  # a threshold that no probability reaches, and that survives JSON and rounding
ALIKE = 1e-15  # equal scores differ by a rounding or two, others by 1 / rows^2 at least


@dataclass(frozen=True)
class Ladder:
    """Groups of thresholds that decide alike, falling [g]: those in low < t <= high.

    The first may be that of the thresholds above all rows, up to NEVER. Two groups next to each other are adjacent
    where low[i] = high[i + 1].
    """

    high: Column
    low: Column

    def middle(self, first: int, last: int) -> float:
        """The threshold in the middle of the groups first..last, as far as they lie in 0..1."""
        high, low = min(float(self.high[first]), 1.0), float(self.low[last])
        if low >= 1:
            return NEVER
        half = low + (high - low) / 2
        return half if half > low else high

    def widest(self, best: NDArray[np.bool_]) -> tuple[int, int]:
        """First and last group of the widest run of adjacent ones among the `best`; of equally wide, the highest."""
        index = np.flatnonzero(best)
        breaks = np.flatnonzero(self.low[index[:-1]] != self.high[index[1:]])
        first, last = index[np.append(0, breaks + 1)], index[np.append(breaks, len(index) - 1)]
        widest = int(np.argmax(np.minimum(self.high[first], 1.0) - self.low[last]))
        return int(first[widest]), int(last[widest])

    def around(self, alike: NDArray[np.bool_], at: int) -> tuple[int, int]:
        """First and last group of the run of adjacent ones among `alike` that `at` stands in."""
        breaks = np.flatnonzero(~(alike[1:] & alike[:-1] & (self.low[:-1] == self.high[1:])))
        first = int(breaks[breaks < at].max(initial=-1)) + 1
        return first, int(breaks[breaks >= at].min(initial=len(alike) - 1))


@dataclass(frozen=True)
class Steps(Ladder):
    """The thresholds of a class that are allowed and may be best: a cut just below a negative row only costs.

    predicted, true [g]: rows and positives at or above each, sums of weights where rows are weighted. actual: all
    positives; a class without any has the one group that is never predicted.
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

        min_recall: the share of the positives that a threshold must find. shrink: a row counts as w y + (1 - w) p of
        a positive, w = positives / (positives + shrink). factors: what a positive and a negative row weigh; the scores
        are probabilities among the weighted rows. copies [n]: how many rows each one stands for.
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
    """The threshold with the highest F-beta of one class, and that F-beta; without positives NEVER."""
    if steps.actual == 0:
        return NEVER, float(zero_division)
    values = f_from_counts(steps.true, steps.predicted, steps.actual, beta)
    best = values.max()
    return steps.middle(*steps.widest(values >= best * (1 - ALIKE))), float(best)


def best_micro(classes: Sequence[Steps], beta: float, zero_division: float = 0) -> tuple[list[float], float]:
    """The thresholds with the highest pooled F-beta, and that F-beta.

    F = N / D with N = (1 + b^2) TP and D = b^2 P + predicted, both sums over classes. For a value v, N - v D is largest
    where each class's (1 + b^2) TP - v predicted is, so that each class can be looked through on its own; v becomes
    the F of what was found, until it rises no more (Dinkelbach 1967, "On nonlinear fractional programming"). Then v is
    the maximum: at any better thresholds N - v D > 0, and they would have been found. The v rise strictly and there are
    finitely many thresholds, so that it ends, after about six rounds. The best thresholds are those that are best so
    in each class: ties fall apart by class too, and so does the recall that a class must have. A class without
    positives is never predicted.
    """
    able, weight = [one for one in classes if one.actual], 1 + beta * beta
    if not able:
        return [NEVER] * len(classes), float(zero_division)
    actual = beta * beta * sum(one.actual for one in able)
    n, d = 0.0, 1.0
    while True:
        gains = [micro_gain(one, beta, n, d) for one in able]
        at = [int(gain.argmax()) for gain in gains]
        more = weight * sum(one.true[k] for one, k in zip(able, at, strict=True))
        cost = actual + sum(one.predicted[k] for one, k in zip(able, at, strict=True))
        if more * d <= n * cost * (1 + ALIKE):
            break
        n, d = float(more), float(cost)
    found = iter(
        one.middle(*one.widest(gain >= gain.max() - 4 * ALIKE * n * d)) for one, gain in zip(able, gains, strict=True)
    )
    return [next(found) if one.actual else NEVER for one in classes], n / d


def micro_gain(steps: Steps, beta: float, n: float, d: float) -> Column:
    """What each step of a class adds to N - v D at v = n / d, times d, so that whole numbers stay whole."""
    return (1 + beta * beta) * d * steps.true - n * steps.predicted
