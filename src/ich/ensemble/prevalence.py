"""Estimate the prevalence of a class in the test set from its predictions.

Only the prevalence may differ from the training set (see final.py): miscalibration and a change of prevalence cannot be
distinguished.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_array
from scipy.special import expit, logit

from ich.ensemble import calibration
from ich.ensemble.intervals import Bootstrap, interval
from ich.ensemble.metrics import limited, logit_cells

LOWEST, HIGHEST = 1e-6, 1 - 1e-6  # bounds of an estimate
STEPS = 50  # of bisection on the logit scale: 2 * 13.8 / 2^50 is at the rounding of a double
CELLS = 1024  # in which bootstrap draws are counted, 0.03 wide in the logit


def estimate(p: ArrayLike, prior: float) -> tuple[float, str]:
    """The test set's prevalence of a class, and "" or a warning.

    p [m]: calibrated probabilities of the test rows, none outside 0..1; prior: the training prevalence.

    The q with the highest likelihood of the test rows, sum_i ln(q p_i / prior + (1 - q) (1 - p_i) / (1 - prior)), to
    which the EM of Saerens et al. (Neural Computation 14, 2002) converges. The likelihood is concave: bisection of its
    slope takes 50 steps, EM thousands. Without rows, and for a prior of 0 or 1, the prior is returned.
    """
    probabilities = np.asarray(p, dtype=np.float64)
    if probabilities.size == 0:
        return prior, "there is no test row to estimate a prevalence from"
    if not 0 < prior < 1:
        return prior, f"the training prevalence is {prior:g}, so another one cannot be estimated"
    found = float(_most_likely(probabilities, np.ones((1, len(probabilities))), prior)[0])
    if found in {LOWEST, HIGHEST}:
        return found, f"the estimated prevalence runs to {round(found)}; the probabilities do not fit the prior"
    return found, ""


def estimate_draws(p: ArrayLike, prior: float, bootstrap: Bootstrap) -> NDArray[np.float64]:
    """The estimate in each draw [b] of the test patients."""
    probabilities = np.asarray(p, dtype=np.float64)
    if probabilities.size == 0 or not 0 < prior < 1:
        return np.full(len(bootstrap.counts), prior)
    used, cell = np.unique(logit_cells(limited(logit(probabilities)), CELLS), return_inverse=True)
    mean = np.bincount(cell, weights=probabilities) / np.bincount(cell)
    # sparse, as a patient has rows in few cells; not BLAS, whose last bits depend on the number of threads
    rows = csr_array((np.ones(len(cell)), (cell, bootstrap.owner)), shape=(len(used), bootstrap.counts.shape[1]))
    return _most_likely(mean, np.ascontiguousarray((rows @ bootstrap.counts.T).T), prior)


@dataclass(frozen=True)
class Shift:
    """A class's prevalence in the training set, and its estimate in the test set with a confidence interval.

    test is the training prevalence unless the interval, over draws of the test patients, excludes that.
    """

    train: float
    test: float
    estimated: float
    low: float
    high: float
    warning: str = ""


def shifts(
    z: NDArray, y: NDArray, z_test: NDArray, classes: Sequence[str], test_patients: Bootstrap
) -> dict[str, Shift]:
    """The change of each prevalence from rows with logits z [n, c] and labels y [n, c] to test rows z_test [m, c].

    The estimate needs calibrated probabilities, so Platt scaling comes first. With a class "any" only its prevalence
    is estimated, and the others follow (`scaled_by_any`).
    """
    priors = y.mean(axis=0, dtype=np.float64)
    found: dict[str, Shift] = {}
    for name in ["any"] if "any" in classes else classes:
        c = list(classes).index(name)
        calibrated = expit(calibration.fit("platt", z[:, c], y[:, c]).apply(z_test[:, c]))
        estimated, warning = estimate(calibrated, priors[c])
        low, high = interval(estimate_draws(calibrated, priors[c], test_patients))
        moved = not warning and not low <= priors[c] <= high
        test = estimated if moved else float(priors[c])
        found[name] = Shift(float(priors[c]), test, estimated, low, high, warning)
    if "any" not in classes:
        return found
    of_any = found["any"]
    test, estimated, low, high = (
        scaled_by_any(priors, classes, value) for value in (of_any.test, of_any.estimated, of_any.low, of_any.high)
    )
    return {
        name: Shift(float(priors[c]), float(test[c]), float(estimated[c]), float(low[c]), float(high[c]))
        for c, name in enumerate(classes)
    } | {"any": of_any}


def scaled_by_any(priors: ArrayLike, classes: Sequence[str], new_any: float) -> NDArray[np.float64]:
    """All prevalences [c] if that of "any" changes to `new_any`, for the same mix of subtypes.

    Negatives of one subtype include positives of the others, so that they look different in a set with more
    hemorrhages, and an estimate for the subtype alone is biased. That of "any" is not, and has the most positives.
    """
    prevalences = np.array(priors, dtype=np.float64)
    before = prevalences[list(classes).index("any")]
    return prevalences * (new_any / before) if before > 0 else prevalences


def _most_likely(p: NDArray, weights: NDArray, prior: float) -> NDArray[np.float64]:
    """The prevalence [b] with the highest likelihood of probabilities p [k] with weights [b, k]."""
    positive, negative = p / prior, (1 - p) / (1 - prior)
    difference = positive - negative
    if np.abs(difference).max() < 1e-9:
        return np.full(len(weights), prior)
    low, high = np.full(len(weights), logit(LOWEST)), np.full(len(weights), logit(HIGHEST))
    for _ in range(STEPS):
        middle = (low + high) / 2
        slope = np.einsum("bk,bk->b", weights, difference / (negative + expit(middle)[:, None] * difference))
        low, high = np.where(slope > 0, middle, low), np.where(slope > 0, high, middle)
    found = expit((low + high) / 2)
    return np.where(found < LOWEST * (1 + 1e-9), LOWEST, np.where(found > HIGHEST - 1e-15, HIGHEST, found))
