"""`ich score` of an outside validation: the AUC of each finding, a scan at a time, with its interval."""

import csv
import io
import math

import pandas as pd

from ich.console import say, table
from ich.data.competitions import cq500
from ich.ensemble.intervals import auc_interval
from ich.errors import UserError
from ich.pipeline.state import Made, Plan
from ich.store.atomic import write_text


def run(plan: Plan, *, force: bool = False) -> None:
    path = plan.workspace.submissions / "scores.csv"
    plan.make(plan.scans, lambda _: _findings(plan), force=force)
    record = plan.scans.record.read() or {}
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    shown = [[r["finding"], r["class"], r["positives"], r["auc"], f"{r['low']} to {r['high']}"] for r in rows]
    title = (
        f"{record['scans']} scans, the largest probability of a scan's slices, {plan.trained.recipe.name}'s ensemble"
    )
    table(["finding", "class", "positives", "AUC", "95 % interval"], shown, title, asked=True)
    for note in record["notes"]:
        say(note, asked=True)
    say(f"\nscore: {path}", asked=True)


def _findings(plan: Plan) -> Made:
    """scores.csv: AUC a finding with its interval; scans.csv: what each scan was given and what its readers say."""
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
            ends = auc_interval(scans[finding], scans[f"prob_{name}"], scans["scan"])
            shown = ("-" if math.isnan(value) else f"{value:.4f}" for value in ends)
            rows.append((finding, name, str(len(scans)), str(int(scans[finding].sum())), *shown))
    folder, text = plan.workspace.submissions, io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_text(folder / "scores.csv", text.getvalue())
    write_text(folder / "scans.csv", scans.to_csv(index=False, lineterminator="\n"))
    return {name: folder / name for name in ("scores.csv", "scans.csv")}, {"scans": len(scans), "notes": notes}
