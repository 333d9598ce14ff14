"""Estimate the prevalence of a class in the test set from its predictions, and shift predictions to it.

Where only the prevalence differs between the training and the test set, and slices with and without a bleed look
alike in both, a calibrated probability p means odds p / (1 - p) * new odds / prior odds (Saerens, Latinne and
Decaestecker, Neural Computation 14, 2002). Miscalibration and a shift of prevalence cannot be distinguished.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_array
from scipy.special import expit, logit

from ich.ensemble import calibration
from ich.ensemble.hierarchy import project_any
from ich.ensemble.intervals import Bootstrap, interval
from ich.ensemble.metrics import limited, logit_cells

# An estimate lies within these bounds: one in a million is as far as a class can seem to vanish.
LEAST, MOST = 1e-6, 1 - 1e-6
# Bisection steps on the logit scale: 2 * 13.8 / 2^50 is at the rounding of a double.
STEPS = 50
# Cells of equal width in the logit that the draws of a bootstrap are counted in: 0.03 wide.
CELLS = 1024


@dataclass(frozen=True)
class Estimate:
    """A prevalence, and why it should not be trusted: "" where there is no reason."""

    prevalence: float
    warning: str = ""


def estimate(p: ArrayLike, prior: float) -> Estimate:
    """The test set's prevalence of a class: calibrated probabilities p [m] of the test rows, training prevalence prior.

    It maximises the likelihood of the test rows, sum_i ln(q p_i / prior + (1 - q) (1 - p_i) / (1 - prior)), in q.
    That is where the EM of Saerens et al. ends; the function is concave, so bisection of its slope finds the same
    point in 50 steps, where EM needs thousands if the classes overlap.

    Without a row, with a prior of 0 or 1 and with rows that say nothing, the estimate is the prior. One that runs to
    0 or 1 is returned as 1e-6 or 1 - 1e-6, with a warning.
    """
    probabilities = _checked(p, prior)
    if probabilities.size == 0:
        return Estimate(prior, "there is no test row to estimate a prevalence from")
    if not 0 < prior < 1:
        return Estimate(prior, f"the training prevalence is {prior:g}, so the probabilities say nothing of another one")
    found = float(_most_likely(probabilities, np.ones((1, len(probabilities))), prior)[0])
    if found in {LEAST, MOST}:
        return Estimate(
            found, f"the estimated prevalence runs to {round(found)}; the probabilities do not fit the prior"
        )
    return Estimate(found)


def estimate_draws(p: ArrayLike, prior: float, bootstrap: Bootstrap) -> NDArray[np.float64]:
    """The estimate in each draw [b] of the test patients; rows are counted in cells of their logit, 0.03 wide."""
    probabilities = _checked(p, prior)
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
    """The change of each prevalence from rows z [n, c] with labels y [n, c] to the test rows z_test [m, c]; logits.

    Platt scaling comes first, because the estimate needs calibrated probabilities. With a class "any" only its
    prevalence is estimated, and the others follow (`scaled_by_any`).
    """
    priors = y.mean(axis=0, dtype=np.float64)
    found: dict[str, Shift] = {}
    for name in ["any"] if "any" in classes else classes:
        c = list(classes).index(name)
        calibrated = expit(calibration.fit("platt", z[:, c], y[:, c]).apply(z_test[:, c]))
        one = estimate(calibrated, priors[c])
        low, high = interval(estimate_draws(calibrated, priors[c], test_patients))
        moved = not one.warning and not low <= priors[c] <= high
        test = one.prevalence if moved else float(priors[c])
        found[name] = Shift(float(priors[c]), test, one.prevalence, low, high, one.warning)
    if "any" not in classes:
        return found
    leader = found["any"]
    test, estimated, low, high = (
        scaled_by_any(priors, classes, value) for value in (leader.test, leader.estimated, leader.low, leader.high)
    )
    return {
        name: Shift(float(priors[c]), float(test[c]), float(estimated[c]), float(low[c]), float(high[c]))
        for c, name in enumerate(classes)
    } | {"any": leader}


def scaled_by_any(priors: ArrayLike, classes: Sequence[str], new_any: float) -> NDArray[np.float64]:
    """All prevalences [c] if that of "any" changes to `new_any`: in proportion, for the same mix of subtypes.

    Negatives of one subtype include positives of the others, so that they look different in a set with more
    hemorrhages, and an estimate for the subtype alone is biased. That of "any" is not, and has the most positives.
    """
    prevalences = np.array(priors, dtype=np.float64)
    before = prevalences[list(classes).index("any")]
    return prevalences * (new_any / before) if before > 0 else prevalences


def shift(logits: ArrayLike, prior: float, new: float) -> NDArray[np.float64]:
    """Calibrated logits, of any shape, as they would be with prevalence `new` instead of `prior`."""
    positive, negative = factors(prior, new)
    return np.asarray(logits, dtype=np.float64) + (np.log(positive) - np.log(negative))


def shift_all(
    logits: NDArray, classes: Sequence[str], weights: Sequence[float], prevalences: Sequence[tuple[float, float]]
) -> NDArray[np.float64]:
    """Logits [n, c], each class shifted from one prevalence to the other; "any" stays at least its largest subtype.

    weights [c]: see hierarchy.project_any.
    """
    shifted = [shift(z, prior, new) for z, (prior, new) in zip(logits.T, prevalences, strict=True)]
    return project_any(np.column_stack(shifted), classes, weights)


def factors(prior: float, new: float) -> tuple[float, float]:
    """What a positive and a negative row weigh to stand for a set with prevalence `new` instead of `prior`.

    (1, 1) where both are the same. Raises ValueError where they differ and one of them is not between 0 and 1.
    """
    if prior == new:
        return 1.0, 1.0
    if not (0 < prior < 1 and 0 < new < 1):
        raise ValueError(f"no weights lead from prevalence {prior} to {new}: both must lie between 0 and 1.")
    return new / prior, (1 - new) / (1 - prior)


def _checked(p: ArrayLike, prior: float) -> NDArray[np.float64]:
    probabilities = np.asarray(p, dtype=np.float64)
    if probabilities.ndim != 1 or not ((probabilities >= 0) & (probabilities <= 1)).all():
        raise ValueError("a prevalence is estimated from a class's probabilities [m], all of them in 0..1.")
    if not 0 <= prior <= 1:
        raise ValueError(f"the training prevalence is {prior}; it must lie in 0..1.")
    return probabilities


def _most_likely(p: NDArray, weights: NDArray, prior: float) -> NDArray[np.float64]:
    """The prevalence [b] with the largest likelihood of probabilities p [k] that weigh weights [b, k]."""
    positive, negative = p / prior, (1 - p) / (1 - prior)
    difference = positive - negative
    if np.abs(difference).max() < 1e-9:
        return np.full(len(weights), prior)
    low, high = np.full(len(weights), logit(LEAST)), np.full(len(weights), logit(MOST))
    for _ in range(STEPS):
        middle = (low + high) / 2
        slope = np.einsum("bk,bk->b", weights, difference / (negative + expit(middle)[:, None] * difference))
        low, high = np.where(slope > 0, middle, low), np.where(slope > 0, high, middle)
    found = expit((low + high) / 2)
    return np.where(found < LEAST * (1 + 1e-9), LEAST, np.where(found > MOST - 1e-15, MOST, found))
