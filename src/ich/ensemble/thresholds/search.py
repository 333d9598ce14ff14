"""Optuna's search for thresholds: one-dimensional TPE studies over operating points.

A study searches the index of the operating point, by falling threshold, as a share of their number. F-beta is smooth in
it, however rare positives are and however the probabilities are calibrated.

macro: one study per class.

micro: one study over the pooled probabilities after isotonic regression per class. With F* the best score, the best
thresholds maximise (1 + b^2) TP - F* predicted in each class (see operating_points.best_micro). That is largest at a
vertex of the concave hull of (predicted, TP), the end of an isotonic block, at one calibrated value for all classes.

samples: coordinate ascent (see sample_f), one study per coordinate.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import optuna
from optuna.distributions import FloatDistribution
from optuna.trial import create_trial
from scipy.optimize import isotonic_regression

from ich.ensemble.metrics import f_from_counts
from ich.ensemble.thresholds.operating_points import ALIKE, NEVER, Column, Steps, best_macro, micro_gain
from ich.ensemble.thresholds.problem import Goal, Problem

optuna.logging.set_verbosity(optuna.logging.WARNING)

NAME = "position"  # the searched parameter, 0 to 1
GRID = 32  # trials on an even grid that every study begins with
SWEEPS = 2  # rounds of coordinate ascent among which the trials of a class are divided


@dataclass(frozen=True)
class Search:
    """Optuna's search for the thresholds of a problem, for `tune`: `trials` per class (micro: in all)."""

    trials: int
    seed: int

    def __call__(self, problem: Problem, steps: Sequence[Steps]) -> tuple[list[float], float]:
        """Thresholds in class order, and the value of the goal that they reach."""
        if problem.goal.average == "macro":
            return self._macro(steps, problem.goal)
        if problem.goal.average == "micro":
            return self._micro(steps, problem.goal)
        return self._samples(problem, steps)

    def _macro(self, steps: Sequence[Steps], goal: Goal) -> tuple[list[float], float]:
        thresholds, scores = [NEVER] * len(steps), [float(goal.zero_division)] * len(steps)
        for c, one in enumerate(steps):
            if one.actual:
                values = f_from_counts(one.true, one.predicted, one.actual, goal.beta)
                # the threshold 0.5, and as many predictions as there are positives
                starts = int(np.sum(one.high >= 0.5)) - 1, int(np.searchsorted(one.predicted, one.actual))
                best = search(values, starts, self.trials, self.seed)
                thresholds[c] = one.middle_around(np.abs(values - values[best]) <= ALIKE * values[best], best)
                scores[c] = float(values[best])
        return thresholds, float(np.mean(scores))

    def _micro(self, steps: Sequence[Steps], goal: Goal) -> tuple[list[float], float]:
        beta, actual = goal.beta, sum(one.actual for one in steps)
        if not actual:
            return [NEVER] * len(steps), float(goal.zero_division)
        rates = [_isotonic(one) for one in steps]
        rate = np.concatenate(rates)
        order = np.argsort(-rate, kind="stable")
        rate = np.append(np.inf, rate[order])
        kept = np.append(0, np.append(np.flatnonzero(np.diff(rate[1:]) != 0), len(rate) - 2) + 1)

        def pooled(columns: list[Column]) -> Column:
            """Counts with all classes at their first operating point, then by falling pooled rate."""
            added = np.concatenate([np.diff(counts) for counts in columns])[order]
            return (np.append(0.0, np.cumsum(added)) + sum(counts[0] for counts in columns))[kept]

        rate, true, predicted = (
            rate[kept],
            pooled([one.true for one in steps]),
            pooled([one.predicted for one in steps]),
        )
        values = f_from_counts(true, predicted, actual, beta)
        at = search(values, [int(np.searchsorted(predicted, actual))], self.trials, self.seed)
        n, d = (1 + beta * beta) * float(true[at]), beta * beta * actual + float(predicted[at])
        thresholds = [NEVER] * len(steps)
        for c, one in enumerate(steps):
            if one.actual:
                gain, best = micro_gain(one, beta, n, d), int(np.sum(rates[c] >= rate[at]))
                thresholds[c] = one.middle_around(np.abs(gain - gain[best]) <= 4 * ALIKE * n * d, best)
        return thresholds, float(values[at])

    def _samples(self, problem: Problem, steps: Sequence[Steps]) -> tuple[list[float], float]:
        """Coordinate ascent from the best thresholds for macro F-beta."""
        ascent, per_sweep = problem.sample_f(), max(1, self.trials // SWEEPS)

        def searched(sweep: int, c: int, values: Column) -> int:
            line, now = ascent.lines[c], ascent.cuts[c]
            if sweep >= SWEEPS:
                return now
            starts = [int(np.searchsorted(line.kept, now))]
            return int(line.kept[search(values[line.kept] / ascent.rows, starts, per_sweep, self.seed)])

        ascent.start([best_macro(one, problem.goal.beta)[0] for one in steps])
        ascent.ascend(searched)
        return ascent.thresholds(), ascent.score


def search(values: Column, starts: Sequence[int], trials: int, seed: int) -> int:
    """Index of the highest of `values` [g] that a TPE study finds; `starts` are tried first, then an even grid.

    Each trial has its own seed, so that a search with more trials begins with the trials of a shorter one.
    """
    points = len(values)
    if points == 1:
        return 0
    bits = GRID.bit_length() - 1
    grid = [int(f"{i:0{bits}b}"[::-1], 2) / (GRID - 1) for i in range(GRID)]  # any first part of it is nearly even
    first = [min(max(i, 0), points - 1) for i in (*starts, *(round(share * (points - 1)) for share in grid))]
    space = FloatDistribution(0.0, 1.0)  # TPE takes three times as long for integers
    study = optuna.create_study(direction="maximize")
    for i in range(trials):
        if i < len(first):
            position, value = (first[i] + 0.5) / points, float(values[first[i]])
            study.add_trial(create_trial(params={NAME: position}, distributions={NAME: space}, value=value))
        else:
            study.sampler = _sampler(int(np.random.SeedSequence([seed, i]).generate_state(1)[0]), multivariate=False)
            trial = study.ask()
            study.tell(trial, float(values[_index(trial.suggest_float(NAME, space.low, space.high), points)]))
    return _index(study.best_params[NAME], points)


def search_cube(
    objective: Callable[[Mapping[str, float]], float],
    names: Sequence[str],
    *,
    trials: int,
    seed: int,
    starts: Sequence[Mapping[str, float]],
) -> dict[str, float]:
    """The point of the cube [0, 1]^names with the highest objective that TPE finds; `starts` are tried first."""
    study = optuna.create_study(direction="maximize", sampler=_sampler(seed, multivariate=True))
    for start in starts:
        study.enqueue_trial(dict(start))
    study.optimize(lambda trial: objective({n: trial.suggest_float(n, 0.0, 1.0) for n in names}), n_trials=trials)
    return study.best_params


def _index(position: float, points: int) -> int:
    return min(int(position * points), points - 1)


def _sampler(seed: int, *, multivariate: bool) -> optuna.samplers.TPESampler:
    """TPE; names every argument whose default differs between versions of Optuna."""
    return optuna.samplers.TPESampler(
        seed=seed, n_startup_trials=10, n_ei_candidates=24, multivariate=multivariate, group=False, constant_liar=False
    )


def _isotonic(steps: Steps) -> Column:
    """Share of positives between each operating point and the next [g - 1], falling."""
    added = np.diff(steps.predicted)
    if not len(added):
        return added
    return isotonic_regression(np.diff(steps.true) / added, weights=added, increasing=False).x
