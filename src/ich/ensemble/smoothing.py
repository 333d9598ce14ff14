"""Gaussian smoothing of logits along the study, a baseline for sequence models."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ich.ensemble.metrics import logit_losses

Table = NDArray[np.float64]

REACH = 4.0  # distance, in widths, beyond which slices are ignored; their weight would be below 4e-4


def smooth(logits: ArrayLike, series: ArrayLike, position: ArrayLike, width: float) -> Table:
    """The Gaussian-weighted mean [n, c] of the logits around each slice in its series; rows may have any order.

    logits [n, c]; series [n] integer codes; position [n] in mm along the study; width: the Gaussian's standard
    deviation in mm, 0 for no smoothing. The weights sum to 1 within the series, so that constant logits are unchanged
    at its ends and across gaps too (kernel regression: Nadaraya 1964; Watson 1964).

    Raises ValueError for differing lengths, values that are not finite, and a width below 0.
    """
    z, codes, mm = _checked(logits, series, position)
    if not (np.isfinite(width) and width >= 0):
        raise ValueError(f"the width is {width}; it must be a number of mm, 0 or more.")
    if width == 0:
        return z.copy()
    order = np.lexsort((mm, codes))
    z, codes, mm = z[order], codes[order], mm[order]
    total, weights = z.copy(), np.ones(len(z))
    for offset in range(1, len(z)):
        gap = mm[offset:] - mm[:-offset]
        near = (codes[offset:] == codes[:-offset]) & (gap <= REACH * width)
        if not near.any():  # positions rise within a series: slices further on are further away
            break
        weight = np.where(near, np.exp(-0.5 * (np.where(near, gap, 0.0) / width) ** 2), 0.0)
        total[:-offset] += weight[:, None] * z[offset:]
        total[offset:] += weight[:, None] * z[:-offset]
        weights[:-offset] += weight
        weights[offset:] += weight
    out = np.empty_like(z)
    out[order] = total / weights[:, None]
    return out


def smooth_each(logits: ArrayLike, series: ArrayLike, position: ArrayLike, widths: Sequence[float]) -> Table:
    """As `smooth`, with one width per class [c]."""
    z, codes, mm = _checked(logits, series, position)
    if len(widths) != z.shape[1]:
        raise ValueError(f"there are {len(widths)} widths for {z.shape[1]} classes.")
    out = np.empty_like(z)
    for width in set(widths):
        chosen = np.equal(widths, width)
        out[:, chosen] = smooth(z[:, chosen], codes, mm, width)
    return out


def choose_widths(
    logits: ArrayLike, y: ArrayLike, series: ArrayLike, position: ArrayLike, widths: Sequence[float]
) -> list[float]:
    """The width per class [c] with the lowest log loss on labels y [n, c] of 0 and 1; of equal ones the smallest."""
    z, codes, mm = _checked(logits, series, position)
    labels = np.asarray(y, dtype=np.float64)
    if labels.shape != z.shape or not ((labels == 0) | (labels == 1)).all():
        raise ValueError(f"y {labels.shape} must be of the shape of the logits, {z.shape}, and 0 or 1 without NaN.")
    if not widths:
        raise ValueError("there is no width to choose from.")
    tried = sorted(set(widths))
    losses = np.stack([logit_losses(smooth(z, codes, mm, width), labels).mean(axis=0) for width in tried])
    return [float(tried[best]) for best in losses.argmin(axis=0)]


def _checked(logits: ArrayLike, series: ArrayLike, position: ArrayLike) -> tuple[Table, NDArray, Table]:
    z, mm = np.asarray(logits, dtype=np.float64), np.asarray(position, dtype=np.float64)
    codes = np.asarray(series)
    if z.ndim != 2 or any(column.shape != (len(z),) for column in (codes, mm)):
        raise ValueError(f"logits {z.shape} must be [n, c], and series {codes.shape} and position {mm.shape} [n].")
    if not (np.isfinite(z).all() and np.isfinite(mm).all()):
        raise ValueError("logits and positions must be finite; predict the slices with NaN or infinity again.")
    return z, codes, mm
