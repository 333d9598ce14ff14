"""`ich score`: score all models with confidence intervals, out-of-fold and on the test set if there is a solution.

The baseline predicts the prevalence of each class. Studies are scored by the maximum of their slices, and by the
attention pooling of the models that have it.
"""

import shutil
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from ich.console import say, table
from ich.data.competitions import ADAPTERS
from ich.ensemble import metrics, thresholds
from ich.ensemble.final import final_probabilities
from ich.ensemble.intervals import LEVEL
from ich.ensemble.predictions import sigmoid
from ich.ensemble.scoring import fold_warnings, rounded
from ich.errors import parsing
from ich.models.artifacts import read_logits
from ich.models.table import SliceTable
from ich.pipeline.state import Made, Plan
from ich.recipe import BETAS
from ich.report import evaluation, scores, study_evaluation
from ich.report.evaluation import Evaluated, Rows
from ich.store.atomic import read_json, write_csv, write_json


def run(plan: Plan, *, force: bool = False) -> None:
    plan.make(plan.score, lambda _: _scores(plan), force=force)
    path = plan.workspace.submissions / "scores.json"
    found = read_json(path)
    width = shutil.get_terminal_size((120, 24)).columns  # in a log file, room for all columns
    for title, columns, rows in scores.tables(found, width):
        table(columns, rows, title, always=True)
    say("", always=True)
    for line in (*scores.sentences(found), *(f"warning: {warning}" for warning in found["warnings"])):
        say(textwrap.fill(line, width, break_long_words=False, break_on_hyphens=False), always=True)
    written = ", ".join(name for name in plan.files_of(plan.score) if name != path.name)
    say(f"\nscore: wrote {path} and {written}", always=True)


def _scores(plan: Plan) -> Made:
    """Write scores.json and its content as CSV tables."""
    slices = SliceTable.read(plan.workspace, plan.prepared.folder)
    settings, folder = plan.recipe.thresholds, plan.workspace.submissions
    classes, weights = slices.classes, slices.class_weights
    rows = _rows(plan, slices)
    fold = slices.table["fold"].to_numpy()[slices.labelled]
    betas = BETAS | {settings.metric: settings.beta}
    goals = {metric: thresholds.Goal(beta, "macro", shrink=settings.shrink) for metric, beta in betas.items()}

    def probability(model: str) -> dict[str, np.ndarray]:
        folder = plan.workspace.model(model)
        return {where: sigmoid(read_logits(folder / f"{where}.parquet", rows[where].ids, classes)) for where in rows}

    evaluated: dict[str, Evaluated] = {}
    for model in plan.models:
        evaluated[model] = evaluation.evaluate(rows, probability(model), fold, classes, weights, goals, settings.metric)
        evaluated[model].in_sample.update(_in_sample(plan, model))
    blend = evaluated["blend"]
    constant = evaluation.evaluate(rows, evaluation.baseline(rows), fold, classes, weights, goals, settings.metric)
    fold_auc = {name: (one.scores["oof"]["auc"].values[-1], one.by_fold["auc"][0]) for name, one in evaluated.items()}
    curves, errors = evaluation.calibration(rows, probability("blend"), classes)
    found = {
        "recipe": plan.recipe.name,
        "metric": settings.metric,
        "level": LEVEL,
        "resamples": evaluation.RESAMPLES,
        "class_weights": dict(zip(classes, weights, strict=True)),
        "rows": {where: some.counts(classes) for where, some in rows.items()},
        "models": {
            model: {"stage": plan.settings_of(model).stage, **evaluation.cells(one, blend, classes)}
            for model, one in evaluated.items()
        },
        "baseline": evaluation.cells(constant, constant, classes),
        "studies": evaluation.study_cells(rows, {**evaluated, "baseline": constant}, classes),
        "one_fold": _one_fold(plan, slices, rows["test"], blend.thresholds[settings.metric]) if "test" in rows else {},
        "submission": _submission(plan, slices, rows["test"]) if "test" in rows else {},
        "calibration_error": errors,
        "warnings": [*_warnings(plan), *fold_warnings(fold_auc), *evaluation.one_label_warnings(rows, classes)],
    }
    if "test" not in rows and len(slices.test_rows) and (solution := plan.raw_root / "solution.csv").is_file():
        found["warnings"].append(f"{solution} has no image of the test set, so there are no scores of the test set")
    for where, pooled in _pooled(plan, rows, slices, fold, goals[settings.metric]).items():
        if pooled and where in found["studies"]:
            found["studies"][where]["pooled"] = pooled
    write_json(folder / "scores.json", found)
    tables = {
        "scores.csv": list(scores.lines(found)),
        "scores_by_class.csv": list(scores.lines_by_class(found)),
        "confusion.csv": [{"model": model} | line for model, one in evaluated.items() for line in one.confusion],
        "reliability.csv": curves,
    }
    if found["studies"]:
        tables["scores_by_study.csv"] = list(scores.lines_by_study(found))
    for name, lines in tables.items():
        rounded_lines = [{k: f"{v:.4f}" if isinstance(v, float) else v for k, v in line.items()} for line in lines]
        write_csv(folder / name, rounded_lines)
    return {name: folder / name for name in ("scores.json", *tables)}, {}


def _rows(plan: Plan, slices: SliceTable) -> dict[str, Rows]:
    """Return the labelled rows as "oof", and the test slices of the solution, if there are any, as "test"."""
    found = {"oof": Rows(slices.table[slices.labelled], slices.classes)}
    solution = ADAPTERS[plan.recipe.competition.format].solution(plan.raw_root)
    if solution is None:
        return found
    key = "image_id" if "image_id" in solution else "study_id"
    test = slices.table.iloc[slices.test_rows][list(dict.fromkeys(["image_id", "patient_id", "study_id", key]))]
    known: pd.DataFrame = test.merge(solution, on=key, validate="many_to_one")
    return found | {"test": Rows(known, slices.classes)} if len(known) else found


def _pooled(
    plan: Plan, rows: Mapping[str, Rows], slices: SliceTable, fold: np.ndarray, goal: thresholds.Goal
) -> dict[str, dict[str, Any]]:
    """Return the scores of studies by attention pooling and by the maximum over slices, by set of rows and model."""
    found: dict[str, dict[str, Any]] = {where: {} for where in rows}
    for model in plan.models:
        if not plan.settings_of(model).writes_studies:
            continue
        folder, pooled, maximum = plan.workspace.model(model), dict[str, np.ndarray](), dict[str, np.ndarray]()
        for where, some in rows.items():
            path = folder / f"{where}_studies.parquet"
            pooled[where] = read_logits(path, pd.Index(some.study_ids), slices.classes, "study_id")
            maximum[where] = some.per_study(read_logits(folder / f"{where}.parquet", some.ids, slices.classes))
        of_pooled, of_maximum = (
            study_evaluation.evaluate_studies(rows, logits, fold, slices.classes, slices.class_weights, goal)
            for logits in (pooled, maximum)
        )
        for where in rows:
            found[where][model] = study_evaluation.pooled_cells(of_pooled[where], of_maximum[where], slices.classes)
    return found


def _in_sample(plan: Plan, model: str) -> dict[str, float]:
    """Return the mean in-sample scores over folds; empty for networks."""
    records = [plan.record_of(plan.fold(model, k)) for k in plan.fold_numbers]
    found = {}
    for score, key in (("log_loss", "weighted_log_loss"), ("auc", "macro_auc")):
        values = [record.get("in_sample", {}).get(key) for record in records]
        if None not in values:
            found[score] = sum(values) / len(values)
    return found


def _one_fold(plan: Plan, slices: SliceTable, rows: Rows, cuts: Mapping[str, float]) -> dict[str, float | None]:
    """Return test scores of the blend per fold, without averaging predictions, as their mean over folds."""
    settings, found = plan.recipe.thresholds, []
    for k in plan.fold_numbers:
        p = sigmoid(read_logits(plan.workspace.fold("blend", k) / "test.parquet", rows.ids, slices.classes))
        positive = thresholds.apply(p, [cuts[name] for name in slices.classes])
        log_loss = metrics.weighted_log_loss(rows.labels, p, slices.class_weights)
        auc = metrics.macro(metrics.class_auc(rows.labels, p))
        found.append([log_loss, auc, metrics.f_beta(rows.labels, positive, settings.beta, "macro")])
    names = ("log_loss", "auc", settings.metric)
    return {name: rounded(mean) for name, mean in zip(names, np.mean(found, axis=0), strict=True)}


def _submission(plan: Plan, slices: SliceTable, rows: Rows) -> dict[str, Any]:
    """Return test scores of the submission: F with the average and thresholds of the recipe, and log loss."""
    tuned = read_json(plan.workspace.thresholds)
    logits = read_logits(plan.workspace.model("blend") / "test.parquet", rows.ids, slices.classes)
    with parsing(plan.workspace.thresholds):
        p, cuts = final_probabilities(tuned, logits, slices.classes, slices.class_weights)
        goal = thresholds.Goal(tuned["beta"], tuned["average"], tuned["zero_division"])
    positive = thresholds.apply(p, cuts)
    value = metrics.f_beta(rows.labels, positive, goal.beta, goal.average, goal.zero_division)
    low, high = thresholds.f_interval(rows.labels, positive, goal, rows.bootstrap)
    return {
        "average": goal.average,
        "f": {"value": rounded(value), "low": rounded(low), "high": rounded(high)},
        "log_loss": rounded(metrics.weighted_log_loss(rows.labels, p, slices.class_weights)),
    }


def _warnings(plan: Plan) -> Iterator[str]:
    """Yield warnings of the folds, of models whose inputs they make optimistic, and about folds by slice."""
    touched: list[str] = []
    for model in plan.models:
        for k in plan.fold_numbers:
            for warning in plan.record_of(plan.fold(model, k)).get("warnings", []):
                yield f"{model}: {warning}"
                touched.append(model)
    readers: list[str] = []
    for model in plan.models:
        below = {*plan.recipe.inputs_of(model), getattr(plan.settings_of(model), "start", None)}
        if model not in touched and not {*touched, *readers}.isdisjoint(below):
            readers.append(model)
    if readers:
        yield f"{', '.join(readers)}: scores are optimistic, since those of their inputs are"
    if plan.recipe.folds.by == "slice":
        yield "folds.by is slice: slices of one patient are in several folds, so all scores are optimistic"
