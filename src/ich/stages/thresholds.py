"""`ich thresholds`: tune one threshold per class for an F score, on the blend or on any table."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ich.console import say, table
from ich.ensemble import calibration, metrics, prevalence, thresholds
from ich.ensemble.final import final_probabilities, prevalence_factors, shift_all
from ich.ensemble.intervals import Bootstrap
from ich.ensemble.predictions import sigmoid
from ich.ensemble.thresholds import Goal, user_table
from ich.ensemble.thresholds.search import Search
from ich.errors import UserError
from ich.models.artifacts import read_logits
from ich.models.table import SliceTable
from ich.pipeline.state import Made, Plan
from ich.recipe import Thresholds
from ich.report import thresholds as report
from ich.store.atomic import read_json, require_writable, write_json

AVERAGES: tuple[metrics.Average, ...] = ("macro", "micro")  # reported, whichever of them is tuned


def run(plan: Plan, *, force: bool = False) -> None:
    path = plan.workspace.thresholds
    made = plan.make(plan.thresholds, lambda _: _tune_blend(plan), force=force)
    say(f"thresholds: {'wrote' if made else 'up to date,'} {path}")
    if made:
        _show(read_json(path))


def _tune_blend(plan: Plan) -> Made:
    """Write thresholds.json from the out-of-fold and test logits of the blend."""
    slices, settings = SliceTable.read(plan.workspace, plan.prepared.folder), plan.recipe.thresholds
    path, blend = plan.workspace.thresholds, plan.workspace.model("blend")
    rows = slices.labelled.nonzero()[0]
    z = read_logits(blend / "oof.parquet", slices.ids(rows), slices.classes)
    test_ids = slices.ids(slices.test_rows)
    z_test = read_logits(blend / "test.parquet", test_ids, slices.classes)
    labelled = slices.table.iloc[rows]
    found = tuned(
        slices.labels[rows],
        sigmoid(z),
        slices.classes,
        settings,
        folds=labelled["fold"].to_numpy(),
        patients=labelled["patient_id"].to_numpy(),
    )
    found["studies"] = _study_calibrators(labelled["study_id"], z, slices.labels[rows], slices.classes)
    found["prevalence"] = _prevalence(slices, settings, z, z_test, found["thresholds"])
    if settings.transfer == "quantile":
        folds = [plan.workspace.fold("blend", k) / "test.parquet" for k in plan.fold_numbers]
        tables = [*(read_logits(fold, test_ids, slices.classes) for fold in folds), z_test]
        *single, (mean, cuts) = (final_probabilities(found, z, slices.classes, slices.class_weights) for z in tables)
        moved = thresholds.transfer(cuts, [p for p, _ in single], mean)
        found["transferred"] = dict(zip(slices.classes, moved, strict=True))
    write_json(path, found)
    return {path.name: path}, {}


def _study_calibrators(
    studies: pd.Series, z: np.ndarray, labels: np.ndarray, classes: list[str]
) -> dict[str, dict[str, Any]]:
    """Return Platt scaling of each class's largest logit per study, fitted on all folds, for `ich predict`."""
    largest, known = (pd.DataFrame(one).groupby(studies.to_numpy()).max().to_numpy() for one in (z, labels))
    return {name: calibration.fit("platt", largest[:, c], known[:, c]).as_dict() for c, name in enumerate(classes)}


def _prevalence(
    slices: SliceTable, settings: Thresholds, z: np.ndarray, z_test: np.ndarray, cuts: Mapping[str, float]
) -> dict[str, Any]:
    """Estimate the test prevalence of each class from logits [n, c] and [m, c], and tune thresholds for it."""
    if not len(z_test):
        return {"applied": False, "classes": {}}
    classes, y = slices.classes, slices.labels[slices.labelled]
    patients = slices.table["patient_id"].to_numpy()[slices.test_rows]
    shifts = prevalence.shifts(z, y, z_test, classes, Bootstrap(patients))
    differs = any(shift.test != shift.train for shift in shifts.values())
    if differs and settings.average != "samples":
        changes = [(shifts[name].train, shifts[name].test) for name in classes]
        moved = shift_all(z, classes, slices.class_weights, changes)
        factors = [prevalence_factors(*change) for change in changes]
        best = thresholds.exact_all(y, sigmoid(moved), _goal(settings, classes), factors)
        cuts = dict(zip(classes, best, strict=True))
    return {
        "applied": differs and settings.prevalence == "apply",
        "classes": {name: {**asdict(shift), "threshold": cuts[name]} for name, shift in shifts.items()},
    }


def _goal(settings: Thresholds, classes: list[str]) -> Goal:
    recall = settings.min_recall
    if isinstance(recall, dict) and not set(recall) <= set(classes):
        unknown = sorted(set(recall) - set(classes))[0]
        raise UserError(f"thresholds.min_recall: unknown class {unknown!r}. Choose from {', '.join(classes)}")
    each = tuple(float(recall.get(name, 0) if isinstance(recall, dict) else recall or 0) for name in classes)
    return Goal(settings.beta, settings.average, settings.zero_division, each if any(each) else (), settings.shrink)


def tuned(
    labels: np.ndarray,
    probability: np.ndarray,
    classes: list[str],
    settings: Thresholds,
    *,
    folds: np.ndarray | None,
    patients: np.ndarray | None,
) -> dict[str, Any]:
    """Return the content of thresholds.json: goal, thresholds, and their in-sample and cross-fitted scores.

    averages: macro and micro F, cross-fitted if there are folds. score_exact and gap are those of the goal, which has
    shrunk labels if shrink > 0.
    """
    goal = _goal(settings, classes)
    search = Search(settings.trials, settings.seed)
    found = thresholds.tune(labels, probability, classes, goal, fold=folds, search=search)
    number = None if patients is None else len(np.unique(patients))
    # with one row per patient, the faster bootstrap over rows is the same
    bootstrap = None if patients is None or number == len(labels) else Bootstrap(patients)
    positives = labels.sum(axis=0, dtype="float64")  # recall in float32 would be 0.8999999761581421
    scores: dict[str, Any] = {}
    in_sample = thresholds.apply(probability, list(found.thresholds.values()))
    for suffix, score, decided in (
        ("", found.score, in_sample),
        ("_cross_fitted", found.score_cross_fitted, found.decided),
    ):
        interval = recall = None
        if decided is not None:
            interval = thresholds.f_interval(labels, decided, goal, bootstrap)
            hits = np.einsum("nc,nc->c", labels, decided)
            recall = {name: float(hits[c] / positives[c]) if positives[c] else None for c, name in enumerate(classes)}
        scores |= {f"score{suffix}": score, f"interval{suffix}": interval, f"recall{suffix}": recall}
    applied = in_sample if found.decided is None else found.decided
    averages = {name: metrics.f_beta(labels, applied, goal.beta, name, goal.zero_division) for name in AVERAGES}
    return {
        "metric": settings.metric,
        "beta": goal.beta,
        "average": goal.average,
        "zero_division": goal.zero_division,
        "min_recall": dict(zip(classes, goal.min_recall, strict=True)) if goal.min_recall else None,
        "shrink": goal.shrink,
        "thresholds": found.thresholds,
        **scores,
        "averages": averages,
        "score_exact": found.exact,
        "gap": found.gap,
        "thresholds_exact": found.thresholds_exact,
        "trials": settings.trials,
        "rows": len(labels),
        "patients": number,
        "positives": {name: int(positives[c]) for c, name in enumerate(classes)},
        "warnings": list(found.warnings),
    }


def run_on_table(source: Path, settings: Thresholds, out: Path | None) -> None:
    """Tune on a table with the columns <class> (0/1), prob_<class> and optionally fold and patient_id."""
    if out is not None:
        require_writable(out)
    try:
        given = user_table.read(source)
        found = tuned(
            given.labels, given.probabilities, given.classes, settings, folds=given.fold, patients=given.patients
        )
    except ValueError as error:
        raise UserError(f"{source}: {error}") from None
    if given.fold is None:
        found["warnings"].append("no column fold with several values: no cross-fitted score.")
    elif given.patients is not None and (torn := user_table.in_two_folds(given.fold, given.patients)):
        found["warnings"].append(f"{torn} patients are in more than one fold: the cross-fitted score is optimistic.")
    for name in given.unused:
        found["warnings"].append(
            f"column {name} holds 0 and 1, but there is no column prob_{name}: if it is a class, it is missing from the"
            " score. Add its probabilities."
        )
    if given.patients is None:
        found["warnings"].append("no column patient_id: intervals treat rows as independent and may be too narrow.")
    if out is not None:
        write_json(out, found)
        say(f"thresholds: wrote {out}")
        _show(found)
    else:
        say(json.dumps(found, indent=2), always=True)


def _show(found: Mapping[str, Any]) -> None:
    for (title, columns, rows), sentences in report.parts(found):
        table(columns, rows, title)
        say("")
        for sentence in sentences:
            say(sentence, always=sentence.startswith("warning: "))
