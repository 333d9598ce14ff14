"""The models: the gain from each stage, the blend's weights, correlations, and learning curves."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ich.report.evidence import Evidence, Training
from ich.report.page import charts
from ich.report.page.blocks import Block, Chart, Details, Notes, Panels, Section, Table
from ich.report.scores import PLACES, span

METHODS = {
    "logits": "mean of logits",
    "probabilities": "mean of probabilities",
    "ranks": "mean of ranks",
    "greedy": "greedy weights of logits",
    "weights": "fitted weights of logits",
}


def section(evidence: Evidence) -> Section:
    blocks = [*_gains(evidence), *_blend(evidence), *_correlation(evidence)]
    if evidence.trainings:
        curves = {name: [_learning(name, k, one)] for k, (name, one) in enumerate(evidence.trainings.items())}
        blocks.append(Panels("learning", curves))
    lead = (
        "Networks read slices, sequence models read studies, the stacker reads the predictions of both; the blend"
        " combines them. Scores are out of fold unless stated otherwise."
    )
    return Section("models", "Models", blocks, lead)


def _gains(evidence: Evidence) -> list[Block]:
    """The best model of each stage, by log loss out of fold."""
    scores = evidence.scores
    metric, found = scores["metric"], scores["models"]
    best: dict[str, str] = {}
    for model, said in found.items():
        rival = best.get(said["stage"])
        if rival is None or said["oof"]["log_loss"]["value"] < found[rival]["oof"]["log_loss"]["value"]:
            best[said["stage"]] = model
    names = {model: model if model == stage else f"{_stage(stage)}: {model}" for stage, model in best.items()}
    keys = {"log_loss": "log loss (lower is better)", "auc": "macro AUC", metric: f"macro {metric.upper()}"}
    figures = {
        title: {PLACES[where]: [found[model][where][key] for model in names] for where in scores["rows"]}
        for key, title in keys.items()
    }
    says = (
        "The best model of each stage by out-of-fold log loss, with confidence intervals over patients. Models whose"
        " bars overlap may still differ, as both are evaluated on the same patients: the table has the differences."
        " The best of several is slightly optimistic."
    )
    blocks: list[Block] = [Chart("gains", "Gain from each stage", says, charts.gains(list(names.values()), figures))]
    for where in scores["rows"]:
        rows = [
            [title, *(span(found[model][where][key]["minus_blend"]) for key in keys)]
            for model, title in names.items()
            if model != "blend"
        ]
        if rows:
            title = f"Best model of each stage minus the blend, {PLACES[where]}"
            blocks.append(Table(["", "log loss", "AUC", metric.upper()], rows, title))
    return blocks


def _stage(stage: str) -> str:
    return {"cnn": "CNN", "smooth": "smoothing"}.get(stage, stage.replace("_", " "))


def _blend(evidence: Evidence) -> list[Block]:
    fitted, classes, models = evidence.blends, evidence.classes, evidence.blends[0]["inputs"]
    if len(models) == 1:
        return [Notes([f"The blend has one model, {models[0]}: there are no weights."])]
    weights = np.array([[one["classes"][name]["combination"]["weights"] for name in classes] for one in fitted])
    by_fold = weights.swapaxes(1, 2)  # folds, models, classes
    says = (
        "The weight of each model in the blend of a class, the mean over folds. Each fold's blend is fitted on the"
        " slices of the other folds. Similar models can exchange weight without a loss: a low weight does not mean a"
        " bad model."
    )
    if np.allclose(by_fold, 1 / len(models)):
        says += " All weights are equal: no others are better than by chance."
    folds = [f"fold {k}" for k in evidence.fold_numbers]
    how = [[name, *(_method(one["classes"][name]) for one in fitted)] for name in classes]
    exact = [
        [name, model, *(f"{one:.3f}" for one in by_fold[:, m, c])]
        for c, name in enumerate(classes)
        for m, model in enumerate(models)
    ]
    tables = [
        Table(["", *folds], how, "Combination and calibration"),
        Table(["class", "model", *folds], exact, "Weights of each fold's blend"),
    ]
    chart = charts.weights(by_fold, list(evidence.fold_numbers), models, classes)
    return [Chart("blend-weights", "Weights in the blend", says, chart), Details("How each fold blends", tables)]


def _method(fitted: Mapping[str, Any]) -> str:
    method, calibration = METHODS[fitted["combination"]["method"]], fitted["calibration"]["method"]
    return method if calibration == "none" else f"{method}, calibrated ({calibration})"


def _correlation(evidence: Evidence) -> list[Block]:
    classes, models, used = evidence.classes, list(evidence.scores["models"]), evidence.logits.shape[1]
    by_class = correlations(evidence.logits)
    known = np.isfinite(by_class)
    count = known.sum(axis=0)
    mean = np.where(count > 0, np.where(known, by_class, 0).sum(axis=0) / np.maximum(count, 1), np.nan)
    sample = "" if used == len(evidence.rows) else f" of {len(evidence.rows):,}, evenly spread"
    says = (
        f"Correlation of the models' out-of-fold logits over {used:,} labelled slices{sample}. Models that differ"
        " complement each other; 1.00 means that one adds nothing to the other."
    )
    matrices = {"mean over classes": mean} if len(classes) > 1 else {}
    matrices |= dict(zip(classes, by_class, strict=True))
    charts_of = {
        what: Chart(f"correlation-{k}", f"Correlation of the models, {what}", says, charts.correlation(matrix, models))
        for k, (what, matrix) in enumerate(matrices.items())
    }
    if len(charts_of) == 1:
        return list(charts_of.values())
    return [Panels("correlation", {what: [chart] for what, chart in charts_of.items()})]


def correlations(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Pearson correlation [c, models, models] of logits [models, n, c]; NaN for constant logits.

    By einsum, not BLAS, whose last digits depend on the threads.
    """
    z = logits - logits.mean(axis=1, keepdims=True)
    covariance = np.einsum("anc,bnc->cab", z, z)
    scale = np.sqrt(np.einsum("caa->ca", covariance))
    product = scale[:, :, None] * scale[:, None, :]
    return np.where(product > 0, covariance / np.where(product > 0, product, 1), np.nan)


def _learning(model: str, number: int, training: Training) -> Chart:
    columns = [name for name in training.histories[0][0] if name not in ("epoch", "learning_rate")]
    kept = training.stopped_by if training.stopped_by in columns else None
    if kept == "valid_log_loss":  # the same score as valid_loss
        columns.remove("valid_loss")
    figure = charts.learning(training.histories, {name: _column(name) for name in columns}, kept)
    says = (
        "The training loss, with augmentation and class weights, and the weighted log loss on the fold that was held"
        " out: compare their shapes, not their heights. A training loss that falls while the other rises is"
        " overfitting. "
    )
    if training.stopped_by is None:
        says += "The last epoch was kept: early stopping did not use the fold."
    elif training.stopped_on_fold:
        says += "The ringed epoch was kept because it was best on this fold: the model's scores are optimistic."
    else:
        says += "The ringed epoch was kept because it was best on an inner split of training patients."
    return Chart(f"learning-{number}", f"Learning curves of {model}", says, figure)


def _column(name: str) -> str:
    split, _, score = name.partition("_")
    if not score:
        return "training loss"
    said = "log loss" if score == "loss" else score.replace("_", " ") if "loss" in score else score.upper()
    where = {"valid": "fold", "inner": "inner split"}[split]
    return f"{where}, {said}"
