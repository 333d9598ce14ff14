"""The members: how they learned, how alike they are, what the blend makes of them, what each stage gains."""

import csv
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ich.pipeline.graph import BLEND
from ich.report.page import Block, Chart, Details, Notes, Panels, Section, Table
from ich.report.scores import PLACES, span
from ich.stages.artefacts import as_written, logits_of
from ich.stages.reporting.evidence import Evidence
from ich.store.atomic import read_json

if TYPE_CHECKING:
    import numpy as np

STAGES = {
    "cnn": "CNN",
    "end_to_end": "end to end",
    "sequence": "sequence",
    "smooth": "smoothing",
    "stack": "stack",
    "blend": "blend",
}
MOST = 200_000  # rows that correlations are taken of
METHODS = {
    "logits": "mean of logits",
    "probabilities": "mean of probabilities",
    "ranks": "mean of ranks",
    "greedy": "greedy weights of logits",
    "weights": "fitted weights of logits",
}


def section(evidence: Evidence) -> Section:
    blocks = [*_gains(evidence), *_blend(evidence), *_correlation(evidence), *_learning(evidence)]
    lead = (
        "Networks look at slices, sequence models at studies, the stack at what both say; the blend makes one"
        " prediction of them. Scores are out of fold unless they say otherwise."
    )
    return Section("members", "The members", blocks, lead)


# ---- gain from each stage


def _gains(evidence: Evidence) -> list[Block]:
    from ich.report.page import charts

    scores = evidence.scores
    metric, found = scores["metric"], scores["members"]
    best: dict[str, str] = {}
    for member, said in found.items():
        rival = best.get(said["stage"])
        if rival is None or said["oof"]["log_loss"]["value"] < found[rival]["oof"]["log_loss"]["value"]:
            best[said["stage"]] = member
    names = {member: _titled(stage, member) for stage, member in best.items()}
    titles = {"log_loss": "log loss (lower is better)", "auc": "macro AUC", metric: f"macro {metric.upper()}"}
    figures = {
        title: {PLACES[where]: [found[member][where][key] for member in names] for where in scores["rows"]}
        for key, title in titles.items()
    }
    says = (
        "The best member of each stage, by log loss out of fold, with intervals over patients. Bars that overlap do not"
        " make two members equal, as they are judged on the same patients: the table has the differences. The best of"
        " several is a little flattered by having been picked."
    )
    chart = Chart("gains", "Gain from each stage", says, charts.gains(list(names.values()), figures))
    tables = [_differences(scores, names, where) for where in scores["rows"]]
    return [chart, *(table for table in tables if table.rows)]


def _differences(scores: Mapping[str, Any], names: Mapping[str, str], where: str) -> Table:
    found, metric = scores["members"], scores["metric"]
    keys = {"log_loss": "log loss", "auc": "AUC", metric: metric.upper()}
    rows = [
        [title, *(span(found[member][where][key]["minus_blend"]) for key in keys)]
        for member, title in names.items()
        if member != "blend"
    ]
    return Table(["", *keys.values()], rows, f"Each stage's best minus the blend, {PLACES[where]}")


def _titled(stage: str, member: str) -> str:
    return member if member == stage else f"{STAGES[stage]}: {member}"


# ---- the blend


def _blend(evidence: Evidence) -> list[Block]:
    """Weights by class and fold, and how the members are combined."""
    import numpy as np

    from ich.report.page import charts

    plan, classes = evidence.plan, evidence.classes
    files = [plan.workspace.fold("blend", k) / BLEND for k in plan.fold_numbers]
    fitted = [read_json(path) for path in files]
    members, folds = fitted[0]["members"], list(plan.fold_numbers)
    if len(members) == 1:
        return [Notes([f"The blend has one member, {members[0]}: there are no weights."])]
    by_fold = np.array([[one["classes"][name]["combination"]["weights"] for name in classes] for one in fitted])
    by_fold = by_fold.swapaxes(1, 2)
    says = (
        "What each member counts in the blend of a class, the mean over folds; a fold's blend is fitted on the other"
        " folds' slices. Weights of members that are alike can be exchanged without a loss: a low one does not make a"
        " member bad."
    )
    if np.allclose(by_fold, 1 / len(members)):
        says += " All weights are equal: no other ones were more than chance better."
    chart = Chart("blend-weights", "Weights in the blend", says, charts.weights(by_fold, folds, members, classes))
    columns = ["", *(f"fold {k}" for k in folds)]
    how = [[name, *(_how(one["classes"][name]) for one in fitted)] for name in classes]
    exact = [
        [name, member, *(f"{one:.3f}" for one in by_fold[:, m, c])]
        for c, name in enumerate(classes)
        for m, member in enumerate(members)
    ]
    weights = Table(["class", "member", *columns[1:]], exact, "Weights of each fold's blend")
    return [chart, Details("How each fold blends", [Table(columns, how, "Combination and calibration"), weights])]


def _how(fitted: Mapping[str, Any]) -> str:
    method, calibration = fitted["combination"]["method"], fitted["calibration"]["method"]
    return METHODS[method] + ("" if calibration == "none" else f", calibrated ({calibration})")


# ---- how alike


def _correlation(evidence: Evidence) -> list[Block]:
    import numpy as np

    from ich.report.page import charts

    members, classes = evidence.plan.members, evidence.classes
    every = -(-len(evidence.rows) // MOST)
    rows = evidence.rows[::every]
    ids = evidence.slices.ids(rows)
    logits = [logits_of(evidence.plan.workspace.member(m) / "oof.parquet", ids, classes) for m in members]
    by_class = correlations(np.stack(logits))
    known = np.isfinite(by_class)
    count = known.sum(axis=0)
    mean = np.where(count > 0, np.where(known, by_class, 0).sum(axis=0) / np.maximum(count, 1), np.nan)
    sample = "" if every == 1 else f", every {every}th" if every > 3 else f", every {('second', 'third')[every - 2]}"
    says = (
        f"Correlation of the members' out-of-fold logits over {len(rows):,} labelled slices{sample}. Members that"
        " differ have something to give to each other; 1.00 means that one adds nothing to the other."
    )

    def chart(id_: str, what: str, matrix: "np.ndarray") -> Chart:
        return Chart(id_, f"Correlation of the members, {what}", says, charts.correlation(matrix, members))

    if len(classes) == 1:
        return [chart("correlation-mean", classes[0], mean)]
    panels = {"mean over classes": [chart("correlation-mean", "mean over classes", mean)]}
    panels |= {name: [chart(f"correlation-{c}", name, by_class[c])] for c, name in enumerate(classes)}
    return [Panels("correlation", panels)]


def correlations(logits: "np.ndarray") -> "np.ndarray":
    """Pearson's, [classes, members, members] of logits [members, rows, classes]; NaN where one is the same throughout.

    By einsum, not BLAS, whose last digits depend on the threads.
    """
    import numpy as np

    z = logits - logits.mean(axis=1, keepdims=True)
    covariance = np.einsum("anc,bnc->cab", z, z)
    scale = np.sqrt(np.einsum("caa->ca", covariance))
    product = scale[:, :, None] * scale[:, None, :]
    return np.where(product > 0, covariance / np.where(product > 0, product, 1), np.nan)


# ---- learning curves


def _learning(evidence: Evidence) -> list[Block]:
    networks = evidence.plan.recipe.networks
    if not networks:
        return []
    return [Panels("learning", {name: [_curves(evidence, number, name)] for number, name in enumerate(networks)})]


def _curves(evidence: Evidence, number: int, member: str) -> Chart:
    from ich.report.page import charts

    plan = evidence.plan
    histories = {k: history_of(plan.workspace.fold(member, k) / "history.csv") for k in plan.fold_numbers}
    columns = [name for name in histories[0][0] if name not in ("epoch", "learning_rate")]
    stop = {**plan.recipe.cnn, **plan.recipe.end_to_end, **plan.recipe.sequence}[member].early_stopping
    kept = next((name for name in columns if stop is not None and name == _judge(stop)), None)
    if kept == "valid_log_loss":  # the same figure as valid_loss
        columns.remove("valid_loss")
    figure = charts.learning(histories, {name: _column(name) for name in columns}, kept)
    says = (
        "What the network minimised on its training slices, with augmentation and weights as the recipe has them, and"
        " the weighted log loss on the slices of the fold that it never saw: compare their shapes, not their heights."
        " A training loss that falls while the other rises is learning by heart. "
    )
    if stop is None:
        says += "The last epoch was kept: the fold had no say in when to stop."
    elif stop.on == "fold":
        says += "The ringed epoch was kept because it was best on this very fold, which flatters the member's scores."
    else:
        says += "The ringed epoch was kept because it was best on training patients set aside for that."
    return Chart(f"learning-{number}", f"Learning curves of {member}", says, figure)


def _judge(stop: Any) -> str:
    """The column of the history that early stopping went by."""
    return f"{'inner' if stop.on == 'inner' else 'valid'}_{stop.metric}"


def _column(name: str) -> str:
    split, _, figure = name.partition("_")
    if not figure:
        return "training loss"
    said = figure.replace("_", " ") if "loss" in figure else figure.upper()
    return {"valid": "fold's ", "inner": "set-aside "}[split] + {"loss": "log loss"}.get(said, said)


def history_of(path: Any) -> Sequence[Mapping[str, float]]:
    with as_written(path), path.open(encoding="utf-8", newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
