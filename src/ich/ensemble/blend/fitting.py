"""Fit one class's combination: ranks, greedy selection and weights, on the models' out-of-fold logits.

Shapes: n rows, m models. Fits are in-sample; see `cross_fitting`.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from ich.ensemble import calibration
from ich.ensemble.blend.combination import Combination, Method, Ranks, equal, mean
from ich.ensemble.metrics import limited, logit_losses
from ich.ensemble.thresholds.operating_points import Steps, best_macro
from ich.ensemble.thresholds.search import search_cube

Column = NDArray[np.float64]
Metric = Literal["log_loss"] | float

SEARCH_ROWS = 30_000  # rows used for tuning
BINS = 400  # of the logit range of quantiles: steps of 0.07 among 600,000 rows
PICKS = 20  # of greedy selection, with replacement
FEWEST = 2  # positives, and negatives, below which nothing is tuned
UNTUNED = ("logits", "probabilities")


class Rows(NamedTuple):
    """Rows used for tuning: logits [n, m], labels [n], and the number of rows that each one represents [n]."""

    z: Column
    y: Column
    copies: Column

    @classmethod
    def sample(cls, z: Column, y: Column, seed: int) -> "Rows":
        """At most SEARCH_ROWS of the rows; all of those with the rarer label, at most half of the sample."""
        if len(y) <= SEARCH_ROWS:
            return cls(z, y, np.ones(len(y)))
        random, labels = np.random.default_rng(seed), [np.flatnonzero(y == value) for value in (0, 1)]
        rare = min(len(labels[0]), len(labels[1]), SEARCH_ROWS // 2)
        sizes = [rare, SEARCH_ROWS - rare] if len(labels[0]) < len(labels[1]) else [SEARCH_ROWS - rare, rare]
        kept = np.concatenate([random.choice(rows, n, replace=False) for rows, n in zip(labels, sizes, strict=True)])
        copies = np.repeat([len(rows) / max(n, 1) for rows, n in zip(labels, sizes, strict=True)], sizes)
        return cls(z[kept], y[kept], copies)


def fit(method: Method, rows: Rows, metric: Metric, trials: int, seed: int) -> Combination:
    """The combination fitted on these rows.

    metric: "log_loss" or the beta of an F-beta, taken at its best threshold; `greedy` and `weights` are tuned for it.
    trials: of Optuna, for weights tuned for F-beta. With one model, or fewer than FEWEST positives or negatives, the
    mean of logits is returned.
    """
    models = rows.z.shape[1]
    if method in UNTUNED and models > 1:
        return equal(models, method)
    if models == 1 or not tunable(rows.y):
        return equal(models)
    if method == "ranks":
        return _ranks(rows)
    rows = rows._replace(z=limited(rows.z))
    if method == "greedy":
        return Combination(method, _greedy(rows, metric))
    return Combination(method, _convex(rows) if metric == "log_loss" else _searched(rows, metric, trials, seed))


def tunable(y: Column) -> bool:
    return min((y == 0).sum(), (y == 1).sum()) >= FEWEST


def best_f(z: Column, y: Column, copies: Column, beta: float) -> tuple[float, float]:
    """The threshold of the probabilities of logits z [n] with the highest F-beta, and that F-beta."""
    p = expit(z)
    order = np.argsort(-p)
    return best_macro(Steps.of(y[order], p[order], copies=copies[order]), beta)


def _ranks(rows: Rows) -> Combination:
    """Equal weights; the logit of the mean quantile is calibrated by Platt scaling."""
    edges, quantiles = zip(*[_quantiles(column, rows.copies) for column in rows.z.T], strict=True)
    weights = equal(rows.z.shape[1]).weights
    x = Ranks(edges, quantiles, 1, 0).mean_quantile(rows.z, weights)
    # shifted to the class's prevalence first, because the ridge of Platt scaling pulls towards the identity
    positive = (rows.copies * rows.y).sum() / rows.copies.sum()
    shift = float(np.log(positive / (1 - positive)))
    calibrator = calibration.fit("platt", x + shift, rows.y, rows.copies)
    slope, intercept = calibrator.parameters or (1.0, 0.0)  # empty where all rows have one mean quantile
    return Combination("ranks", weights, Ranks(edges, quantiles, slope, intercept + slope * shift))


def _quantiles(x: Column, count: Column) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Edges and quantiles of bins over x [n]: one bin per value, or at most BINS even steps of logit(quantile)."""
    order = np.argsort(x)
    values, total = x[order], np.cumsum(count[order])
    start = np.flatnonzero(np.append(True, values[1:] != values[:-1]))
    if len(start) > BINS:
        below = total[start] - count[order][start]
        end = np.log(2 * total[-1])
        wanted = total[-1] / (1 + np.exp(-np.linspace(-end, end, BINS)))
        start = start[np.unique(np.append(0, np.searchsorted(below, wanted[:-1])).clip(max=len(start) - 1))]
    ends = np.append(0, total[np.append(start[1:], len(values)) - 1]) / total[-1]
    return tuple(values[start[1:]].tolist()), tuple(((ends[1:] + ends[:-1]) / 2).tolist())


def _greedy(rows: Rows, metric: Metric) -> tuple[float, ...]:
    """Forward selection with replacement: shares of the picks, up to the best number of at most PICKS.

    Caruana et al., "Ensemble selection from libraries of models", ICML 2004. Of equal losses the earlier model and the
    fewer picks are taken.
    """
    models = rows.z.shape[1]
    counts, total = np.zeros(models), np.zeros(len(rows.y))
    best, shares = np.inf, counts
    for picks in range(1, PICKS + 1):
        tried = [_loss(rows, (total + rows.z[:, m]) / picks, metric) for m in range(models)]
        pick = int(np.argmin(tried))
        counts[pick] += 1
        total += rows.z[:, pick]
        if tried[pick] < best:
            best, shares = tried[pick], counts / picks
    return tuple(shares.tolist())


def _loss(rows: Rows, z: Column, metric: Metric) -> float:
    """Objective of the tuning: the mean log loss of logits z [n], or -F at its best threshold."""
    if metric == "log_loss":
        # rounded, so that ties do not depend on the order of summation
        return round(float((rows.copies * logit_losses(z, rows.y)).sum() / rows.copies.sum()), 12)
    return -best_f(z, rows.y, rows.copies, metric)[1]


def _convex(rows: Rows) -> tuple[float, ...]:
    """Weights >= 0 that sum to 1 with the lowest log loss, which is convex in them.

    Active-set Newton: a weight that would become negative is fixed at 0; when the others have converged, the one with
    the largest gain is released (Nocedal and Wright, "Numerical optimization", 2006, 16.5).
    """
    models = rows.z.shape[1]
    share = rows.copies / rows.copies.sum()
    weights, free = np.full(models, 1 / models), np.ones(models, dtype=bool)

    def loss(weights: Column) -> float:
        return float((share * logit_losses(mean(rows.z, weights), rows.y)).sum())

    now = loss(weights)
    for _ in range(20 * models):
        p = expit(mean(rows.z, weights))
        slope = np.einsum("n,nm->m", share * (p - rows.y), rows.z)
        curve = np.einsum("nj,nk->jk", rows.z * (share * p * (1 - p))[:, None], rows.z)
        step, level = _newton_step(slope[free], curve[np.ix_(free, free)])
        if -(slope[free] * step).sum() < 1e-13:
            gain = np.where(free, 0, level - slope)
            if gain.max() <= 1e-9:
                break
            free[gain.argmax()] = True
            continue
        full = np.zeros(models)
        full[free] = step
        falling = np.flatnonzero(full < 0)
        longest = -weights[falling] / full[falling]
        length = min(1.0, float(longest.min()))
        at_bound = length == longest.min()
        while (ahead := loss(np.maximum(weights + length * full, 0))) > now + 1e-14 and length > 1e-12:
            length, at_bound = length / 2, False
        weights, now = np.maximum(weights + length * full, 0), min(ahead, now)
        if at_bound:
            held = falling[longest.argmin()]
            weights[held], free[held] = 0, False
    return _shares(weights)


def _newton_step(slope: Column, curve: Column) -> tuple[NDArray[np.floating], float]:
    """The step [k], of sum 0, to the minimum of a quadratic, and the common slope there.

    A small ridge divides the weight of identical models evenly.
    """
    k = len(slope)
    system = np.ones((k + 1, k + 1))
    system[:k, :k] = curve + (1e-9 * np.trace(curve) + 1e-12) * np.eye(k)
    system[k, k] = 0
    solved = np.linalg.solve(system, np.append(-slope, 0))
    return solved[:k], -float(solved[k])


def _searched(rows: Rows, beta: float, trials: int, seed: int) -> tuple[float, ...]:
    """Weights with the highest F-beta by Optuna's TPE; equal ones and those for log loss are tried first."""
    names = [f"model{m}" for m in range(rows.z.shape[1])]

    def weights_of(raw: Mapping[str, float]) -> tuple[float, ...]:
        squares = np.array([raw[name] for name in names]) ** 2  # so that weights near 0 are within easy reach
        return _shares(squares) if squares.sum() > 0 else equal(len(names)).weights

    def f(raw: Mapping[str, float]) -> float:
        return -_loss(rows, mean(rows.z, weights_of(raw)), beta)

    starts = [dict.fromkeys(names, 0.5), dict(zip(names, np.sqrt(_convex(rows)).tolist(), strict=True))]
    return weights_of(search_cube(f, names, trials=trials, seed=seed, starts=starts))


def _shares(weights: Column) -> tuple[float, ...]:
    """Weights clipped at 0, scaled to sum to 1, and rounded to hide the solver's tolerance."""
    rounded = np.round(np.maximum(weights, 0) / np.maximum(weights, 0).sum(), 6)
    return tuple((rounded / rounded.sum()).tolist())
