"""`ich score`: every member's figures, out of fold and, where a solution is at hand, on the test set.

For an outside validation: the AUC of each finding, a scan at a time, with its interval.
"""

import csv
import io
import math
from typing import TYPE_CHECKING, Any

from ich.console import say, table
from ich.recipe import BETAS
from ich.stages.plan import Made, Plan
from ich.workspace import UserError, write_text

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

COLUMNS = ("log_loss", "auc", "ap", "f1", "f2")
TITLES = ("log loss", "macro AUC", "macro AP", "macro F1", "macro F2")
RESAMPLES = 1000  # of the bootstrap over patients


def run(plan: Plan, *, force: bool = False) -> None:
    if plan.recipe.competition.trained_by is not None:
        _run_outside(plan, force=force)
        return
    path = plan.workspace.submissions / "scores.csv"
    plan.make(plan.score, lambda _: _scores(plan), force=force)
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    weighted = len(set((plan.record_of(plan.prepared.record) or {})["class_weights"])) > 1
    titles = ("weighted log loss" if weighted else TITLES[0], *TITLES[1:])
    for where, title in (
        ("oof", "Out of fold (thresholds of F1 and F2 from the other folds)"),
        ("test", "Hidden test solution (thresholds from the out-of-fold rows)"),
    ):
        shown = [[r["member"], r["stage"], *(r[c] for c in COLUMNS)] for r in rows if r["rows"] == where]
        if shown:
            table(["member", "stage", *titles], shown, title)
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
    if solution is not None:
        solution = _of_test_slices(solution, slices)
    scored: list[dict[str, Any]] = []
    for member in plan.members:
        folder, stage = plan.workspace.member(member), plan.stage_of(member)
        oof = sigmoid(aligned(pd.read_parquet(folder / "oof.parquet"), ids, slices.classes))
        figures, cuts = _out_of_fold(labels, oof, folds, slices)
        scored.append({"member": member, "stage": stage, "rows": "oof", **figures})
        if solution is not None:
            test = pd.read_parquet(folder / "test.parquet")
            truth = solution[slices.classes].to_numpy("float64")
            probability = sigmoid(aligned(test, solution["image_id"].tolist(), slices.classes))
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
    return {path.name: path}, {}


def _of_test_slices(solution: "pd.DataFrame", slices: Any) -> "pd.DataFrame | None":
    """The solution (by image_id, or by study_id) for the test slices at hand; None where it knows none of them."""
    key = "image_id" if "image_id" in solution else "study_id"
    test = slices.table.iloc[slices.test_rows][list(dict.fromkeys(["image_id", key]))]
    known = test.merge(solution, on=key, validate="many_to_one")
    return known if len(known) else None


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


# ---- outside validation


def _run_outside(plan: Plan, *, force: bool) -> None:
    path = plan.workspace.submissions / "scores.csv"
    plan.make(plan.scans, lambda _: _findings(plan), force=force)
    record = plan.scans.record.read() or {}
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    shown = [[r["finding"], r["class"], r["positives"], r["auc"], f"{r['low']} to {r['high']}"] for r in rows]
    title = (
        f"{record['scans']} scans, the largest probability of a scan's slices, {plan.trained.recipe.name}'s ensemble"
    )
    table(["finding", "class", "positives", "AUC", "95 % interval"], shown, title)
    for note in record["notes"]:
        say(note)
    say(f"\nscore: {path}")


def _findings(plan: Plan) -> Made:
    """scores.csv: AUC a finding with its interval; scans.csv: what each scan was given and what its readers say."""
    import pandas as pd

    from ich.data.competitions import cq500
    from ich.ensemble.intervals import auc_interval
    from ich.stages.inputs import layout_errors

    with layout_errors():
        truth = cq500.reads(plan.raw_root)
    slices = pd.read_csv(plan.workspace.submissions / "slices.csv")
    found = slices.groupby("scan")[[c for c in slices.columns if c.startswith("prob_")]].max().reset_index()
    if "prob_any" not in found:  # a recipe without that class: a bleed of some subtype is a bleed
        found["prob_any"] = found.drop(columns="scan").max(axis=1)
    scans = found.merge(truth, on="scan", validate="one_to_one")
    if scans.empty:
        raise UserError(f"{plan.raw_root}: none of the {len(found)} scans is in reads.csv")
    notes = [
        f"{count} scans {what}"
        for count, what in (
            (len(found) - len(scans), "have no row in reads.csv and are left out"),
            (len(truth) - len(scans), "of reads.csv have no readable slice and are left out"),
        )
        if count
    ]
    rows: list[tuple[str, ...]] = [("finding", "class", "scans", "positives", "auc", "low", "high")]
    for finding, name in cq500.FINDINGS.items():
        if f"prob_{name}" in scans:
            ends = auc_interval(scans[finding], scans[f"prob_{name}"], scans["scan"], resamples=RESAMPLES)
            shown = ("-" if math.isnan(value) else f"{value:.4f}" for value in ends)
            rows.append((finding, name, str(len(scans)), str(int(scans[finding].sum())), *shown))
    folder, text = plan.workspace.submissions, io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_text(folder / "scores.csv", text.getvalue())
    write_text(folder / "scans.csv", scans.to_csv(index=False, lineterminator="\n"))
    return {name: folder / name for name in ("scores.csv", "scans.csv")}, {"scans": len(scans), "notes": notes}
