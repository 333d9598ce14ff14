"""Calibration of one class's logits: temperature, Platt, beta and isotonic, compared by cross-fitting."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import isotonic_regression
from scipy.special import expit, logit

from ich.ensemble.intervals import Bootstrap, interval, simplest
from ich.ensemble.metrics import checked_pair, limited, logit_cells, logit_losses

Method = Literal["none", "temperature", "platt", "beta", "isotonic"]
METHODS: tuple[Method, ...] = get_args(Method)  # the simplest first
PARAMETERS: dict[str, tuple[str, ...]] = {
    "none": (),
    "temperature": ("temperature",),
    "platt": ("slope", "intercept"),
    "beta": ("a", "b", "c"),
    "isotonic": (),
}
# Minimum rows of the rarer label. In simulations isotonic regression with lines instead of steps gains from 200
# positives on (steps need about 1,000: Niculescu-Mizil and Caruana, ICML 2005).
MIN_ROWS = {"none": 0, "temperature": 1, "platt": 1, "beta": 50, "isotonic": 200}
MIN_SLOPE = 1e-3  # keeps the order of the slices
MAX_VALUE = 1e6
# L2 penalty towards the identity, over all rows: of 0.01, 0.1 and 1 the best on new rows with 5 to 50 positives; it
# makes no difference above 100.
RIDGE = 1.0
# Larger tables are binned by logit, 0.002 wide. On 750,000 rows this moves parameters by less than a thousandth of
# their sampling error.
CELLS = 16384


@dataclass(frozen=True)
class Calibrator:
    """A non-decreasing map of one class's logits; finite logits stay finite.

    parameters: none (); temperature (t): z / t; platt (slope, intercept): slope z + intercept; beta (a, b, c):
    a ln p - b ln(1 - p) + c with p = sigmoid(z), a, b >= 0 (Kull et al., AISTATS 2017).
    knots: isotonic, (logit, calibrated logit), linearly interpolated, constant outside.
    """

    method: Method = "none"
    parameters: tuple[float, ...] = ()
    knots: tuple[tuple[float, float], ...] = ()

    def __post_init__(self) -> None:
        method, parameters, knots = self.method, self.parameters, self.knots
        numbers = [*parameters, *(value for knot in knots for value in knot)]
        problem = ""
        if not all(type(value) in {int, float} and abs(value) <= MAX_VALUE for value in numbers):
            problem = f"its numbers must be finite and at most {MAX_VALUE:g}"
        elif method == "temperature" and parameters[0] < 1 / MAX_VALUE:
            problem = f"the temperature is {parameters[0]}; it must be above 0"
        elif method in {"platt", "beta"} and min(parameters[:-1]) < 0:
            problem = "slopes must be 0 or more"
        elif any(not (a[0] < b[0] and a[1] <= b[1]) for a, b in pairwise(knots)):
            problem = "knots must rise"
        if problem:
            raise ValueError(f"calibrator {method}: {problem}.")

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
                return _interpolated(z, np.array(self.knots))

    def as_dict(self) -> dict[str, Any]:
        """For JSON; read by from_dict."""
        knots = {"knots": [list(knot) for knot in self.knots]} if self.knots else {}
        return {"method": self.method, **dict(zip(PARAMETERS[self.method], self.parameters, strict=True)), **knots}

    @classmethod
    def from_dict(cls, data: Any) -> "Calibrator":
        """Raises ValueError for anything that as_dict does not write."""
        method = data.get("method") if isinstance(data, Mapping) else None
        if method not in METHODS:
            raise ValueError(f"calibrator: method is {method!r:.40}; choose from {', '.join(METHODS)}.")
        keys = ["method", *PARAMETERS[method], *(["knots"] if method == "isotonic" else [])]
        if set(data) != set(keys):
            raise ValueError(f"calibrator {method}: the keys must be {', '.join(keys)}.")
        knots = data.get("knots", [])
        pairs = isinstance(knots, list) and all(isinstance(knot, list) and len(knot) == 2 for knot in knots)
        if not pairs or ("knots" in keys and not knots):
            raise ValueError(f"calibrator {method}: knots must be pairs [logit, calibrated logit].")
        return cls(method, tuple(data[name] for name in PARAMETERS[method]), tuple(tuple(knot) for knot in knots))


@dataclass(frozen=True)
class CalibratorChoice:
    """A calibrator fitted on all rows, and the losses that it was chosen by.

    logits [n]: calibrated by the fits on the other folds; unchanged with a single fold. losses: method -> mean log
    loss, "in_sample" and "cross_fitted". differences: method -> cross-fitted loss minus that of none, with its interval
    over patients: (difference, low, high). warning: "" or one sentence.
    """

    calibrator: Calibrator
    logits: NDArray[np.float64] = field(repr=False)
    losses: dict[str, dict[str, float]]
    differences: dict[str, tuple[float, float, float]]
    warning: str = ""


def fit(method: Method, z: ArrayLike, y: ArrayLike, copies: NDArray | None = None) -> Calibrator:
    """The calibrator of logits z [n] with the lowest log loss for labels y [n] of 0 and 1.

    Temperature, Platt and beta scaling are logistic regressions with a ridge towards the identity, which keeps them
    finite on separable labels. Isotonic regression gets a positive pseudo-row at the lowest logit and a negative one at
    the highest, so that no step is 0 or 1. Interpolation between the steps' mean logits keeps the order of slices
    within a step and halves the overfitting.

    copies [n], > 0: the number of rows that each one represents. Returns the identity if only one label or only one
    logit occurs.
    """
    labels, scores = checked_pair(y, z, ndim=1)
    return _fit(method, _cells(scores, labels, np.zeros(len(labels), dtype=np.int64), copies)[0])


def choose_calibrator(
    z: ArrayLike, y: ArrayLike, fold: ArrayLike, bootstrap: Bootstrap, method: Method | Literal["auto"] = "auto"
) -> CalibratorChoice:
    """Choose the calibrator of logits z [n] of a class with labels y [n] by cross-fitted log loss.

    `auto` considers the METHODS for which there are enough positives; a later one is taken only if its cross-fitted log
    loss is significantly lower (intervals.simplest). With one fold `auto` is none. A named method is taken as it is,
    unless it cannot be fitted. bootstrap: draws of the rows' patients.
    """
    labels, scores = checked_pair(y, z, ndim=1)
    folds, part = np.unique(np.asarray(fold), return_inverse=True)
    cells = _cells(scores, labels, part)
    names: list[Method] = ["none"]
    if method == "auto":
        rarer = min(labels.sum(), (1 - labels).sum())
        names = [name for name in METHODS if rarer >= MIN_ROWS[name]] if len(folds) > 1 else names
    elif method != "none":
        names.append(method)
    fitted = {name: _fit(name, cells.sum(axis=0)) for name in names}
    crossed = {name: _cross_fitted(name, scores, cells, part) for name in names}
    row_losses = {name: logit_losses(limited(crossed[name]), labels) for name in names}
    losses = {
        name: {
            "in_sample": float(logit_losses(limited(fitted[name].apply(scores)), labels).mean()),
            "cross_fitted": float(row_losses[name].mean()),
        }
        for name in names
    }
    draws = {name: bootstrap.means(values) for name, values in row_losses.items()}
    differences = {
        name: (losses[name]["cross_fitted"] - losses["none"]["cross_fitted"], *interval(draws[name] - draws["none"]))
        for name in names[1:]
    }
    best = simplest(draws) if method == "auto" else names[-1]
    warning = ""
    if method not in {"auto", "none"} and fitted[best].method == "none":
        warning = f"{method} calibration needs both labels and two different logits; the logits stay uncalibrated"
    return CalibratorChoice(fitted[best], crossed[best], losses, differences, warning)


def _fit(method: Method, cells: NDArray) -> Calibrator:
    """As fit, from the sums over the rows of each cell [3, g]."""
    count, total, positives = cells[:, cells[0] > 0]
    if method == "none" or len(count) < 2 or not 0 < positives.sum() < count.sum():
        return Calibrator()
    x, share = total / count, positives / count
    if method == "isotonic":
        return Calibrator("isotonic", knots=_isotonic(x, share, count))
    if method == "beta":
        features, identity = np.stack([-np.logaddexp(0, -x), np.logaddexp(0, x), np.ones_like(x)]), [1.0, 1.0, 0.0]
    else:
        features, identity = np.stack([x, np.ones_like(x)]), [1.0, 0.0]
    lowest = [MIN_SLOPE if slope else -MAX_VALUE for slope in identity]
    k = 1 if method == "temperature" else len(identity)
    found = _logistic(features[:k], share, count, np.array(identity[:k]), np.array(lowest[:k]))
    return Calibrator(method, (1 / float(found[0]),) if method == "temperature" else tuple(found.tolist()))


def _cross_fitted(method: Method, z: NDArray, cells: NDArray, part: NDArray) -> NDArray[np.float64]:
    """Each row calibrated by the fit on the other folds' cells; unchanged with a single fold."""
    calibrated = z.copy()
    for number in range(len(cells)) if len(cells) > 1 else ():
        inside = part == number
        calibrated[inside] = _fit(method, np.delete(cells, number, axis=0).sum(axis=0)).apply(z[inside])
    return calibrated


def _cells(z: NDArray, y: NDArray, part: NDArray, copies: NDArray | None = None) -> NDArray[np.float64]:
    """Sums over (nearly) equal logits, rising, by part: count, sum of logits and positives [parts, 3, g]."""
    z = limited(z)
    if len(z) <= CELLS:
        values, cell = np.unique(z, return_inverse=True)
        g = len(values)
    else:
        cell, g = logit_cells(z, CELLS), CELLS
    n, index = int(part.max()) + 1, part * g + cell
    columns = (None, z, y) if copies is None else (copies, copies * z, copies * y)
    sums = [np.bincount(index, weights=weights, minlength=n * g).reshape(n, g) for weights in columns]
    return np.stack(sums, axis=1).astype(np.float64)


def _logistic(
    features: NDArray, share: NDArray, count: NDArray, identity: NDArray, lowest: NDArray
) -> NDArray[np.float64]:
    """Logistic regression on features [k, g], parameters [k] >= lowest, with a ridge towards `identity`.

    Projected Newton with step halving (Bertsekas, SIAM J. Control Optim. 20, 1982).
    """

    def loss(theta: NDArray) -> float:
        line = np.einsum("k,kg->g", theta, features)
        fitted = np.einsum("g,g->", count, np.logaddexp(0, line) - share * line)
        return float(fitted + RIDGE / 2 * ((theta - identity) ** 2).sum())

    theta, now = identity.copy(), loss(identity)
    for _ in range(100):
        p = expit(np.einsum("k,kg->g", theta, features))
        slope = np.einsum("g,kg->k", count * (p - share), features) + RIDGE * (theta - identity)
        curve = np.einsum("g,jg,kg->jk", count * p * (1 - p), features, features) + RIDGE * np.eye(len(identity))
        free = (theta > lowest) | (slope < 0)
        step = np.zeros_like(theta)
        step[free] = np.linalg.solve(curve[np.ix_(free, free)], slope[free])
        if slope @ step < 1e-10 * (1 + now):  # converged, but for this last quadratic step
            return np.clip(theta - step, lowest, MAX_VALUE)
        length = 1.0
        while (ahead := loss(new := np.clip(theta - length * step, lowest, MAX_VALUE))) >= now and length > 1e-10:
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


def _interpolated(z: NDArray, knots: NDArray) -> NDArray[np.float64]:
    """Straight lines through knots [k, 2]; clipped to the two knots around, which rounding could pass."""
    x, value = knots.T
    right = np.clip(np.searchsorted(x, z), 1, len(x) - 1)  # a single knot is on both sides
    return np.clip(np.interp(z, x, value), value[right - 1], value[right])
