"""Models: the gain of each stage, the blend's weights, correlations, and learning curves."""

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
        "CNNs read slices, sequence models read series, and the stacker reads the predictions of both. The blend"
        " combines all models."
    )
    return Section("models", "Models", blocks, lead)


def _gains(evidence: Evidence) -> list[Block]:
    """The best model of each stage by out-of-fold log loss, compared with the blend."""
    metric, found = evidence.scores["metric"], evidence.scores["models"]
    by_stage: dict[str, list[str]] = {}
    for model in found:
        by_stage.setdefault(found[model]["stage"], []).append(model)
    del by_stage["blend"]
    if not by_stage:
        return []
    best = {k: min(some, key=lambda name: found[name]["oof"]["log_loss"]["value"]) for k, some in by_stage.items()}
    tables: list[Block] = []
    for where in evidence.scores["rows"]:
        title = f"Best model of each stage minus the blend, {PLACES[where]}"
        rows = [
            [
                f"{stage}: {model}",
                *(span(found[model][where][key]["minus_blend"]) for key in ("log_loss", "auc", metric)),
            ]
            for stage, model in best.items()
        ]
        tables.append(Table(title, ["", "log loss", "AUC", metric.upper()], rows))
    note = "Models are selected by their out-of-fold log loss. The best of several models is slightly optimistic."
    return [*tables, Notes([note])]


def _blend(evidence: Evidence) -> list[Block]:
    fitted, classes, models = evidence.blends, evidence.classes, evidence.blends[0]["inputs"]
    if len(models) == 1:
        return [Notes([f"The blend has one model, {models[0]}: there are no weights."])]
    weights = np.array([[one["classes"][name]["combination"]["weights"] for name in classes] for one in fitted])
    by_fold = weights.swapaxes(1, 2)  # folds, models, classes
    caption = "Mean over folds; each fold's blend is fitted on the other folds. Similar models can exchange weight."
    if np.allclose(by_fold, 1 / len(models)):
        caption = "All weights are equal: no others are better than by chance."
    folds = [f"fold {k}" for k in evidence.fold_numbers]
    methods = [[name, *(blend_method(one["classes"][name]) for one in fitted)] for name in classes]
    chart = Chart("blend-weights", "Weights in the blend", caption, charts.weights(by_fold, models, classes))
    return [chart, Details("Blend of each fold", [Table("Combination and calibration", ["", *folds], methods)])]


def blend_method(fitted: Mapping[str, Any]) -> str:
    """Return the combination and calibration of a class of blend.json in words."""
    method, calibration = METHODS[fitted["combination"]["method"]], fitted["calibration"]["method"]
    return method if calibration == "none" else f"{method}, calibrated ({calibration})"


def _correlation(evidence: Evidence) -> list[Block]:
    classes, models, used = evidence.classes, list(evidence.scores["models"]), evidence.logits.shape[1]
    by_class = correlations(evidence.logits)
    matrices = dict(zip(classes, by_class, strict=True))
    if len(classes) > 1:
        mean = np.ma.masked_invalid(by_class).mean(axis=0).filled(np.nan)
        matrices = {"mean over classes": mean, **matrices}
    sample = "" if used == len(evidence.rows) else f" of {len(evidence.rows):,}, evenly spread"
    caption = (
        f"Correlation of out-of-fold logits over {used:,} labelled slices{sample}. Models with low correlation"
        " complement each other."
    )
    panels: dict[str, list[Block]] = {
        name: [Chart(f"correlation-{k}", f"Correlation of models, {name}", caption, charts.correlation(matrix, models))]
        for k, (name, matrix) in enumerate(matrices.items())
    }
    return [Panels("correlation", panels)] if len(panels) > 1 else panels[classes[0]]


def correlations(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Pearson correlation [c, models, models] of logits [models, n, c]; NaN for constant logits.

    By einsum: the last digits of BLAS depend on the number of threads.
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
    caption = (
        "Training loss includes augmentation and class weights, so compare its shape with the fold's log loss, not its"
        " height."
    )
    if training.stopped_by is None:
        caption += " The last epoch was kept, without early stopping."
    elif training.stopped_on_fold:
        caption += " The ringed epoch was kept because it is best on this fold, so the model's scores are optimistic."
    else:
        caption += " The ringed epoch was kept because it is best on an inner split of the training patients."
    if training.seeds > 1:
        caption += f" The curves are those of the first of {training.seeds} seeds."
    return Chart(f"learning-{number}", f"Learning curves of {model}", caption, figure)


def _column(name: str) -> str:
    """The axis title of a column of history.csv."""
    split, _, score = name.partition("_")
    if not score:
        return "training loss"
    title = "log loss" if score == "loss" else score.replace("_", " ") if "loss" in score else score.upper()
    return f"{'fold' if split == 'valid' else 'inner split'}, {title}"
