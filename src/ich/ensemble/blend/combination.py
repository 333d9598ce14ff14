"""Combination of one class's models: a mean of their logits, probabilities or ranks, as stored in a file.

Shapes: n rows, m models. Logits are clipped to those of the probabilities 1e-7 and 1 - 1e-7, where log loss clips, so
that a model that is certain cannot outvote all others.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, logit

from ich.ensemble.metrics import limited

Method = Literal["logits", "probabilities", "ranks", "greedy", "weights"]
METHODS: tuple[Method, ...] = get_args(Method)  # the simplest first


@dataclass(frozen=True)
class Ranks:
    """Maps each model's logit to its quantile among the fitting rows, and the mean quantile back to a logit.

    edges: for each model, k rising logits that divide the rows into k + 1 bins; a logit at an edge is above it.
    quantiles: for each model, the middles of the k + 1 bins, in 0..1. The logit is slope x logit(mean quantile) +
    intercept.
    """

    edges: tuple[tuple[float, ...], ...]
    quantiles: tuple[tuple[float, ...], ...]
    slope: float
    intercept: float

    def mean_quantile(self, z: NDArray[np.float64], weights: Sequence[float]) -> NDArray[np.float64]:
        """Weighted mean [n] of the models' quantiles, as a logit; z [n, m]."""
        mean = np.zeros(len(z))
        for column, (weight, edges, quantiles) in enumerate(zip(weights, self.edges, self.quantiles, strict=True)):
            bins = np.searchsorted(np.array(edges), z[:, column], side="right")
            mean += weight * np.array(quantiles)[bins]
        return limited(logit(np.clip(mean, 0, 1)))


@dataclass(frozen=True)
class Combination:
    """`method`, the models' weights, which sum to 1, and for the method ranks their scale."""

    method: Method
    weights: tuple[float, ...]
    ranks: Ranks | None = None

    def apply(self, z: ArrayLike) -> NDArray[np.float64]:
        """Logits [n] of the models' logits z [n, m]. Raises ValueError for another m, and for NaN or infinity."""
        logits = checked_logits(z)
        if logits.shape[1] != len(self.weights):
            raise ValueError(f"there are logits of {logits.shape[1]} models, but weights for {len(self.weights)}.")
        if self.ranks is not None:
            return limited(self.ranks.slope * self.ranks.mean_quantile(logits, self.weights) + self.ranks.intercept)
        logits = limited(logits)
        if self.method == "probabilities":
            return limited(logit(mean(expit(logits), self.weights)))
        return mean(logits, self.weights)

    def as_dict(self) -> dict[str, Any]:
        """For JSON; a combination read by `from_dict` predicts the same to the last bit."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @classmethod
    def from_dict(cls, data: Any) -> "Combination":
        """Raises ValueError, in one sentence, for anything that as_dict does not write."""
        keys = {"method", "weights"}
        if not isinstance(data, dict) or not keys <= set(data) <= keys | {"ranks"}:
            raise ValueError("a combination is an object of method, weights and, for ranks, ranks.")
        method, weights, scale = data["method"], _numbers(data["weights"], "weights"), data.get("ranks")
        if method not in METHODS:
            raise ValueError(f"a combination's method is one of {', '.join(METHODS)}, not {method!r:.40}.")
        if min(weights, default=-1) < 0 or abs(math.fsum(weights) - 1) > 1e-6:
            raise ValueError("a combination's weights are numbers >= 0 that sum to 1.")
        if (method == "ranks") != ("ranks" in data):
            raise ValueError(f"a combination has the key ranks if its method is ranks; this method is {method}.")
        return cls(method, weights, _ranks(scale, len(weights)) if method == "ranks" else None)


def equal(models: int, method: Method = "logits") -> Combination:
    """The simple mean."""
    return Combination(method, (1 / models,) * models)


def mean(z: NDArray[np.float64], weights: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
    """Weighted sum [n] over the models of z [n, m]; einsum, because BLAS's last bits depend on the threads."""
    return np.einsum("nm,m->n", z, np.asarray(weights))


def checked_logits(z: ArrayLike) -> NDArray[np.float64]:
    """Logits float64 [n, m]. Raises ValueError for other shapes, no model, and for NaN or infinity."""
    logits = np.asarray(z, dtype=np.float64)
    if logits.ndim != 2 or logits.shape[1] == 0:
        raise ValueError(f"logits {logits.shape} must be [n, m], of one model or more.")
    if not np.isfinite(logits).all():
        raise ValueError("logits must be finite; predict the rows with NaN or infinity again.")
    return logits


def _ranks(data: Any, models: int) -> Ranks:
    if not isinstance(data, dict) or set(data) != {"edges", "quantiles", "slope", "intercept"}:
        raise ValueError("the scale of ranks is an object of edges, quantiles, slope and intercept.")
    edges, quantiles = (
        tuple(_numbers(row, key) for row in data[key]) if isinstance(data[key], list | tuple) else ()
        for key in ("edges", "quantiles")
    )
    slope, intercept = _numbers([data["slope"], data["intercept"]], "slope and intercept")
    if not len(edges) == len(quantiles) == models:
        raise ValueError(f"the scale of ranks has lists of edges and quantiles for each of the {models} models.")
    for cuts, values in zip(edges, quantiles, strict=True):
        if len(values) != len(cuts) + 1 or any(a >= b for a, b in pairwise(cuts)):
            raise ValueError("a model's edges rise, and it has one quantile more than edges.")
        if not 0 <= values[0] <= values[-1] <= 1 or any(a > b for a, b in pairwise(values)):
            raise ValueError("a model's quantiles lie in 0..1 and do not fall.")
    if slope < 0:
        raise ValueError(f"the slope of ranks is {slope:g}; it must be 0 or more.")
    return Ranks(edges, quantiles, slope, intercept)


def _numbers(data: Any, name: str) -> tuple[float, ...]:
    if not isinstance(data, list | tuple) or not all(type(x) in (int, float) and abs(x) < 1e300 for x in data):
        raise ValueError(f"{name} must be finite numbers.")
    return tuple(float(x) for x in data)
