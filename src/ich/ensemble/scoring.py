"""Every figure of a member's predictions, a class and over all classes, with its interval over the same draws."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ich.ensemble import metrics
from ich.ensemble.intervals import Bootstrap, interval

LEVEL = 0.95
DIGITS = 6  # of a figure in JSON; tables and CSV files round the same number to four

Cell = dict[str, float | None]  # value, low, high; None where a figure does not exist


class Figure(NamedTuple):
    """A score of each of c classes and, last, of all of them: values [c + 1], and those of each draw [b, c + 1]."""

    values: NDArray[np.float64]
    draws: NDArray[np.float64]

    def cell(self, column: int = -1) -> Cell:
        """The value, of all classes or of one, and its interval."""
        return _cell(self.values[column], self.draws[:, column])

    def minus(self, other: "Figure") -> Cell:
        """The difference of two members' scores over all classes, of the same rows and draws, and its interval."""
        return _cell(self.values[-1] - other.values[-1], self.draws[:, -1] - other.draws[:, -1])


class Decisions(NamedTuple):
    """What is positive, bool [n, c], and the beta of the F-beta that it is judged by."""

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
    precision, and leaves their macro mean, in a draw as in the table. Its F counts (see `metrics.f_beta`), but not in a
    draw that happens to lack positives which the table has. Raises ValueError as metrics does.
    """
    labels, probabilities = metrics.checked_probabilities(y, p)
    losses, share = metrics.row_losses(labels, probabilities), metrics.checked_weights(weights, labels.shape[1])
    loss = _columns(bootstrap.means, losses)
    found = {
        "log_loss": _figure(
            losses.mean(axis=0), loss, metrics.weighted_log_loss(y, p, weights), np.einsum("bc,c->b", loss, share)
        )
    }
    ranks = [bootstrap.ranks(labels[:, c], probabilities[:, c]) for c in range(labels.shape[1])]
    for name, values, draws in (
        ("auc", metrics.class_auc(labels, probabilities), [auc for auc, _ in ranks]),
        ("ap", metrics.class_average_precision(labels, probabilities), [precision for _, precision in ranks]),
    ):
        by_class = np.stack(draws, axis=1)
        found[name] = _figure(values, by_class, metrics.macro(values), _macro(by_class))
    actual = _columns(bootstrap.sums, labels)
    lacks = (actual == 0) & labels.any(axis=0)
    for name, (beta, positive) in decisions.items():
        right, predicted = labels * positive, positive.astype(np.float64)
        counts = (right.sum(axis=0), predicted.sum(axis=0), labels.sum(axis=0))
        values = metrics.f_from_counts(*counts, beta)
        drawn = (_columns(bootstrap.sums, right), _columns(bootstrap.sums, predicted), actual)
        draws = np.where(lacks, np.nan, metrics.f_from_counts(*drawn, beta))
        found[name] = _figure(values, draws, metrics.f_beta(labels, positive, beta, "macro"), _macro(draws))
    return found


def rounded(value: float) -> float | None:
    """The value as it is written: None, which JSON knows, for NaN."""
    return None if np.isnan(value) else round(float(value), DIGITS)


def _cell(value: float, draws: NDArray[np.float64]) -> Cell:
    low, high = interval(draws, LEVEL) if not np.isnan(value) else (np.nan, np.nan)
    return {"value": rounded(value), "low": rounded(low), "high": rounded(high)}


def _figure(by_class: NDArray, draws_by_class: NDArray, overall: float, draws: NDArray) -> Figure:
    return Figure(np.append(by_class, overall), np.column_stack([draws_by_class, draws]))


def _columns(sums: Callable[[NDArray], NDArray[np.float64]], values: NDArray) -> NDArray[np.float64]:
    """A Bootstrap's sums or means of each column of values [n, c], [b, c]."""
    return np.stack([sums(column) for column in values.T], axis=1)


def _macro(draws: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean [b] of the columns of draws [b, c] that are not NaN; NaN where all are."""
    known = ~np.isnan(draws)
    count = known.sum(axis=1)
    return np.where(count > 0, np.where(known, draws, 0).sum(axis=1) / np.maximum(count, 1), np.nan)
