"""`ich score`: every member's figures, out of fold and, where a solution is at hand, on the test set.

For an outside validation: the AUC of each finding, a scan at a time, with its interval.
"""

import csv
import io
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ich.console import say, table
from ich.recipe import BETAS
from ich.stages.plan import Made, Plan
from ich.workspace import UserError, write_text

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from ich.ensemble.thresholds import Tuned

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
    _show_warnings(plan)
    if plan.recipe.folds.by == "slice":
        say("warning: folds.by is slice: slices of one patient stand in several folds, and the scores above know them")
    say(f"\nscore: {path}")


def _show_warnings(plan: Plan) -> None:
    """What the folds' records warn of, and whose scores that touches beside their own."""
    touched: list[str] = []
    for member in plan.recipe.base_members:
        for k in plan.fold_numbers:
            for warning in (plan.record_of(plan.fold(member, k).record) or {}).get("warnings", []):
                say(f"warning: {member}: {warning}")
                touched.append(member)
    readers: list[str] = []
    for member in plan.members:
        if member not in touched and not {*touched, *readers}.isdisjoint(plan.recipe.read_by(member)):
            readers.append(member)
    if readers:
        say(f"warning: {', '.join(readers)}: what they read is optimistic, and so are their scores")


def _scores(plan: Plan) -> Made:
    import pandas as pd

    from ich.data.competitions import ADAPTERS
    from ich.ensemble import thresholds
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
    confusions: list[dict[str, Any]] = []
    for member in plan.members:
        folder, stage = plan.workspace.member(member), plan.stage_of(member)
        oof = sigmoid(aligned(pd.read_parquet(folder / "oof.parquet"), ids, slices.classes))
        tuned = _tuned(labels, oof, folds, slices.classes)
        decided = {m: t.decided for m, t in tuned.items() if t.decided is not None}
        found = [("oof", labels, oof, decided)]
        if solution is not None:
            test = pd.read_parquet(folder / "test.parquet")
            truth = solution[slices.classes].to_numpy("float64")
            probability = sigmoid(aligned(test, solution["image_id"].tolist(), slices.classes))
            cuts = {m: [t.thresholds[name] for name in slices.classes] for m, t in tuned.items()}
            decided = {m: thresholds.apply(probability, cut) for m, cut in cuts.items()}
            found.append(("test", truth, probability, decided))
        for where, truth, probability, decided in found:
            figures = _figures(truth, probability, decided, slices)
            scored.append({"member": member, "stage": stage, "rows": where, **figures})
            confusions += [
                {"member": member, "rows": where, "thresholds": name, **row}
                for name, positive in {"0.5": probability >= 0.5, **decided}.items()
                for row in _confusion(truth, positive, slices.classes)
            ]
    folder = plan.workspace.submissions
    files = {"scores.csv": scored, "confusion.csv": confusions}
    for name, lines in files.items():
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: f"{v:.4f}" if isinstance(v, float) else v for k, v in line.items()} for line in lines)
        write_text(folder / name, text.getvalue())
    return {name: folder / name for name in files}, {}


def _of_test_slices(solution: "pd.DataFrame", slices: Any) -> "pd.DataFrame | None":
    """The solution (by image_id, or by study_id) for the test slices at hand; None where it knows none of them."""
    key = "image_id" if "image_id" in solution else "study_id"
    test = slices.table.iloc[slices.test_rows][list(dict.fromkeys(["image_id", key]))]
    known = test.merge(solution, on=key, validate="many_to_one")
    return known if len(known) else None


def _tuned(
    truth: "np.ndarray", probability: "np.ndarray", folds: "np.ndarray", classes: list[str]
) -> "dict[str, Tuned]":
    """Thresholds a metric, tuned on all out-of-fold rows, and what those of the other folds decide a fold."""
    from ich.ensemble import thresholds

    # without trials the exact optimum: the same for every member, and no search to wait for
    common = {"average": "macro", "trials": 0, "seed": 0, "fold": folds}
    return {m: thresholds.tune(truth, probability, classes, beta=beta, **common) for m, beta in BETAS.items()}


def _figures(
    truth: "np.ndarray", probability: "np.ndarray", decided: "Mapping[str, np.ndarray]", slices: Any
) -> dict[str, Any]:
    """What scores.csv says of a member's rows; `half` are figures of the threshold 0.5 in every class."""
    from ich.ensemble import metrics

    figures = {
        "log_loss": metrics.weighted_log_loss(truth, probability, slices.class_weights),
        "auc": metrics.macro(metrics.class_auc(truth, probability)),
        "ap": metrics.macro(metrics.class_average_precision(truth, probability)),
    }
    for metric, beta in BETAS.items():
        figures[metric] = metrics.f_beta(truth, decided[metric], beta, "macro")
        figures[f"{metric}_half"] = metrics.f_beta(truth, probability >= 0.5, beta, "macro")
    return figures


def _confusion(truth: "np.ndarray", positive: "np.ndarray", classes: list[str]) -> list[dict[str, Any]]:
    from ich.ensemble import metrics

    counts = metrics.confusion(truth, positive)
    return [
        {"class": name, **{key: column[c].item() for key, column in counts.items()}} for c, name in enumerate(classes)
    ]


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
