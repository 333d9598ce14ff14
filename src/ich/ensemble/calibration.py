"""Calibration of one class's logits, by the simplest method that is significantly better when cross-fitted."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import isotonic_regression
from scipy.special import expit, logit

from ich.ensemble.intervals import Bootstrap, interval, simplest
from ich.ensemble.metrics import limited, logit_cells, logit_losses

Method = Literal["none", "temperature", "platt", "beta", "isotonic"]
METHODS: tuple[Method, ...] = get_args(Method)  # the simplest first
_NAMES: dict[str, tuple[str, ...]] = {
    "none": (),
    "temperature": ("temperature",),
    "platt": ("slope", "intercept"),
    "beta": ("a", "b", "c"),
    "isotonic": (),
}
# Minimum rows of the rarer label for a method to be considered. In simulations isotonic regression, with lines instead
# of steps and chosen only if significantly better, gains from 200 positives on (steps need about 1,000:
# Niculescu-Mizil and Caruana, ICML 2005).
FEWEST = {"none": 0, "temperature": 1, "platt": 1, "beta": 50, "isotonic": 200}

# A fitted map rises everywhere, so that calibration keeps the order of the slices.
_LEAST_SLOPE = 1e-3
_LARGEST = 1e6
# Penalty of a parameter's squared distance from the identity, in halves of a nat: with 5 to 50 positives 1 is best on
# new rows, among 0.01, 0.1 and 1; above 100 it makes no difference.
RIDGE = 1.0
# With more rows than this, rows are counted in as many cells of equal width in the logit: 0.002 wide. Measured
# on 750,000 rows, parameters move by less than a thousandth of their sampling error.
_CELLS = 16384


@dataclass(frozen=True)
class Calibrator:
    """A non-decreasing map of one class's logits; finite logits stay finite.

    parameters: none (); temperature (t): z / t; platt (slope, intercept): slope z + intercept; beta (a, b, c):
    a ln p - b ln(1 - p) + c with p = sigmoid(z), a, b >= 0 (Kull et al., AISTATS 2017).
    knots: isotonic, (logit, calibrated logit) with both rising; straight lines between, constant outside.
    """

    method: Method = "none"
    parameters: tuple[float, ...] = ()
    knots: tuple[tuple[float, float], ...] = ()

    def __post_init__(self) -> None:
        method, parameters, knots = self.method, self.parameters, self.knots
        numbers = [*parameters, *(value for knot in knots for value in knot)]
        problem = ""
        if method not in METHODS or len(parameters) != len(_NAMES[method]) or (method == "isotonic") != bool(knots):
            problem = f"method {method!r} does not fit {len(parameters)} parameters and {len(knots)} knots"
        elif any(len(knot) != 2 for knot in knots):
            problem = "its knots must be pairs"
        elif not all(type(value) in {int, float} and abs(value) <= _LARGEST for value in numbers):
            problem = f"its numbers must be finite and no larger than {_LARGEST:g}"
        elif method == "temperature" and parameters[0] < 1 / _LARGEST:
            problem = f"the temperature is {parameters[0]}, and must be above 0"
        elif (method == "platt" and parameters[0] < 0) or (method == "beta" and min(parameters[:2]) < 0):
            problem = "a slope below 0 would reverse the order of the slices"
        elif any(not (a[0] < b[0] and a[1] <= b[1]) for a, b in pairwise(knots)):
            problem = "its knots must rise"
        if problem:
            raise ValueError(f"a calibrator cannot be used: {problem}.")

    def apply(self, logits: ArrayLike) -> NDArray[np.float64]:
        """Calibrated logits, of the shape of `logits`."""
        z = np.array(logits, dtype=np.float64)
        match self.method:
            case "none":
                return z
            case "temperature":
                return z / self.parameters[0]
            case "platt":
                return self.parameters[0] * z + self.parameters[1]
            case "beta":
                a, b, c = self.parameters
                return b * np.logaddexp(0, z) - a * np.logaddexp(0, -z) + c
            case "isotonic":
                return _between(z, np.array(self.knots))

    def as_dict(self) -> dict[str, Any]:
        """For JSON; from_dict reads it."""
        knots = {"knots": [list(knot) for knot in self.knots]} if self.knots else {}
        return {"method": self.method, **dict(zip(_NAMES[self.method], self.parameters, strict=True)), **knots}

    @classmethod
    def from_dict(cls, data: Any) -> "Calibrator":
        """Raises ValueError in one sentence for anything that as_dict does not write."""
        if not isinstance(data, Mapping) or data.get("method") not in METHODS:
            raise ValueError(f"a calibrator is an object whose method is one of {', '.join(METHODS)}.")
        method, knots = data["method"], data.get("knots", [])
        names = (*_NAMES[method], "knots") if method == "isotonic" else _NAMES[method]
        if set(data) != {"method", *names}:
            raise ValueError(
                f"a calibrator of method {method} has the keys {', '.join(('method', *names))}, no others."
            )
        if not isinstance(knots, list) or not all(isinstance(knot, list) for knot in knots):
            raise ValueError("a calibrator's knots are a list of pairs [logit, calibrated logit].")
        return cls(method, tuple(data[name] for name in _NAMES[method]), tuple(tuple(knot) for knot in knots))


@dataclass(frozen=True)
class Choice:
    """A calibrator fitted on all rows, and the losses that it was chosen by.

    logits [n]: each row calibrated by the chosen method, fitted on the other folds; uncalibrated if there are none.
    losses: method -> mean log loss, "in_sample" and "cross_fitted". differences: method -> cross-fitted loss minus that
    without calibration, and its interval over patients: (difference, low, high). warning: "" or one sentence.
    """

    calibrator: Calibrator
    logits: NDArray[np.float64] = field(repr=False)
    losses: dict[str, dict[str, float]]
    differences: dict[str, tuple[float, float, float]]
    warning: str = ""


def fit(method: Method, z: ArrayLike, y: ArrayLike, copies: NDArray | None = None) -> Calibrator:
    """The calibrator of logits z [n] with the lowest log loss for labels y [n] of 0 and 1.

    Temperature, Platt and beta scaling are logistic regressions; a ridge towards the identity (half the squared
    distance of each parameter, in nats over all rows) keeps them finite on separable labels, and close to the identity
    with few positives. Isotonic regression gets one positive pseudo-row at the lowest logit and one negative at the
    highest, so that no step is 0 or 1; straight lines connect the steps' mean logits, which keeps the order of slices
    within a step and halves the overfitting of steps on new rows.

    copies [n], > 0: the number of rows that each one represents. Returns the identity if only one label or only one
    logit occurs.
    """
    scores, labels = _checked(z, y)
    return _fit(method, _cells(scores, labels, np.zeros(len(labels), dtype=np.int64), copies)[0])


def choose(
    z: ArrayLike,
    y: ArrayLike,
    fold: ArrayLike,
    patients: ArrayLike | Bootstrap,
    method: Method | Literal["auto"] = "auto",
) -> Choice:
    """Choose the calibrator of logits z [n] of a class with labels y [n] by cross-fitted log loss.

    `auto` considers the METHODS for which there are enough positives; a later one is taken only if its cross-fitted log
    loss is significantly lower (intervals.simplest over patients [n], or draws of them). With one fold `auto` is none.
    A named method is taken as it is, unless it cannot be fitted.
    """
    scores, labels = _checked(z, y)
    folds = np.asarray(fold)
    if folds.shape != scores.shape:
        raise ValueError(f"fold {folds.shape} must have one entry for each of the {len(scores)} rows.")
    numbers, parts = np.unique(folds, return_inverse=True)
    cells = _cells(scores, labels, parts)
    rarer = min(labels.sum(), (1 - labels).sum())
    names: list[Method] = ["none"]
    if method == "auto":
        names = [name for name in METHODS if rarer >= FEWEST[name]] if len(numbers) > 1 else names
    elif method != "none":
        names.append(method)
    fitted = {name: _fit(name, cells.sum(axis=0)) for name in names}
    crossed = {name: _cross_fitted(name, scores, cells, parts) for name in names}
    row_losses = {name: logit_losses(limited(crossed[name]), labels) for name in names}
    losses = {
        name: {
            "in_sample": float(logit_losses(limited(fitted[name].apply(scores)), labels).mean()),
            "cross_fitted": float(row_losses[name].mean()),
        }
        for name in names
    }
    taken, differences = names[-1], {}
    if len(names) > 1:
        bootstrap = patients if isinstance(patients, Bootstrap) else Bootstrap(patients)
        draws = {name: bootstrap.means(values) for name, values in row_losses.items()}
        for name in names[1:]:
            mean = losses[name]["cross_fitted"] - losses["none"]["cross_fitted"]
            differences[name] = (mean, *interval(draws[name] - draws["none"]))
        taken = simplest(draws) if method == "auto" else names[-1]
    warning = ""
    if method not in {"auto", "none"} and fitted[taken].method == "none":
        warning = f"{method} calibration needs both labels and two different logits; the logits stay uncalibrated"
    return Choice(fitted[taken], crossed[taken].copy(), losses, differences, warning)


def _fit(method: Method, cells: NDArray) -> Calibrator:
    """As fit, from the sums over the rows of each cell [3, g]."""
    count, total, positives = cells[:, cells[0] > 0]
    if method == "none" or len(count) < 2 or not 0 < positives.sum() < count.sum():
        return Calibrator()
    x, share = total / count, positives / count
    if method == "isotonic":
        return Calibrator("isotonic", knots=_isotonic(x, share, count))
    if method == "beta":
        features, start = np.stack([-np.logaddexp(0, -x), np.logaddexp(0, x), np.ones_like(x)]), [1.0, 1.0, 0.0]
        least = [_LEAST_SLOPE, _LEAST_SLOPE, -_LARGEST]
    else:
        features, start, least = np.stack([x, np.ones_like(x)]), [1.0, 0.0], [_LEAST_SLOPE, -_LARGEST]
    k = 1 if method == "temperature" else len(start)
    found = _newton(features[:k], share, count, np.array(start[:k]), np.array(least[:k]))
    return Calibrator(method, (1 / float(found[0]),) if method == "temperature" else tuple(found.tolist()))


def _cross_fitted(method: Method, z: NDArray, cells: NDArray, parts: NDArray) -> NDArray[np.float64]:
    """Each row calibrated by the fit on the other folds' cells; unchanged if there is no other fold."""
    calibrated = z.copy()
    if len(cells) == 1:
        return calibrated
    for part in range(len(cells)):
        inside = parts == part
        calibrated[inside] = _fit(method, np.delete(cells, part, axis=0).sum(axis=0)).apply(z[inside])
    return calibrated


def _cells(z: NDArray, y: NDArray, parts: NDArray, copies: NDArray | None = None) -> NDArray[np.float64]:
    """Sums over (nearly) equal logits, rising, by part: count, sum of logits and positives [parts, 3, g]."""
    z = limited(z)
    if len(z) <= _CELLS:
        values, cell = np.unique(z, return_inverse=True)
        g = len(values)
    else:
        cell, g = logit_cells(z, _CELLS), _CELLS
    n, index = int(parts.max()) + 1, parts * g + cell
    columns = (None, z, y) if copies is None else (copies, copies * z, copies * y)
    sums = [np.bincount(index, weights=weights, minlength=n * g).reshape(n, g) for weights in columns]
    return np.stack(sums, axis=1).astype(np.float64)


def _newton(
    features: NDArray, share: NDArray, count: NDArray, start: NDArray, least: NDArray, steps: int = 100
) -> NDArray[np.float64]:
    """Logistic regression on features [k, g], parameters >= least, with a ridge towards `start`.

    Newton's method on the parameters that are not held at their bound, each step halved until the loss falls
    (Bertsekas, SIAM J. Control Optim. 20, 1982).
    """

    def loss(theta: NDArray) -> float:
        line = np.einsum("k,kg->g", theta, features)
        fitted = np.einsum("g,g->", count, np.logaddexp(0, line) - share * line)
        return float(fitted + RIDGE / 2 * ((theta - start) ** 2).sum())

    theta, now = start.copy(), loss(start)
    for _ in range(steps):
        p = expit(np.einsum("k,kg->g", theta, features))
        slope = np.einsum("g,kg->k", count * (p - share), features) + RIDGE * (theta - start)
        curve = np.einsum("g,jg,kg->jk", count * p * (1 - p), features, features) + RIDGE * np.eye(len(start))
        free = (theta > least) | (slope < 0)
        step = np.zeros_like(theta)
        step[free] = np.linalg.solve(curve[np.ix_(free, free)], slope[free])
        if slope @ step < 1e-10 * (1 + now):  # converged, but for this last quadratic step
            return np.clip(theta - step, least, _LARGEST)
        length = 1.0
        while (ahead := loss(new := np.clip(theta - length * step, least, _LARGEST))) >= now and length > 1e-10:
            length /= 2
        if ahead >= now:
            break
        theta, now = new, ahead
    return theta


def _isotonic(z: NDArray, share: NDArray, count: NDArray) -> tuple[tuple[float, float], ...]:
    """Knots of the isotonic regression: each step's mean logit and the logit of its share."""
    weight, positives = count.copy(), share * count
    weight[[0, -1]] += 1
    positives[0] += 1
    found = isotonic_regression(positives / weight, weights=weight)
    step = np.repeat(np.arange(len(found.blocks) - 1), np.diff(found.blocks))
    mean = np.bincount(step, weights=count * z) / np.bincount(step, weights=count)
    value = logit(found.x[found.blocks[:-1]])
    rises = np.diff(np.maximum.accumulate(mean), prepend=-np.inf) > 0  # not so for logits a rounding apart
    return tuple(zip(mean[rises].tolist(), value[rises].tolist(), strict=True))


def _between(z: NDArray, knots: NDArray) -> NDArray[np.float64]:
    """Straight lines through knots [k, 2]; clipped to the two knots around, which rounding could pass."""
    x, value = knots.T
    right = np.clip(np.searchsorted(x, z), 1, len(x) - 1) if len(x) > 1 else np.zeros(z.shape, dtype=np.int64)
    return np.clip(np.interp(z, x, value), value[np.maximum(right - 1, 0)], value[right])


def _checked(z: ArrayLike, y: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    scores, labels = np.asarray(z, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if scores.ndim != 1 or scores.shape != labels.shape or scores.size == 0:
        raise ValueError(f"logits {scores.shape} and labels {labels.shape} must be two columns [n], n > 0.")
    if not ((labels == 0) | (labels == 1)).all() or not np.isfinite(scores).all():
        raise ValueError("a class is calibrated on finite logits and labels of 0 and 1.")
    return scores, labels
