"""Submitted probabilities and thresholds from the blend's logits, shifted to another prevalence where applied.

Where only the prevalence differs between two sets, and slices with and without a bleed look alike in both, a calibrated
probability p means odds p / (1 - p) * new odds / prior odds (Saerens, Latinne and Decaestecker, Neural Computation 14,
2002).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ich.ensemble.hierarchy import project_any
from ich.ensemble.predictions import sigmoid


def final_probabilities(
    tuned: Mapping[str, Any], logits: NDArray, classes: Sequence[str], class_weights: Sequence[float]
) -> tuple[NDArray, list[float]]:
    """Probabilities [n, c] of logits [n, c], and thresholds [c], by the content of thresholds.json (`tuned`)."""
    if tuned["prevalence"]["applied"]:
        shifts = tuned["prevalence"]["classes"]
        changes = [(shifts[name]["train"], shifts[name]["test"]) for name in classes]
        logits = shift_all(logits, classes, class_weights, changes)
    return sigmoid(logits), final_thresholds(tuned, classes)


def final_thresholds(tuned: Mapping[str, Any], classes: Sequence[str]) -> list[float]:
    """Thresholds [c] of the submission."""
    shifts = tuned["prevalence"]["classes"] if tuned["prevalence"]["applied"] else {}
    cuts = {**tuned["thresholds"], **{name: shift["threshold"] for name, shift in shifts.items()}}
    cuts = tuned.get("transferred", cuts)
    return [cuts[name] for name in classes]


def final_prevalence(tuned: Mapping[str, Any], classes: Sequence[str]) -> list[float]:
    """Prevalence [c] that is submitted for images that cannot be read: of the training set, unless it is shifted."""
    if tuned["prevalence"]["applied"]:
        return [tuned["prevalence"]["classes"][name]["test"] for name in classes]
    return [tuned["positives"][name] / tuned["rows"] for name in classes]


def shift_all(
    logits: NDArray, classes: Sequence[str], weights: Sequence[float], prevalences: Sequence[tuple[float, float]]
) -> NDArray[np.float64]:
    """Calibrated logits [n, c], each class shifted from one prevalence to the other, then projected.

    weights [c]: see hierarchy.project_any.
    """
    positive, negative = np.log([prevalence_factors(prior, new) for prior, new in prevalences]).T
    return project_any(logits + (positive - negative), classes, weights)


def prevalence_factors(prior: float, new: float) -> tuple[float, float]:
    """Weights of a positive and a negative row that change the prevalence from `prior` to `new`.

    (1, 1) where both are the same. Raises ValueError where they differ and one of them is not between 0 and 1.
    """
    if prior == new:
        return 1.0, 1.0
    if not (0 < prior < 1 and 0 < new < 1):
        raise ValueError(f"prevalences {prior} and {new} must be between 0 and 1.")
    return new / prior, (1 - new) / (1 - prior)
