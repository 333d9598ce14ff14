"""From the blend's logits to what is submitted: probabilities and thresholds, shifted in prevalence where applied."""

from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from ich.ensemble.predictions import sigmoid
from ich.ensemble.prevalence import shift_all


def final_probabilities(
    tuned: Mapping[str, Any], logits: NDArray, classes: Sequence[str], class_weights: Sequence[float]
) -> tuple[NDArray, list[float]]:
    """Probabilities [n, c] of logits [n, c], and thresholds [c], as thresholds.json (`tuned`) has them."""
    if not tuned["prevalence"]["applied"]:
        return sigmoid(logits), [tuned["thresholds"][name] for name in classes]
    shifts = [tuned["prevalence"]["classes"][name] for name in classes]
    shifted = shift_all(logits, classes, class_weights, [(shift["train"], shift["test"]) for shift in shifts])
    return sigmoid(shifted), [shift["threshold"] for shift in shifts]
