"""`ich score` of an outside validation: AUC per finding over scans, with confidence intervals."""

import csv
import math

import pandas as pd

from ich.console import say, table
from ich.data.competitions import cq500
from ich.ensemble.intervals import auc_interval
from ich.errors import UserError
from ich.pipeline.state import Made, Plan
from ich.store.atomic import write_csv, write_text


def run(plan: Plan, *, force: bool = False) -> None:
    path = plan.workspace.submissions / "scores.csv"
    plan.make(plan.scans, lambda _: _findings(plan), force=force)
    record = plan.scans.record.read() or {}
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    shown = [[r["finding"], r["class"], r["positives"], r["auc"], f"{r['low']} to {r['high']}"] for r in rows]
    title = f"Maximum probability per scan, {record['scans']} scans, ensemble of {plan.trained.recipe.name}"
    table(["finding", "class", "positives", "AUC", "95 % CI"], shown, title, always=True)
    for note in record["notes"]:
        say(note, always=True)
    say(f"\nscore: wrote {path}", always=True)


def _findings(plan: Plan) -> Made:
    """Write scores.csv (AUC per finding) and scans.csv (predictions and findings per scan)."""
    truth = cq500.reads(plan.raw_root)
    slices = pd.read_csv(plan.workspace.submissions / "slices.csv")
    found = slices.groupby("scan")[[c for c in slices.columns if c.startswith("prob_")]].max().reset_index()
    if "prob_any" not in found:  # a recipe without that class
        found["prob_any"] = found.drop(columns="scan").max(axis=1)
    scans = found.merge(truth, on="scan", validate="one_to_one")
    if scans.empty:
        raise UserError(f"{plan.raw_root}: none of the {len(found)} scans is in reads.csv")
    notes = []
    if unread := len(found) - len(scans):
        notes.append(f"{unread} scans have no row in reads.csv and are ignored")
    if missing := len(truth) - len(scans):
        notes.append(f"{missing} scans of reads.csv have no readable slice and are ignored")
    rows: list[dict[str, object]] = []
    for finding, name in cq500.FINDINGS.items():
        if f"prob_{name}" in scans:
            ends = auc_interval(scans[finding], scans[f"prob_{name}"], scans["scan"])
            auc, low, high = ("-" if math.isnan(value) else f"{value:.4f}" for value in ends)
            row = {"finding": finding, "class": name, "scans": len(scans), "positives": int(scans[finding].sum())}
            rows.append({**row, "auc": auc, "low": low, "high": high})
    folder = plan.workspace.submissions
    write_csv(folder / "scores.csv", rows)
    write_text(folder / "scans.csv", scans.to_csv(index=False, lineterminator="\n"))
    return {name: folder / name for name in ("scores.csv", "scans.csv")}, {"scans": len(scans), "notes": notes}
