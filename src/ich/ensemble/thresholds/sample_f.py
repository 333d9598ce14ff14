"""Thresholds for F-beta averaged over slices (samples): coordinate ascent, each coordinate solved exactly.

With the thresholds of all classes but one fixed, a positive decision for a slice changes the F of that slice only. Sums
of these changes in order of falling probability are the scores of all thresholds of the class. The ascent goes through
the classes until none gains. The classes depend on each other, so that this is a local optimum; the best of several
starts is likely, but not certain, to be a global one.
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

    order [n]: rows by falling probability. kept: the groups that are allowed and may be best: that above all rows, and
    those that end with a positive row, as another false positive never helps.
    """

    order: NDArray[np.intp]
    predicted: NDArray[np.int64]
    allowed: NDArray[np.bool_]
    kept: NDArray[np.intp]
    able: bool

    @classmethod
    def of(cls, labels: Column, scores: Column, min_recall: float) -> "Line":
        order = np.argsort(-scores)
        score, predicted, hits = operating_points(labels[order], scores[order])
        positives, hits = hits[-1], np.append(0, hits)
        able = bool(positives > 0)
        allowed = hits / positives >= min_recall if able else hits < 0
        kept = np.flatnonzero(allowed & np.append(True, np.diff(hits) > 0))
        return cls(np.append(NEVER, score), np.append(score, 0.0), order, np.append(0, predicted), allowed, kept, able)

    def group(self, threshold: float) -> int:
        """The group that a threshold belongs to."""
        return int(np.searchsorted(-self.high, -threshold, side="right")) - 1


class SampleF:
    """The search's state: decisions of all rows, and each class's line.

    y, p [n, c]. Without zero_division a slice without positives scores 0 whatever is decided, and is left out.
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
        self.able = [c for c, line in enumerate(self.lines) if line.able]
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
        """Decide with these thresholds; one that is not allowed becomes the highest that is."""
        self.cuts, self.state = [0] * len(self.lines), self.empty.copy()
        for c in self.able:
            line = self.lines[c]
            self.move(c, max(line.group(thresholds[c]), int(line.allowed.argmax())))

    def move(self, c: int, group: int) -> None:
        """Let class c be decided by a group of its thresholds."""
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
        taken = line.order[: int(line.predicted[self.cuts[c]])]
        without[taken] -= of_true * self.labels[c, taken] + of_predicted
        gain = self.table[without + of_label * self.labels[c]]
        sums = np.append(0.0, np.cumsum(gain[line.order]))[line.predicted]
        return np.where(line.allowed, float(self.f[without].sum()) + sums, -np.inf)

    def ascend(self, choose: Callable[[int, int, Column], int]) -> float:
        """Go round the classes until none gains; the mean F. choose(round, class, values) names a group."""
        for number in range(ROUNDS):
            gained = False
            for c in self.able:
                values = self.values(c)
                group = choose(number, c, values)
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
        """Of each class the middle of the adjacent thresholds that are as good as the one it has.

        One class after the other, its rows decided anew by that middle: the score stays what it is.
        """
        found = [NEVER] * len(self.labels)
        for c in self.able:
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
