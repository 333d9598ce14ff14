"""What Optuna's studies look at: F-beta at every operating point, one dimension a study.

macro: the mean of the classes' F falls apart by class; each class has a study of its own.

micro: the pooled F does not, but its best thresholds are those where the classes' calibrated probabilities (isotonic
regression, in each class) cross one common value. For, with F* the best score, they maximise (1 + b^2) TP - F*
predicted in each class (see operating_points.best_micro), and that is largest at a vertex of the concave hull of the
class's (predicted, TP), the ends of isotonic blocks. So one study over pooled calibrated probabilities.

samples: coordinate ascent (see sample_f), whose coordinates are studies.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ich.ensemble.metrics import f_from_counts
from ich.ensemble.thresholds.operating_points import ALIKE, NEVER, Column, Steps, micro_gain
from ich.ensemble.thresholds.sample_f import SampleF

SWEEPS = 2  # rounds that a class's trials are shared out to where the average is samples


@dataclass(frozen=True)
class Surface:
    """`values` [g] of operating points, in the order of falling thresholds, each with more positive rows than the last.

    A study searches the place among them: F-beta is smooth in it, as it is in the recall, however rare positives are
    and however the probabilities are calibrated. starts: numbers of operating points to try first.
    """

    name: str
    values: Column
    starts: tuple[int, ...]


# The best operating points that studies of so many trials find.
Find = Callable[[Sequence[Surface], int], list[int]]


def search_macro(
    classes: Sequence[str], steps: Sequence[Steps], beta: float, zero_division: float, find: Find, trials: int
) -> tuple[list[float], float]:
    """Thresholds in class order, and their macro F-beta."""
    able = [c for c, one in enumerate(steps) if one.actual]
    values = [f_from_counts(one.true, one.predicted, one.actual, beta) for one in steps]
    found = find([Surface(classes[c], values[c], _starts(steps[c])) for c in able], trials)
    thresholds, scores = [NEVER] * len(steps), [float(zero_division)] * len(steps)
    for c, best in zip(able, found, strict=True):
        alike = np.abs(values[c] - values[c][best]) <= ALIKE * values[c][best]
        thresholds[c] = steps[c].middle(*steps[c].around(alike, best))
        scores[c] = float(values[c][best])
    return thresholds, float(np.mean(scores))


def search_micro(
    steps: Sequence[Steps], beta: float, zero_division: float, find: Find, trials: int
) -> tuple[list[float], float]:
    """Thresholds in class order, and their micro F-beta."""
    able = [one for one in steps if one.actual]
    if not able:
        return [NEVER] * len(steps), float(zero_division)
    rates = [_isotonic(one) for one in able]
    rate = np.concatenate(rates)
    order = np.argsort(-rate, kind="stable")
    last = np.append(np.flatnonzero(np.diff(rate[order]) != 0), len(rate) - 1)
    true, predicted = (
        np.append(0.0, np.cumsum(np.concatenate([np.diff(getattr(one, which)) for one in able])[order]))
        + sum(getattr(one, which)[0] for one in able)
        for which in ("true", "predicted")
    )
    # each class at its first operating point, then one pooled rate after the other
    rate, true, predicted = (x[np.append(0, last + 1)] for x in (np.append(np.inf, rate[order]), true, predicted))
    actual = sum(one.actual for one in able)
    values = f_from_counts(true, predicted, actual, beta)
    [at] = find([Surface("all classes", values, (int(np.searchsorted(predicted, actual)),))], trials)
    n, d = (1 + beta * beta) * float(true[at]), beta * beta * actual + float(predicted[at])
    thresholds = []
    for one, its in zip(able, rates, strict=True):
        gain, best = micro_gain(one, beta, n, d), int(np.sum(its >= rate[at]))
        alike = np.abs(gain - gain[best]) <= 4 * ALIKE * n * d
        thresholds.append(one.middle(*one.around(alike, best)))
    found = iter(thresholds)
    return [next(found) if one.actual else NEVER for one in steps], float(values[at])


def _starts(steps: Steps) -> tuple[int, ...]:
    """The threshold 0.5, and as many rows as there are positives."""
    return int(np.sum(steps.high >= 0.5)) - 1, int(np.searchsorted(steps.predicted, steps.actual))


def _isotonic(steps: Steps) -> Column:
    """Share of positives between each step and the next [g - 1], falling: slopes of the hull of (predicted, true)."""
    from scipy.optimize import isotonic_regression  # slow to import, and macro does without

    added = np.diff(steps.predicted)
    if not len(added):
        return added
    return isotonic_regression(np.diff(steps.true) / added, weights=added, increasing=False).x


def search_samples(
    classes: Sequence[str], problem: SampleF, start: Sequence[float], find: Find, trials: int
) -> tuple[list[float], float]:
    """Thresholds in class order, and their F-beta averaged over slices; coordinate ascent from `start`."""
    each = max(1, trials // SWEEPS)

    def choose(number: int, c: int, values: Column) -> int:
        line, now = problem.lines[c], problem.cuts[c]
        if number >= SWEEPS:
            return now
        name = f"{classes[c]}, round {number + 1}, {each} trials"
        start = int(np.searchsorted(line.kept, now))
        [best] = find([Surface(name, values[line.kept] / problem.rows, (start,))], each)
        return int(line.kept[best])

    problem.start(start)
    problem.ascend(choose)
    thresholds = problem.thresholds()
    return thresholds, problem.score
