"""Scores of studies: predicted by attention pooling, or by the maximum over slices."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ich.ensemble import thresholds
from ich.ensemble.calibration import choose_calibrator
from ich.ensemble.predictions import sigmoid
from ich.ensemble.scoring import Score, all_scores, study_scores
from ich.report.evaluation import Rows, score_cells


def evaluate_studies(
    rows: Mapping[str, Rows],
    logits: Mapping[str, NDArray[np.float64]],
    fold: NDArray[np.integer],
    classes: Sequence[str],
    class_weights: Sequence[float],
    goal: thresholds.Goal,
) -> dict[str, dict[str, Score]]:
    """Score study logits [s, c] on "oof" and, if given, "test". fold [n]: of the out-of-fold slices.

    Platt scaling and thresholds are fitted on the studies of the other folds; for the test set on all.
    """
    oof, labels = rows["oof"], rows["oof"].per_study(rows["oof"].labels)
    fold, pairs = fold[oof.first], zip(logits["oof"].T, labels.T, strict=True)
    chosen = [choose_calibrator(z, y, fold, oof.study_bootstrap, "platt") for z, y in pairs]
    p = {"oof": sigmoid(np.column_stack([one.logits for one in chosen]))}
    tuned = thresholds.tune(labels, p["oof"], classes, goal, fold=fold)
    assert tuned.decided is not None, "folds are given"
    positive = {"oof": tuned.decided}
    if "test" in rows:
        columns = zip(chosen, logits["test"].T, strict=True)
        p["test"] = sigmoid(np.column_stack([one.calibrator.apply(z) for one, z in columns]))
        positive["test"] = thresholds.apply(p["test"], [tuned.thresholds[name] for name in classes])
    found: dict[str, dict[str, Score]] = {}
    for where, some in rows.items():
        labels = some.per_study(some.labels)
        log_loss = all_scores(some.study_bootstrap, labels, p[where], {}, class_weights)["log_loss"]
        scores = study_scores(some.study_bootstrap, labels, p[where], positive[where])
        found[where] = {"log_loss": log_loss, **scores}
    return found


def pooled_cells(
    pooled: Mapping[str, Score], maximum: Mapping[str, Score], classes: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Both ways to predict studies as in scores.json, with the differences of the pooled ones to the maximum."""
    found = {"pooled": score_cells(pooled, classes), "maximum": score_cells(maximum, classes)}
    for name, score in pooled.items():
        found["pooled"][name]["minus_maximum"] = score.minus(maximum[name])
    return found
