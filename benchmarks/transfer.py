"""`python -m benchmarks.transfer`: F by `thresholds.transfer: quantile` minus F by value, in simulated competitions.

Logits are normal, with the means and deviations of the demo's blend on its test set. Half of each variance is between
studies.
"""

from itertools import product

import numpy as np
from numpy.typing import NDArray

from ich.ensemble import thresholds
from ich.ensemble.metrics import f_beta
from ich.ensemble.predictions import sigmoid
from ich.ensemble.thresholds import Goal

PREVALENCE = np.array([0.041, 0.064, 0.100, 0.083, 0.068, 0.230])
MEAN = np.array([[-5.3, -5.2, -5.7, -4.3, -5.0, -4.3], [-1.6, -1.2, -0.8, -0.4, 0.6, 3.7]])  # negatives, positives
COMMON = np.array(
    [[1.8, 1.9, 2.0, 2.0, 2.6, 1.5], [0.9, 0.7, 1.4, 1.3, 1.8, 3.0]]
)  # standard deviations that folds share
OF_FOLD = np.array([[0.63, 0.51, 0.76, 0.54, 0.91, 0.65], [0.60, 0.30, 0.77, 0.56, 1.02, 0.81]])  # and of single folds
SLICES, TRAIN, TEST, SEEDS = 24, 84, 160, 60  # slices per study, studies, competitions


def drawn(rng: np.random.Generator, studies: int, folds: int, prevalence: NDArray) -> tuple[NDArray, NDArray]:
    """Labels [n, 6] and logits [folds, n, 6] of studies."""

    def deviation(*shape: int) -> NDArray:
        of_study = np.repeat(rng.normal(size=(*shape, studies, 6)), SLICES, axis=-2)
        return (of_study + rng.normal(size=of_study.shape)) / np.sqrt(2)

    y = (rng.random((studies * SLICES, 6)) < prevalence).astype(int)
    mean, common, of_fold = (np.take_along_axis(table, y, axis=0) for table in (MEAN, COMMON, OF_FOLD))
    return y, mean + common * deviation() + of_fold * deviation(folds)


def difference(seed: int, folds: int, beta: float, times: float) -> float:
    """Macro F on the test set by quantile minus that by value, `times` as many positives there as in training."""
    rng, goal = np.random.default_rng(seed), Goal(beta)
    y, z = drawn(rng, TRAIN, folds, PREVALENCE)
    rows = np.arange(len(y))
    by_value = thresholds.exact_all(y, sigmoid(z[rows // SLICES % folds, rows]), goal, [(1.0, 1.0)] * 6)
    y, z = drawn(rng, TEST, folds, times * PREVALENCE)
    mean = sigmoid(z.mean(axis=0))
    moved = thresholds.transfer(by_value, list(sigmoid(z)), mean)
    scores = [f_beta(y, thresholds.apply(mean, cuts), beta, "macro") for cuts in (by_value, moved)]
    return scores[1] - scores[0]


if __name__ == "__main__":
    for folds, beta, times in product((3, 5), (1, 2), (0.5, 1, 2)):
        found = [difference(seed, folds, beta, times) for seed in range(SEEDS)]
        error = np.std(found, ddof=1) / np.sqrt(SEEDS)
        print(f"{folds} folds, F{beta}, {times} x the positives: {np.mean(found):+.4f} ± {error:.4f}", flush=True)
