"""One class's members made one: a mean of their logits, probabilities or ranks, as it is kept in a file.

Shapes: n rows, m members. Logits beyond those of the probabilities 1e-7 and 1 - 1e-7, where log loss clips, count as
these: a member that is certain cannot outvote all others.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from typing import Any, Literal, cast, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, logit

from ich.ensemble.metrics import limited

Method = Literal["logits", "probabilities", "ranks", "greedy", "weights"]
METHODS: tuple[Method, ...] = get_args(Method)  # the simplest first


@dataclass(frozen=True)
class Ranks:
    """How a member's logit becomes its quantile among the rows fitted on, and the members' mean quantile a logit.

    edges: of each member, k rising logits that part the rows into k + 1 bins; a logit at an edge is above it.
    quantiles: of each member, the k + 1 bins' middles, in 0..1. The logit is slope x logit(mean quantile) + intercept.
    """

    edges: tuple[tuple[float, ...], ...]
    quantiles: tuple[tuple[float, ...], ...]
    slope: float
    intercept: float

    def mean_quantile(self, z: NDArray[np.float64], weights: Sequence[float]) -> NDArray[np.float64]:
        """Weighted mean [n] of the members' quantiles, as a logit; z [n, m]."""
        mean = np.zeros(len(z))
        for column, (weight, edges, quantiles) in enumerate(zip(weights, self.edges, self.quantiles, strict=True)):
            bins = np.searchsorted(np.array(edges), z[:, column], side="right")
            mean += weight * np.array(quantiles)[bins]
        return limited(logit(np.clip(mean, 0, 1)))


@dataclass(frozen=True)
class Combination:
    """How a class's members become one: `method`, the members' weights, which sum to 1, and for ranks their scale."""

    method: Method
    weights: tuple[float, ...]
    ranks: Ranks | None = None

    def apply(self, z: ArrayLike) -> NDArray[np.float64]:
        """Logits [n] of the members' logits z [n, m]. Raises ValueError for another m, and for NaN or infinity."""
        logits = checked_logits(z)
        if logits.shape[1] != len(self.weights):
            raise ValueError(f"there are logits of {logits.shape[1]} members, but weights for {len(self.weights)}.")
        if self.ranks is not None:
            return limited(self.ranks.slope * self.ranks.mean_quantile(logits, self.weights) + self.ranks.intercept)
        logits = limited(logits)
        if self.method == "probabilities":
            return limited(logit(mean(expit(logits), self.weights)))
        return mean(logits, self.weights)

    def as_dict(self) -> dict[str, Any]:
        """For JSON; `from_dict` reads it again, and what was read predicts the same to the last bit."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @classmethod
    def from_dict(cls, data: object) -> "Combination":
        """Raises ValueError, in one sentence, for data that is not what as_dict wrote."""
        found = _object(data, "a combination", {"method", "weights"}, {"ranks"})
        method = found["method"]
        if not isinstance(method, str) or method not in METHODS:
            raise ValueError(f"a combination's method is one of {', '.join(METHODS)}, not {method!r:.40}.")
        if (method == "ranks") != ("ranks" in found):
            raise ValueError(f"a combination has the scale `ranks` where its method is ranks; this one's is {method}.")
        weights = _numbers(found["weights"], "weights")
        if min(weights, default=-1) < 0 or abs(math.fsum(weights) - 1) > 1e-6:
            raise ValueError("a combination's weights are numbers >= 0 that sum to 1.")
        ranks = _ranks(found["ranks"], len(weights)) if "ranks" in found else None
        return cls(cast("Method", method), weights, ranks)


def equal(members: int, method: Method = "logits") -> Combination:
    """The simple mean."""
    return Combination(method, (1 / members,) * members)


def mean(z: NDArray[np.float64], weights: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
    """Weighted sum [n] over the members of z [n, m]; einsum, not BLAS, whose last bits depend on the threads."""
    return np.einsum("nm,m->n", z, np.asarray(weights))


def checked_logits(z: ArrayLike) -> NDArray[np.float64]:
    """Members' logits float64 [n, m]. Raises ValueError for other shapes, no member, and for NaN or infinity."""
    logits = np.asarray(z, dtype=np.float64)
    if logits.ndim != 2 or logits.shape[1] == 0:
        raise ValueError(f"logits {logits.shape} must be [n, m], of one member or more.")
    if not np.isfinite(logits).all():
        raise ValueError("logits must be finite; predict the rows with NaN or infinity again.")
    return logits


def _ranks(data: object, members: int) -> Ranks:
    found = _object(data, "the scale of ranks", {field.name for field in fields(Ranks)}, set())
    edges, quantiles = _tables(found["edges"], "edges"), _tables(found["quantiles"], "quantiles")
    slope, intercept = _numbers([found["slope"], found["intercept"]], "slope and intercept")
    if not len(edges) == len(quantiles) == members:
        raise ValueError(f"the scale of ranks has edges and quantiles of each of the {members} members.")
    for of_member, values in zip(edges, quantiles, strict=True):
        if len(values) != len(of_member) + 1 or any(a >= b for a, b in pairwise(of_member)):
            raise ValueError("a member's edges rise, and it has one quantile more than edges.")
        if not 0 <= values[0] <= values[-1] <= 1 or any(a > b for a, b in pairwise(values)):
            raise ValueError("a member's quantiles lie in 0..1 and do not fall.")
    if slope < 0:
        raise ValueError(f"the slope of ranks is {slope:g}; it must be 0 or more.")
    return Ranks(edges, quantiles, slope, intercept)


def _object(data: object, what: str, wanted: set[str], possible: set[str]) -> Mapping[str, Any]:
    if not isinstance(data, dict) or not wanted <= set(data) <= wanted | possible:
        raise ValueError(f"{what} is an object of {', '.join(sorted(wanted | possible))}.")
    return data


def _tables(data: object, name: str) -> tuple[tuple[float, ...], ...]:
    if not isinstance(data, list | tuple):
        raise ValueError(f"{name} must be a list of lists of numbers.")
    return tuple(_numbers(row, name) for row in data)


def _numbers(data: object, name: str) -> tuple[float, ...]:
    if not isinstance(data, list | tuple) or not all(type(x) in (int, float) and abs(x) < 1e300 for x in data):
        raise ValueError(f"{name} must be finite numbers.")
    return tuple(float(x) for x in data)
