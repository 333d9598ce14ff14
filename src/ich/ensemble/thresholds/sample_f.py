"""Thresholds for F-beta averaged over slices (samples): coordinate ascent, each coordinate solved exactly.

With the thresholds of all other classes fixed, a positive decision changes the F of its slice only. Cumulative sums of
these changes by falling probability are the scores of all thresholds of the class. The ascent visits the classes in
turn until none gains. This ends at a local optimum; with several starts it is nearly always the global one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ich.ensemble.metrics import f_from_counts, operating_points
from ich.ensemble.thresholds.operating_points import NEVER, Column, Ladder

ROUNDS = 50  # at most; four are usual
NOISE = 1e-9  # of one slice's F: sums that differ by less are equal


@dataclass(frozen=True)
class Line(Ladder):
    """All thresholds of a class, the first above all rows: the rows [g] at or above each, and which are allowed.

    order [n]: rows by falling probability. kept: the allowed groups that may be best: that above all rows, and those
    that end with a positive row. tunable: there is a positive row.
    """

    order: NDArray[np.intp]
    predicted: NDArray[np.int64]
    allowed: NDArray[np.bool_]
    kept: NDArray[np.intp]
    tunable: bool

    @classmethod
    def of(cls, labels: Column, scores: Column, min_recall: float) -> "Line":
        order = np.argsort(-scores)
        score, predicted, hits = operating_points(labels[order], scores[order])
        positives, hits = hits[-1], np.append(0, hits)
        allowed = hits / positives >= min_recall if positives else hits < 0
        kept = np.flatnonzero(allowed & np.append(True, np.diff(hits) > 0))
        high, low = np.append(NEVER, score), np.append(score, 0.0)
        return cls(high, low, order, np.append(0, predicted), allowed, kept, tunable=bool(positives))

    def group(self, threshold: float) -> int:
        """Index of the group that contains a threshold."""
        return int(np.searchsorted(-self.high, -threshold, side="right")) - 1


class SampleF:
    """The state of the ascent: the thresholds of all classes, and the decisions of all rows.

    y, p [n, c]. Without zero_division a slice without positives always scores 0, and is excluded.
    """

    def __init__(self, y: NDArray, p: NDArray, beta: float, zero_division: float, min_recall: Sequence[float]) -> None:
        self.rows = len(y)
        kept = y.any(axis=1) if zero_division == 0 else np.ones(len(y), dtype=bool)
        self.labels = np.ascontiguousarray(y[kept].T, dtype=np.int64)
        columns = [np.ascontiguousarray(column) for column in p[kept].T]
        self.lines: list[Line] = []
        if kept.any():
            rows = zip(self.labels, columns, min_recall, strict=True)
            self.lines = [Line.of(labels.astype(np.float64), column, recall) for labels, column, recall in rows]
        self.tunable = [c for c, line in enumerate(self.lines) if line.tunable]
        k = len(self.labels) + 1
        true, predicted, actual = np.meshgrid(*[np.arange(k + 1)] * 3, indexing="ij")
        f = f_from_counts(true, predicted, actual, beta, zero_division)
        # F gained by one more decision, by label and by [true, predicted, actual] before it
        self.table, self.f = np.stack([np.roll(f, (-r, -1), (0, 1)) - f for r in (0, 1)]).ravel(), f.ravel()
        self.strides = ((k + 1) ** 2, k + 1, (k + 1) ** 3)  # of true, predicted and the label
        self.empty = self.labels.sum(axis=0)
        self.cuts = [0] * len(self.lines)
        self.state = self.empty.copy()

    def start(self, thresholds: Sequence[float]) -> None:
        """Set the thresholds [c]; one that is not allowed becomes the highest that is."""
        self.cuts, self.state = [0] * len(self.lines), self.empty.copy()
        for c in self.tunable:
            line = self.lines[c]
            self.move(c, max(line.group(thresholds[c]), int(line.allowed.argmax())))

    def move(self, c: int, group: int) -> None:
        """Set the threshold of class c to one of its groups."""
        line, (of_true, of_predicted, _) = self.lines[c], self.strides
        first, last = sorted((int(line.predicted[self.cuts[c]]), int(line.predicted[group])))
        changed = line.order[first:last]
        step = of_true * self.labels[c, changed] + of_predicted
        self.state[changed] += step if group > self.cuts[c] else -step
        self.cuts[c] = group

    def values(self, c: int) -> Column:
        """The sum of the slices' F by the threshold of class c [g]; -inf where it is not allowed."""
        line, (of_true, of_predicted, of_label) = self.lines[c], self.strides
        without = self.state.copy()
        positive = line.order[: int(line.predicted[self.cuts[c]])]
        without[positive] -= of_true * self.labels[c, positive] + of_predicted
        gain = self.table[without + of_label * self.labels[c]]
        sums = np.append(0.0, np.cumsum(gain[line.order]))[line.predicted]
        return np.where(line.allowed, float(self.f[without].sum()) + sums, -np.inf)

    def ascend(self, best_group: Callable[[int, int, Column], int]) -> float:
        """Move each class in turn to best_group(round, class, values) until none gains; the mean F."""
        for number in range(ROUNDS):
            gained = False
            for c in self.tunable:
                values = self.values(c)
                group = best_group(number, c, values)
                if values[group] > values[self.cuts[c]] + NOISE:
                    self.move(c, group)
                    gained = True
            if not gained:
                break
        return self.score

    @property
    def score(self) -> float:
        return float(self.f[self.state].sum()) / self.rows

    def thresholds(self) -> list[float]:
        """Move each class to the middle of the adjacent thresholds with the same score; these thresholds [c]."""
        found = [NEVER] * len(self.labels)
        for c in self.tunable:
            line, values = self.lines[c], self.values(c)
            found[c] = line.middle_around(np.abs(values - values[self.cuts[c]]) <= NOISE, self.cuts[c])
            self.move(c, line.group(found[c]))
        return found


def best_samples(problem: SampleF, starts: Sequence[Sequence[float]]) -> tuple[list[float], float]:
    """The best thresholds that coordinate ascent reaches from the starts (thresholds in class order), and their F."""

    def widest(_round: int, c: int, values: Column) -> int:
        return problem.lines[c].group(problem.lines[c].middle_of_widest(values >= values.max() - NOISE))

    found = []
    for start in starts:
        problem.start(start)
        problem.ascend(widest)
        while True:
            thresholds, reached = problem.thresholds(), problem.score
            if problem.ascend(widest) <= reached:  # the middle of one class's plateau may let another class gain
                break
        found.append((reached, thresholds))
    # equal sums may differ by roundings, which depend on the order of the rows
    score, thresholds = max(found, key=lambda pair: round(pair[0], 12))
    return thresholds, score
