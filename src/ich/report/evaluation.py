"""Evaluate models on labelled rows: scores with confidence intervals, overall and per class, for scores.json."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ich.ensemble import metrics, thresholds
from ich.ensemble.intervals import Bootstrap
from ich.ensemble.reliability import expected_calibration_error, reliability
from ich.ensemble.scoring import DIGITS, Decisions, Score, all_scores, rounded

RESAMPLES = 1000  # of the bootstrap over patients
ROWS = {"oof": "the labelled slices", "test": "the hidden solution"}


class Rows:
    """Labelled slices: `ids` [n], `labels` [n, c], the patient of each [n], and a bootstrap over these patients."""

    def __init__(self, table: pd.DataFrame, classes: Sequence[str]) -> None:
        self.ids = pd.Index(table["image_id"])
        self.labels = table[list(classes)].to_numpy("float64")
        self.patients = table["patient_id"].to_numpy()
        self.bootstrap = Bootstrap(self.patients, resamples=RESAMPLES)

    def counts(self, classes: Sequence[str]) -> dict[str, Any]:
        return {
            "slices": len(self.labels),
            "patients": len(set(self.patients)),
            "classes": {
                name: {
                    "positives": int(column.sum()),
                    "patients": len(set(self.patients[column > 0])),
                    "prevalence": round(float(column.mean()), 6),
                }
                for name, column in zip(classes, self.labels.T, strict=True)
            },
        }


@dataclass(frozen=True)
class Evaluated:
    """One model: scores by set of rows, thresholds by metric and class, and rows of confusion.csv.

    The thresholds are tuned on all out-of-fold rows; `in_sample` holds the scores on these rows.
    """

    scores: dict[str, dict[str, Score]]
    thresholds: dict[str, dict[str, float]]
    in_sample: dict[str, float]
    confusion: list[dict[str, Any]]


def evaluate(
    rows: Mapping[str, Rows],
    probability: Mapping[str, NDArray[np.float64]],
    fold: NDArray[np.integer],
    classes: Sequence[str],
    class_weights: Sequence[float],
    goals: Mapping[str, thresholds.Goal],
) -> Evaluated:
    """Score a model's probabilities [n, c] on "oof" and, if given, "test". fold [n]: of the out-of-fold rows.

    F-beta uses the thresholds of the other folds out of fold, and those of all out-of-fold rows on the test set. The
    thresholds are exact optima, without Optuna, for every model.
    """
    scores: dict[str, dict[str, Score]] = {}
    cuts: dict[str, dict[str, float]] = {}
    in_sample: dict[str, float] = {}
    confusion: list[dict[str, Any]] = []
    for where, some in rows.items():
        p = probability[where]
        decisions: dict[str, Decisions] = {}
        for metric, goal in goals.items():
            if where == "oof":
                tuned = thresholds.tune(some.labels, p, classes, goal, fold=fold)
                assert tuned.decided is not None, "folds are given"
                cuts[metric], in_sample[metric], decided = tuned.thresholds, tuned.score, tuned.decided
            else:
                decided = thresholds.apply(p, [cuts[metric][name] for name in classes])
            decisions[metric] = Decisions(goal.beta, decided)
            decisions[f"{metric}_half"] = Decisions(goal.beta, p >= 0.5)
        for name, positive in {"0.5": p >= 0.5, **{metric: decisions[metric].positive for metric in goals}}.items():
            counts = metrics.confusion(some.labels, positive)
            for c, label in enumerate(classes):
                line = {"rows": where, "thresholds": name, "class": label}
                confusion.append(line | {key: column[c].item() for key, column in counts.items()})
        scores[where] = all_scores(some.bootstrap, some.labels, p, decisions, class_weights)
    return Evaluated(scores, cuts, in_sample, confusion)


def cells(one: Evaluated, blend: Evaluated, classes: Sequence[str]) -> dict[str, Any]:
    """The scores of a model as in scores.json, with the difference to the blend unless it is the blend."""
    found: dict[str, Any] = {}
    for where, scores in one.scores.items():
        overall: dict[str, Any] = {name: score.cell() for name, score in scores.items()}
        for name, cell in overall.items():
            if where == "oof" and name in one.in_sample:
                cell["in_sample"] = rounded(one.in_sample[name])
            if one is not blend:
                cell["minus_blend"] = scores[name].minus(blend.scores[where][name])
        overall["classes"] = {
            label: {
                **{name: score.cell(c) for name, score in scores.items()},
                "thresholds": {metric: rounded(cuts[label]) for metric, cuts in one.thresholds.items()},
            }
            for c, label in enumerate(classes)
        }
        found[where] = overall
    return found


def calibration(
    rows: Mapping[str, Rows], probability: Mapping[str, NDArray[np.float64]], classes: Sequence[str]
) -> tuple[list[dict[Any, Any]], dict[str, dict[str, float]]]:
    """The rows of reliability.csv, and the expected calibration error by set of rows and class."""
    curves: list[pd.DataFrame] = []
    errors: dict[str, dict[str, float]] = {}
    for where, some in rows.items():
        errors[where] = {}
        for name, y, p in zip(classes, some.labels.T, probability[where].T, strict=True):
            curve = reliability(y, p, patients=some.patients)
            curve.insert(0, "rows", where)
            curve.insert(1, "class", name)
            curves.append(curve)
            errors[where][name] = round(expected_calibration_error(y, p), DIGITS)
    return pd.concat(curves).to_dict("records"), errors


def one_label_warnings(rows: Mapping[str, Rows], classes: Sequence[str]) -> Iterator[str]:
    """Warn of classes with one label only, whose AUC and average precision are undefined."""
    for where, some in rows.items():
        share = some.labels.mean(axis=0)
        names = [name for name, positive in zip(classes, share, strict=True) if positive in (0, 1)]
        if names:
            yield f"{', '.join(names)}: one label only in {ROWS[where]}; macro AUC and average precision exclude them"
