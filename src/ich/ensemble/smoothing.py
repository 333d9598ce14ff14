"""Gaussian smoothing of logits along the study, a baseline for sequence models."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ich.ensemble.metrics import checked_pair, logit_losses

REACH = 4.0  # distance, in widths, beyond which slices are ignored; their weight would be below 4e-4


def smooth(logits: ArrayLike, series: ArrayLike, position: ArrayLike, width: float) -> NDArray[np.float64]:
    """The Gaussian-weighted mean [n, c] of the logits around each slice in its series; rows may have any order.

    logits [n, c]; series [n] integer codes; position [n] in mm along the study; width: the Gaussian's standard
    deviation in mm, 0 for no smoothing. The weights sum to 1 within the series, so that constant logits are unchanged
    at its ends and across gaps too (kernel regression: Nadaraya 1964; Watson 1964).

    Raises ValueError for values that are not finite.
    """
    z, mm = np.array(logits, dtype=np.float64), np.asarray(position, dtype=np.float64)
    codes = np.asarray(series)
    if not (np.isfinite(z).all() and np.isfinite(mm).all()):
        raise ValueError("logits and positions must be finite; predict the slices with NaN or infinity again.")
    if width == 0:
        return z
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


def smooth_each(
    logits: NDArray, series: ArrayLike, position: ArrayLike, widths: Sequence[float]
) -> NDArray[np.float64]:
    """As `smooth`, with one width per class [c]."""
    out = np.empty(logits.shape)
    for width in set(widths):
        of_width = np.equal(widths, width)
        out[:, of_width] = smooth(logits[:, of_width], series, position, width)
    return out


def choose_widths(
    logits: ArrayLike, y: ArrayLike, series: ArrayLike, position: ArrayLike, widths: Sequence[float]
) -> list[float]:
    """The width per class [c] with the lowest log loss on labels y [n, c] of 0 and 1; of equal ones the smallest."""
    labels, z = checked_pair(y, logits)
    tried = sorted(set(widths))
    losses = np.stack([logit_losses(smooth(z, series, position, width), labels).mean(axis=0) for width in tried])
    return [float(tried[best]) for best in losses.argmin(axis=0)]
