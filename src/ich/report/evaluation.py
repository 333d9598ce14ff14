"""Evaluate models on labelled rows: scores with confidence intervals, overall and per class, for scores.json."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ich.ensemble import metrics, thresholds
from ich.ensemble.intervals import Bootstrap
from ich.ensemble.reliability import expected_calibration_error, reliability
from ich.ensemble.scoring import DIGITS, Decisions, Score, all_scores, rounded, scores_by_fold, study_scores

RESAMPLES = 1000  # of the bootstrap over patients
ROWS = {"oof": "the labelled slices", "test": "the hidden solution"}


class Rows:
    """Labelled slices: `ids` [n], `labels` [n, c], patient and study number of each [n], and bootstraps over patients.

    `bootstrap` has one row per slice, `study_bootstrap` one per study with the same draws.
    """

    def __init__(self, table: pd.DataFrame, classes: Sequence[str]) -> None:
        self.ids = pd.Index(table["image_id"])
        self.labels = table[list(classes)].to_numpy("float64")
        self.patients = table["patient_id"].to_numpy()
        self.study, self.study_ids = pd.factorize(table["study_id"])
        self.bootstrap = Bootstrap(self.patients, resamples=RESAMPLES)
        self.first = np.unique(self.study, return_index=True)[1]  # row of each study
        self.study_bootstrap = self.bootstrap.of_rows(self.first)

    def per_study(self, values: NDArray) -> NDArray:
        """The maximum of values [n, c] over the slices of each study [s, c]."""
        return pd.DataFrame(values).groupby(self.study).max().to_numpy()

    @property
    def has_studies(self) -> bool:
        """False if each study is a single slice."""
        return len(self.study_bootstrap.owner) < len(self.study)

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
    """One model: scores of slices and studies by set of rows, thresholds by metric and class, rows of confusion.csv.

    The thresholds are tuned on all out-of-fold rows; `in_sample` holds the scores on these rows. `by_fold` holds the
    mean over folds of each score and its standard deviation; `micro` the micro F by set of rows and metric.
    """

    scores: dict[str, dict[str, Score]] = field(default_factory=dict)
    studies: dict[str, dict[str, Score]] = field(default_factory=dict)
    thresholds: dict[str, dict[str, float]] = field(default_factory=dict)
    in_sample: dict[str, float] = field(default_factory=dict)
    confusion: list[dict[str, Any]] = field(default_factory=list)
    by_fold: dict[str, tuple[float, float]] = field(default_factory=dict)
    micro: dict[str, dict[str, float]] = field(default_factory=dict)


def evaluate(
    rows: Mapping[str, Rows],
    probability: Mapping[str, NDArray[np.float64]],
    fold: NDArray[np.integer],
    classes: Sequence[str],
    class_weights: Sequence[float],
    goals: Mapping[str, thresholds.Goal],
    study_metric: str,
) -> Evaluated:
    """Score a model's probabilities [n, c] on "oof" and, if given, "test". fold [n]: of the out-of-fold rows.

    F-beta uses the thresholds of the other folds out of fold, and those of all out-of-fold rows on the test set. The
    thresholds are exact optima, without Optuna, for every model. A study has the maximum probability of its slices, and
    is positive if one of them is by the thresholds for `study_metric`.
    """
    found = Evaluated()
    for where, some in rows.items():
        p = probability[where]
        decisions: dict[str, Decisions] = {}
        for metric, goal in goals.items():
            if where == "oof":
                tuned = thresholds.tune(some.labels, p, classes, goal, fold=fold)
                assert tuned.decided is not None, "folds are given"
                found.thresholds[metric], found.in_sample[metric] = tuned.thresholds, tuned.score
                decided = tuned.decided
            else:
                decided = thresholds.apply(p, [found.thresholds[metric][name] for name in classes])
            decisions[metric] = Decisions(goal.beta, decided)
            decisions[f"{metric}_half"] = Decisions(goal.beta, p >= 0.5)
        for name, positive in {"0.5": p >= 0.5, **{metric: decisions[metric].positive for metric in goals}}.items():
            counts = metrics.confusion(some.labels, positive)
            for c, label in enumerate(classes):
                line = {"rows": where, "thresholds": name, "class": label}
                found.confusion.append(line | {key: column[c].item() for key, column in counts.items()})
        if where == "oof":
            found.by_fold.update(scores_by_fold(some.labels, p, fold, decisions, class_weights))
        found.scores[where] = all_scores(some.bootstrap, some.labels, p, decisions, class_weights)
        found.micro[where] = {
            name: metrics.f_beta(some.labels, positive, beta, "micro") for name, (beta, positive) in decisions.items()
        }
        parts = (some.per_study(values) for values in (some.labels, p, decisions[study_metric].positive))
        found.studies[where] = study_scores(some.study_bootstrap, *parts)
    return found


def cells(one: Evaluated, blend: Evaluated, classes: Sequence[str]) -> dict[str, Any]:
    """The scores of a model as in scores.json, with the difference to the blend unless it is the blend."""
    found: dict[str, Any] = {}
    for where, scores in one.scores.items():
        overall = found[where] = score_cells(scores, classes)
        for name, score in scores.items():
            if where == "oof" and name in one.in_sample:
                overall[name]["in_sample"] = rounded(one.in_sample[name])
            if one is not blend:
                overall[name]["minus_blend"] = score.minus(blend.scores[where][name])
            if where == "oof":
                overall[name] |= dict(zip(("fold_mean", "fold_std"), map(rounded, one.by_fold[name]), strict=True))
        for name, value in one.micro[where].items():
            overall[name]["micro"] = rounded(value)
        for label, of_class in overall["classes"].items():
            of_class["thresholds"] = {metric: rounded(cuts[label]) for metric, cuts in one.thresholds.items()}
    return found


def baseline(rows: Mapping[str, Rows]) -> dict[str, NDArray[np.float64]]:
    """Probabilities [n, c] of a model that predicts the prevalence of the out-of-fold rows for each slice."""
    prevalence = rows["oof"].labels.mean(axis=0)
    return {where: np.full_like(some.labels, prevalence) for where, some in rows.items()}


def study_cells(
    rows: Mapping[str, Rows], models: Mapping[str, Evaluated], classes: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """The number of studies and the scores of each model per study, by set of rows, as in scores.json."""
    return {
        where: {
            "studies": len(some.study_bootstrap.owner),
            "positives": dict(zip(classes, some.per_study(some.labels).sum(axis=0).astype(int).tolist(), strict=True)),
            "models": {model: score_cells(one.studies[where], classes) for model, one in models.items()},
        }
        for where, some in rows.items()
        if some.has_studies
    }


def score_cells(scores: Mapping[str, Score], classes: Sequence[str]) -> dict[str, Any]:
    """Scores as in scores.json, of the macro mean and by class."""
    by_class = {label: {name: score.cell(c) for name, score in scores.items()} for c, label in enumerate(classes)}
    return {**{name: score.cell() for name, score in scores.items()}, "classes": by_class}


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
