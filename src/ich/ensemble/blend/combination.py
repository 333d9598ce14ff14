"""Combination of one class's models: a mean of their logits, probabilities or ranks, as stored in a file.

Shapes: n rows, m models. Logits are clipped to those of the probabilities 1e-7 and 1 - 1e-7, where log loss clips, so
that a single model that is certain cannot dominate.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise
from typing import Annotated, Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from scipy.special import expit, logit

from ich.ensemble.metrics import limited

Method = Literal["logits", "probabilities", "ranks", "greedy", "weights"]
METHODS: tuple[Method, ...] = get_args(Method)  # the simplest first
Numbers = tuple[Annotated[float, Field(strict=True, allow_inf_nan=False)], ...]
FORBID_EXTRA = ConfigDict(extra="forbid")


@dataclass(frozen=True, config=FORBID_EXTRA)
class Ranks:
    """Maps each model's logit to its quantile among the fitting rows, and the mean quantile back to a logit.

    edges: for each model, k rising logits that divide the rows into k + 1 bins; a logit at an edge is above it.
    quantiles: for each model, the middles of the k + 1 bins, in 0..1. The logit is slope x logit(mean quantile) +
    intercept.
    """

    edges: tuple[Numbers, ...]
    quantiles: tuple[Numbers, ...]
    slope: float = Field(ge=0, strict=True, allow_inf_nan=False)
    intercept: float = Field(strict=True, allow_inf_nan=False)

    def __post_init__(self) -> None:
        if len(self.edges) != len(self.quantiles):
            raise ValueError("ranks need edges and quantiles for each model")
        for edges, quantiles in zip(self.edges, self.quantiles, strict=True):
            if len(quantiles) != len(edges) + 1 or any(a >= b for a, b in pairwise(edges)):
                raise ValueError("edges of ranks must rise, with one more quantile than edges")
            if not 0 <= quantiles[0] <= quantiles[-1] <= 1 or any(a > b for a, b in pairwise(quantiles)):
                raise ValueError("quantiles of ranks must lie in 0..1 and not fall")

    def mean_quantile(self, z: NDArray[np.float64], weights: Sequence[float]) -> NDArray[np.float64]:
        """Weighted mean [n] of the models' quantiles, as a logit; z [n, m]."""
        mean = np.zeros(len(z))
        for column, (weight, edges, quantiles) in enumerate(zip(weights, self.edges, self.quantiles, strict=True)):
            bins = np.searchsorted(np.array(edges), z[:, column], side="right")
            mean += weight * np.array(quantiles)[bins]
        return limited(logit(np.clip(mean, 0, 1)))


@dataclass(frozen=True, config=FORBID_EXTRA)
class Combination:
    """A weighted mean of the models; weights sum to 1, ranks are set for the method ranks only."""

    method: Method
    weights: Numbers
    ranks: Ranks | None = None

    def __post_init__(self) -> None:
        if min(self.weights, default=-1) < 0 or abs(math.fsum(self.weights) - 1) > 1e-6:
            raise ValueError("weights must be 0 or more and sum to 1")
        if (self.method == "ranks") != (self.ranks is not None):
            raise ValueError("ranks must be set for the method ranks, and for no other")
        if self.ranks is not None and len(self.ranks.edges) != len(self.weights):
            raise ValueError("ranks need edges and quantiles for each model")

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

    @staticmethod
    def from_dict(data: Any) -> "Combination":
        """Raises ValueError, in one sentence, for anything that as_dict does not write."""
        try:
            return TypeAdapter(Combination).validate_python(data)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, ("combination", *first["loc"])))
            raise ValueError(f"{place}: {first['msg']}.") from None


def equal(models: int, method: Method = "logits") -> Combination:
    """The unweighted mean."""
    return Combination(method, (1 / models,) * models)


def mean(z: NDArray[np.float64], weights: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
    """Weighted sum [n] over the models of z [n, m]; einsum, because BLAS's last bits depend on the threads."""
    return np.einsum("nm,m->n", z, np.asarray(weights))


def checked_logits(z: ArrayLike) -> NDArray[np.float64]:
    """Logits float64 [n, m]. Raises ValueError for other shapes, no model, and for NaN or infinity."""
    logits = np.asarray(z, dtype=np.float64)
    if logits.ndim != 2 or logits.shape[1] == 0:
        raise ValueError(f"logits {logits.shape} must be [n, m], m > 0.")
    if not np.isfinite(logits).all():
        raise ValueError("logits must be finite; predict the rows with NaN or infinity again.")
    return logits
