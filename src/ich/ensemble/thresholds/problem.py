"""What is to be tuned: labels and probabilities by class, and a goal; its exact optimum and its honest score."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ich.ensemble.metrics import Average, f_beta, f_from_counts, rows
from ich.ensemble.thresholds.operating_points import NEVER, Column, Steps, best_macro, best_micro
from ich.ensemble.thresholds.sample_f import SampleF, best_samples

FEW = 50  # positives below which a tuned threshold is a guess: tuned minus honest F1 is about 0.05 there


@dataclass(frozen=True)
class Goal:
    """What thresholds maximise: F-beta averaged over classes (macro), pooled (micro) or over slices (samples).

    zero_division: what F counts where there is nothing to find and nothing is predicted. min_recall: the share of its
    positives that each class must find on the rows that tune, in class order; empty: none. shrink: the number of
    positives with which a class's labels and its probabilities weigh alike (see Steps.of).
    """

    beta: float
    average: Average = "macro"
    zero_division: float = 0
    min_recall: tuple[float, ...] = ()
    shrink: float = 0.0

    def recall(self, c: int) -> float:
        return self.min_recall[c] if self.min_recall else 0.0


@dataclass(frozen=True)
class Problem:
    """Labels and probabilities by class [n], checked, and the rows' order of falling probability."""

    classes: Sequence[str]
    labels: list[Column]
    scores: list[Column]
    order: list[NDArray[np.intp]]
    goal: Goal

    @classmethod
    def of(cls, y: ArrayLike, p: ArrayLike, classes: Sequence[str], goal: Goal) -> "Problem":
        labels, scores = np.asarray(y), np.asarray(p)
        if labels.ndim != 2 or labels.shape != scores.shape or labels.size == 0:
            raise ValueError(f"labels {labels.shape} and probabilities {scores.shape} must be tables [n, c], n > 0.")
        if len(classes) != labels.shape[1]:
            raise ValueError(f"there are {labels.shape[1]} columns of labels, but {len(classes)} classes.")
        if goal.average not in ("macro", "micro", "samples"):
            raise ValueError(f"average is {goal.average!r}; it must be 'macro', 'micro' or 'samples'.")
        if goal.min_recall and len(goal.min_recall) != len(classes):
            raise ValueError(f"min_recall has {len(goal.min_recall)} numbers for {len(classes)} classes.")
        if goal.shrink and goal.average == "samples":
            raise ValueError("shrink is a matter of classes; with the average samples it must be 0.")
        y_columns = [np.ascontiguousarray(column, dtype=np.float64) for column in labels.T]
        p_columns = [np.ascontiguousarray(column, dtype=np.float64) for column in scores.T]
        for name, one, probability in zip(classes, y_columns, p_columns, strict=True):
            _refuse(~((one == 0) | (one == 1)), f"labels must be 0 or 1; other values or NaN stand in {name}")
            within = (probability >= 0) & (probability <= 1)
            _refuse(~within, f"probabilities must lie in 0..1 (are these logits?) and not be NaN; see {name}")
        return cls(classes, y_columns, p_columns, [np.argsort(-column) for column in p_columns], goal)

    def steps(
        self, factors: Sequence[tuple[float, float]] | None = None, kept: NDArray[np.bool_] | None = None
    ) -> list[Steps]:
        """The operating points of each class, of the rows `kept` [n]."""
        found = []
        for c, order in enumerate(self.order):
            some = order if kept is None else order[kept[order]]
            weights = (1.0, 1.0) if factors is None else factors[c]
            sorted_ = self.labels[c][some], self.scores[c][some]
            found.append(Steps.of(*sorted_, min_recall=self.goal.recall(c), shrink=self.goal.shrink, factors=weights))
        return found

    def best(self, steps: Sequence[Steps], kept: NDArray[np.bool_] | None = None) -> tuple[list[float], float]:
        """The exact thresholds in class order, and the goal that they reach."""
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
        y, p = np.stack(self.labels, axis=1), np.stack(self.scores, axis=1)
        if kept is not None:
            y, p = y[kept], p[kept]
        recall = [self.goal.recall(c) for c in range(len(self.classes))]
        return SampleF(y, p, self.goal.beta, self.goal.zero_division, recall)

    def decide(self, thresholds: Sequence[float]) -> NDArray[np.bool_]:
        return np.stack([score >= t for score, t in zip(self.scores, thresholds, strict=True)], axis=1)

    def f(self, decided: NDArray[np.bool_]) -> float:
        """F-beta of decisions [n, c], by the labels."""
        goal = self.goal
        if goal.average == "samples":
            return f_beta(np.stack(self.labels, axis=1), decided, goal.beta, goal.average, goal.zero_division)
        true = [float(labels[yes].sum()) for labels, yes in zip(self.labels, decided.T, strict=True)]
        counts = (np.array(true), decided.sum(axis=0), np.array([labels.sum() for labels in self.labels]))
        if goal.average == "micro":
            counts = (counts[0].sum(), counts[1].sum(), counts[2].sum())
        return float(np.mean(f_from_counts(*counts, goal.beta, goal.zero_division)))

    def cross_fitted(self, folds: NDArray) -> NDArray[np.bool_]:
        """The decisions [n, c] of each fold's rows with the exact thresholds of the other folds."""
        n = len(self.labels[0])
        if folds.shape != (n,):
            raise ValueError(f"fold must have {n} entries, one a row; it has the shape {folds.shape}.")
        if folds.dtype.kind == "f":
            _refuse(np.isnan(folds), "fold must not be NaN; it is in")
        numbers = np.unique(folds)
        if len(numbers) < 2:
            raise ValueError("fold must have two values or more.")
        decided = np.zeros((n, len(self.classes)), dtype=bool)
        for number in numbers:
            here = folds == number
            cuts, _ = self.best(self.steps(kept=~here), ~here)
            decided[here] = np.stack([s[here] >= cut for s, cut in zip(self.scores, cuts, strict=True)], axis=1)
        return decided

    def digest(self, *more: object) -> str:
        """A short hash of all this and of `more`."""
        known = hashlib.blake2b(repr((self.goal, list(self.classes), *more)).encode(), digest_size=6)
        for column in (*self.labels, *self.scores):
            known.update(column.data)
        return known.hexdigest()

    def warnings(self, thresholds: Sequence[float]) -> list[str]:
        found = []
        for name, labels, scores, threshold in zip(self.classes, self.labels, self.scores, thresholds, strict=True):
            positives = int(labels.sum())
            if positives == 0:
                found.append(f"{name}: no positive row; its threshold is {NEVER:g}, so that it is never predicted.")
            elif positives == len(labels):
                found.append(f"{name}: every row is positive, so that its threshold says nothing about new rows.")
            elif positives < FEW:
                found.append(f"{name}: only {positives} positive rows; trust the cross-fitted score.")
            if scores.min() == scores.max():
                found.append(f"{name}: all rows have the same probability, so that there is nothing to tune.")
            if positives and threshold > scores.max():
                found.append(f"{name}: the best {self.goal.average} score comes from never predicting it.")
        return found


def _refuse(wrong: NDArray[np.bool_], problem: str) -> None:
    if wrong.any():
        raise ValueError(f"{problem}: {rows(np.flatnonzero(wrong))}.")
