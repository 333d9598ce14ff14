"""Reliability table of one class's probabilities, and the expected calibration error."""

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri

from ich.ensemble.intervals import LEVEL
from ich.ensemble.metrics import checked_probabilities


def reliability(y: ArrayLike, p: ArrayLike, bins: int = 15, patients: ArrayLike | None = None) -> pd.DataFrame:
    """One row per bin of probabilities p [n], lowest first, with the labels y [n] of 0 and 1.

    Columns: low, high (smallest and largest probability in the bin), count, probability (mean), observed (share of
    positives), observed_low, observed_high. Bins hold equal numbers of rows, because bins of equal width would put
    nearly all rows into the first at a prevalence of a few per cent. Equal probabilities share a bin.

    The interval is Wilson's (JASA 22, 1927), which is also defined for a bin without positives. With patients [n] its
    number of rows is divided by the design effect, the variance of sums over patients relative to that of independent
    rows, over all bins and at least 1 (Kish, "Survey sampling", 1965).
    """
    labels, probabilities, bin_of = _binned(y, p, bins)
    count = np.bincount(bin_of)
    observed = np.bincount(bin_of, weights=labels) / count
    effective = count / _design_effect(labels - observed[bin_of], bin_of, patients)
    low, high = _wilson(observed, effective)
    ends = pd.Series(probabilities).groupby(bin_of).agg(["min", "max"])
    return pd.DataFrame(
        {
            "low": ends["min"].to_numpy(),
            "high": ends["max"].to_numpy(),
            "count": count,
            "probability": np.bincount(bin_of, weights=probabilities) / count,
            "observed": observed,
            "observed_low": low,
            "observed_high": high,
        }
    )


def expected_calibration_error(y: ArrayLike, p: ArrayLike, bins: int = 15) -> float:
    """Mean over rows of |mean probability - share of positives| of the row's bin; 0 is best.

    Naeini, Cooper and Hauskrecht, AAAI 2015; the bins are those of `reliability`. A perfect model's is above 0 too, as
    the share of positives in a bin has noise.
    """
    labels, probabilities, bin_of = _binned(y, p, bins)
    return float(np.abs(np.bincount(bin_of, weights=probabilities - labels)).sum() / len(labels))


def _binned(y: ArrayLike, p: ArrayLike, bins: int) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.intp]]:
    """Labels, probabilities and bins: rank i of n is in bin i * bins // n, ties in that of the first."""
    labels, probabilities = checked_probabilities(y, p, ndim=1)
    _, group, count = np.unique(probabilities, return_inverse=True, return_counts=True)
    first = np.cumsum(count) - count
    _, bin_of = np.unique((first * bins // len(labels))[group], return_inverse=True)
    return labels, probabilities, bin_of


def _design_effect(residual: NDArray, bin_of: NDArray, patients: ArrayLike | None) -> float:
    if patients is None or not residual.any():
        return 1.0
    _, owner = np.unique(np.asarray(patients), return_inverse=True)
    _, cluster = np.unique(owner * (int(bin_of.max()) + 1) + bin_of, return_inverse=True)
    return max(1.0, float((np.bincount(cluster, weights=residual) ** 2).sum() / (residual**2).sum()))


def _wilson(share: NDArray, n: NDArray) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    z = float(ndtri((1 + LEVEL) / 2))
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2)
    return np.clip(middle - half, 0, share), np.clip(middle + half, share, 1)
