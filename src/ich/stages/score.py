"""`ich score`: every member's figures, out of fold and, where a solution is at hand, on the test set."""

import csv
import io
from typing import TYPE_CHECKING, Any

from ich.console import say, table
from ich.recipe import BETAS
from ich.stages.plan import Made, Plan
from ich.workspace import write_text

if TYPE_CHECKING:
    import numpy as np

COLUMNS = ("log_loss", "auc", "ap", "f1", "f2")
TITLES = ("weighted log loss", "macro AUC", "macro AP", "macro F1", "macro F2")


def run(plan: Plan, *, force: bool = False) -> None:
    path = plan.workspace.submissions / "scores.csv"
    plan.make(plan.score, lambda _: _scores(plan), force=force)
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for where, title in (
        ("oof", "Out of fold (thresholds of F1 and F2 from the other folds)"),
        ("test", "Hidden test solution (thresholds from the out-of-fold rows)"),
    ):
        shown = [[r["member"], r["stage"], *(r[c] for c in COLUMNS)] for r in rows if r["rows"] == where]
        if shown:
            table(["member", "stage", *TITLES], shown, title)
    say(f"\nscore: {path}")


def _scores(plan: Plan) -> Made:
    import pandas as pd

    from ich.data.competitions import ADAPTERS
    from ich.ensemble.members import aligned, sigmoid
    from ich.stages.inputs import Slices, layout_errors

    slices = Slices(plan)
    rows = slices.labelled.nonzero()[0]
    ids, labels, folds = slices.ids(rows), slices.labels[rows], slices.table["fold"].to_numpy()[rows]
    with layout_errors():
        solution = ADAPTERS[plan.recipe.competition.format].solution(plan.raw_root)
    scored: list[dict[str, Any]] = []
    for member in plan.members:
        folder, stage = plan.workspace.member(member), plan.stage_of(member)
        oof = sigmoid(aligned(pd.read_parquet(folder / "oof.parquet"), ids, slices.classes))
        figures, cuts = _out_of_fold(labels, oof, folds, slices)
        scored.append({"member": member, "stage": stage, "rows": "oof", **figures})
        if solution is not None:
            test = pd.read_parquet(folder / "test.parquet")
            known = solution[solution["image_id"].isin(test["image_id"])]
            truth = known[slices.classes].to_numpy("float64")
            probability = sigmoid(aligned(test, known["image_id"].tolist(), slices.classes))
            scored.append(
                {
                    "member": member,
                    "stage": stage,
                    "rows": "test",
                    **_hidden(truth, probability, cuts, slices),
                }
            )
    path = plan.workspace.submissions / "scores.csv"
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(scored[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: f"{v:.4f}" if isinstance(v, float) else v for k, v in row.items()} for row in scored)
    write_text(path, text.getvalue())
    return {path.name: path}, {"scores": scored}


def _plain(truth: "np.ndarray", probability: "np.ndarray", slices: Any) -> dict[str, Any]:
    from ich.ensemble import metrics

    return {
        "log_loss": metrics.weighted_log_loss(truth, probability, slices.class_weights),
        "auc": metrics.macro(metrics.class_auc(truth, probability)),
        "ap": metrics.macro(metrics.class_average_precision(truth, probability)),
    }


def _out_of_fold(
    truth: "np.ndarray", probability: "np.ndarray", folds: "np.ndarray", slices: Any
) -> tuple[dict[str, Any], dict[str, dict[str, float]]]:
    """Figures of the out-of-fold rows, and the thresholds tuned on all of them."""
    from ich.ensemble import thresholds

    figures, cuts = _plain(truth, probability, slices), {}
    for metric, beta in BETAS.items():
        # without trials the exact optimum: the same for every member, and no search to wait for
        found = thresholds.tune(
            truth, probability, slices.classes, beta=beta, average="macro", trials=0, seed=0, fold=folds
        )
        figures[metric], cuts[metric] = found.score_cross_fitted, found.thresholds
    return figures, cuts


def _hidden(
    truth: "np.ndarray", probability: "np.ndarray", cuts: dict[str, dict[str, float]], slices: Any
) -> dict[str, Any]:
    from ich.ensemble import metrics, thresholds

    figures = _plain(truth, probability, slices)
    for metric, beta in BETAS.items():
        positive = thresholds.apply(probability, [cuts[metric][name] for name in slices.classes])
        figures[metric] = metrics.f_beta(truth, positive, beta, "macro")
    return figures
