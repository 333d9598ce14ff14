"""Project predictions so that "any" is at least its largest subtype, without raising any slice's log loss."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ich.ensemble.metrics import checked_weights, limited


def project_any(logits: ArrayLike, classes: Sequence[str], weights: ArrayLike) -> NDArray[np.float64]:
    """Logits [n, c] with "any" at least every subtype, as near to the given ones as that allows.

    Each row becomes the point r of the convex set {any >= each subtype} with the smallest divergence D(r, p) =
    sum_c w_c kl(r_c || p_c) from its probabilities p; w are the class weights [c] of the log loss. The loss of a row
    with labels y is D(y, p). Labels lie in the set, and D is a Bregman divergence, so D(y, p) >= D(y, r) + D(r, p)
    (generalised Pythagorean theorem: Banerjee et al., JMLR 6, 2005, appendix A): no row's loss rises. Raising "any" to
    the largest subtype has no such guarantee.

    The slope of kl(r || p) in r is logit r - logit p, so classes that become equal lie at the weighted mean of their
    logits: "any" is pooled with the subtypes above it, the largest first, until the next is not above the mean. A pool
    of weight 0 takes its largest logit. Rows in order, and tables without "any", are returned unchanged. Means are of
    logits clipped as in the metric.

    Raises ValueError for another shape, invalid weights and NaN.
    """
    projected = np.array(logits, dtype=np.float64)
    if projected.ndim != 2 or projected.shape[1] != len(classes) or np.isnan(projected).any():
        raise ValueError(f"logits {projected.shape} must be [n, {len(classes)}], without NaN.")
    share = checked_weights(weights, len(classes))
    if "any" not in classes or len(classes) == 1:
        return projected
    column = list(classes).index("any")
    wrong = np.flatnonzero(projected.max(axis=1) > projected[:, column])
    table = projected[wrong]
    pooled = _pooled(limited(table), column, share)
    table = np.minimum(table, pooled[:, None])
    table[:, column] = pooled
    projected[wrong] = table
    return projected


def _pooled(z: NDArray, column: int, share: NDArray) -> NDArray[np.float64]:
    """The logit [n] of the pool that contains "any" in each row."""
    subtypes = np.delete(np.arange(z.shape[1]), column)
    order = subtypes[np.argsort(-z[:, subtypes], axis=1, kind="stable")]
    falling = np.take_along_axis(z, order, axis=1)
    weight = share[column] + np.cumsum(share[order], axis=1)
    total = share[column] * z[:, [column]] + np.cumsum(share[order] * falling, axis=1)
    # means[:, k] is the pool of "any" and the k largest subtypes
    means = np.divide(total, weight, out=np.broadcast_to(falling[:, :1], weight.shape).copy(), where=weight > 0)
    means = np.column_stack([z[:, column], means])
    stops = np.column_stack([falling <= means[:, :-1], np.ones(len(z), dtype=bool)])
    return means[np.arange(len(z)), stops.argmax(axis=1)]
