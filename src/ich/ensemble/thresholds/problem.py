"""A threshold problem: labels, probabilities and a goal; its exact optimum and its cross-fitted decisions."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ich.ensemble.metrics import Average, refuse_rows
from ich.ensemble.thresholds.operating_points import NEVER, Steps, best_macro, best_micro
from ich.ensemble.thresholds.sample_f import SampleF, best_samples

FEW = 50  # positives below which a threshold is unreliable: tuned minus cross-fitted F1 is about 0.05 there


@dataclass(frozen=True)
class Goal:
    """The maximised score: F-beta averaged over classes (macro), pooled (micro) or averaged over slices (samples).

    zero_division: the value of F where there are neither positives nor predictions. min_recall: minimum recall per
    class on the tuning rows, in class order; empty: none. shrink: the number of positives at which a class's labels and
    its probabilities have the same weight (see Steps.of); 0 for samples.
    """

    beta: float
    average: Average = "macro"
    zero_division: float = 0
    min_recall: tuple[float, ...] = ()
    shrink: float = 0.0

    def recall(self, c: int) -> float:
        return self.min_recall[c] if self.min_recall else 0.0


class Problem:
    """Checked labels y and probabilities p, float64 [n, c] with contiguous columns, and the goal.

    Raises ValueError, naming rows and class, for labels other than 0 and 1 and for probabilities outside 0..1 or NaN.
    """

    def __init__(self, y: ArrayLike, p: ArrayLike, classes: Sequence[str], goal: Goal) -> None:
        self.y, self.p = np.asfortranarray(y, dtype=np.float64), np.asfortranarray(p, dtype=np.float64)
        self.classes, self.goal = classes, goal
        if self.y.shape != self.p.shape or self.y.shape[1:] != (len(classes),) or self.y.size == 0:
            raise ValueError(
                f"labels {self.y.shape} and probabilities {self.p.shape} must both be [n, {len(classes)}], n > 0."
            )
        for name, labels, scores in zip(classes, self.y.T, self.p.T, strict=True):
            refuse_rows(~((labels == 0) | (labels == 1)), f"labels of {name} must be 0 or 1")
            within = (scores >= 0) & (scores <= 1)
            refuse_rows(~within, f"probabilities of {name} must lie in 0..1 (are these logits?) and not be NaN")
        self.order = [np.argsort(-scores) for scores in self.p.T]

    def steps(
        self, factors: Sequence[tuple[float, float]] | None = None, kept: NDArray[np.bool_] | None = None
    ) -> list[Steps]:
        """The operating points of each class; of the rows `kept` [n] only. factors: see Steps.of."""
        found = []
        for c, order in enumerate(self.order):
            some = order if kept is None else order[kept[order]]
            found.append(
                Steps.of(
                    self.y[some, c],
                    self.p[some, c],
                    min_recall=self.goal.recall(c),
                    shrink=self.goal.shrink,
                    factors=factors[c] if factors else (1.0, 1.0),
                )
            )
        return found

    def best(self, steps: Sequence[Steps], kept: NDArray[np.bool_] | None = None) -> tuple[list[float], float]:
        """The exact thresholds in class order, and the value of the goal that they reach."""
        beta, zero = self.goal.beta, self.goal.zero_division
        if self.goal.average == "micro":
            return best_micro(steps, beta, zero)
        found = [best_macro(one, beta, zero) for one in steps]
        macro = [threshold for threshold, _ in found]
        if self.goal.average == "macro":
            return macro, float(np.mean([value for _, value in found]))
        ends = [[end] * len(steps) for end in (NEVER, 0.0)]
        return best_samples(self.sample_f(kept), [macro, best_micro(steps, beta, zero)[0], *ends])

    def sample_f(self, kept: NDArray[np.bool_] | None = None) -> SampleF:
        y, p = (self.y, self.p) if kept is None else (self.y[kept], self.p[kept])
        recall = [self.goal.recall(c) for c in range(len(self.classes))]
        return SampleF(y, p, self.goal.beta, self.goal.zero_division, recall)

    def cross_fitted(self, fold: NDArray) -> NDArray[np.float64]:
        """Thresholds [n, c] of each row: the exact ones of the folds that it is not in."""
        found = np.empty(self.y.shape)
        for number in np.unique(fold):
            here = fold == number
            found[here], _ = self.best(self.steps(kept=~here), ~here)
        return found

    def warnings(self, thresholds: Sequence[float]) -> list[str]:
        found = []
        for name, labels, scores, threshold in zip(self.classes, self.y.T, self.p.T, thresholds, strict=True):
            positives = int(labels.sum())
            if positives == 0:
                found.append(f"{name}: no positive row; its threshold is {NEVER:g}, so it is never predicted.")
            elif positives == len(labels):
                found.append(f"{name}: every row is positive; its threshold is arbitrary for new rows.")
            elif positives < FEW:
                found.append(f"{name}: only {positives} positive rows; trust the cross-fitted score.")
            if scores.min() == scores.max():
                found.append(f"{name}: all rows have the same probability; there is nothing to tune.")
            if positives and threshold > scores.max():
                found.append(f"{name}: the best {self.goal.average} score comes from never predicting it.")
        return found
