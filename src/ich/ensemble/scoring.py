"""All scores of a model's predictions, per class and over all classes, with confidence intervals of the same draws."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ich.ensemble import metrics
from ich.ensemble.intervals import Bootstrap, interval

LEVEL = 0.95
DIGITS = 6  # of a score in JSON; tables and CSV files round the same number to four

Cell = dict[str, float | None]  # value, low, high; None where a score is undefined


class Figure(NamedTuple):
    """A score of each of c classes and, last, of all of them: values [c + 1], and those of each draw [b, c + 1]."""

    values: NDArray[np.float64]
    draws: NDArray[np.float64]

    def cell(self, column: int = -1) -> Cell:
        """The value, of all classes or of one, and its interval."""
        return _cell(self.values[column], self.draws[:, column])

    def minus(self, other: "Figure") -> Cell:
        """The difference of two models' scores over all classes, for the same rows and draws, and its interval."""
        return _cell(self.values[-1] - other.values[-1], self.draws[:, -1] - other.draws[:, -1])


class Decisions(NamedTuple):
    """Decisions, bool [n, c], and the beta of the F-beta that evaluates them."""

    beta: float
    positive: NDArray[np.bool_]


def figures(
    bootstrap: Bootstrap,
    y: NDArray,
    p: NDArray,
    decisions: Mapping[str, Decisions],
    weights: Sequence[float],
) -> dict[str, Figure]:
    """log_loss (over all classes: weighted), auc, ap (macro means), and the macro F-beta of each of the `decisions`.

    y [n, c] of 0 and 1, p [n, c] probabilities, weights [c]. A class with one label only has no AUC and no average
    precision and is left out of their macro means, in a draw as in the table. Its F counts (see `metrics.f_beta`), but
    not in a draw without positives where the table has some. Raises ValueError as metrics does.
    """
    labels, probabilities = metrics.checked_probabilities(y, p)
    losses, share = metrics.row_losses(labels, probabilities), metrics.checked_weights(weights, labels.shape[1])
    drawn = np.stack([bootstrap.means(column) for column in losses.T], axis=1)
    found = {
        "log_loss": Figure(
            np.append(losses.mean(axis=0), metrics.weighted_log_loss(y, p, weights)),
            np.column_stack([drawn, np.einsum("bc,c->b", drawn, share)]),
        )
    }
    ranks = [bootstrap.ranks(labels[:, c], probabilities[:, c]) for c in range(labels.shape[1])]
    auc, precision = (np.stack(draws, axis=1) for draws in zip(*ranks, strict=True))
    found["auc"] = _macro_figure(metrics.class_auc(labels, probabilities), auc)
    found["ap"] = _macro_figure(metrics.class_average_precision(labels, probabilities), precision)
    for name, (beta, positive) in decisions.items():
        counts = ((labels * positive).sum(axis=0), positive.sum(axis=0), labels.sum(axis=0))
        drawn = metrics.f_draws(labels, positive, beta, bootstrap.sums)
        found[name] = _macro_figure(metrics.f_from_counts(*counts, beta), drawn)
    return found


def rounded(value: float) -> float | None:
    """The value as it is written: None, which JSON knows, for NaN."""
    return None if np.isnan(value) else round(float(value), DIGITS)


def _cell(value: float, draws: NDArray[np.float64]) -> Cell:
    low, high = interval(draws, LEVEL) if not np.isnan(value) else (np.nan, np.nan)
    return {"value": rounded(value), "low": rounded(low), "high": rounded(high)}


def _macro_figure(values: NDArray, draws: NDArray) -> Figure:
    """From values [c] and draws [b, c] of each class, both with their macro mean appended."""
    return Figure(np.append(values, metrics.macro(values)), np.column_stack([draws, metrics.macro_rows(draws)]))
