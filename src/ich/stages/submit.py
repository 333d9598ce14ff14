"""`ich submit`: write submission.csv in the format of the competition, and a second file with 0/1 or probabilities."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ich.console import say, warn
from ich.data.competitions import ADAPTERS, Adapter
from ich.ensemble import thresholds
from ich.ensemble.final import final_prevalence, final_probabilities, final_thresholds
from ich.errors import UserError, parsing
from ich.models.artifacts import read_logits
from ich.models.table import SliceTable
from ich.pipeline.state import Made, Plan
from ich.store.atomic import read_json, write_text
from ich.store.paths import SUBMITTED


def run(plan: Plan, *, force: bool = False) -> None:
    made = plan.make(plan.submit, lambda _: _submission(plan), force=force)
    record = plan.submit.record.read() or {}
    if record["prevalence"] == "estimated":
        say("submit: probabilities and thresholds are shifted to the estimated prevalence of the test set")
    if not record["files"]:
        say("submit: no test set, nothing to submit")
        return
    said = "wrote" if made else "up to date,"
    say(f"submit: {said} {plan.workspace.submissions / 'submission.csv'} ({record['submits']}), {record['rows']} rows")
    if record["filled_with_prior"]:
        warn(f"{record['filled_with_prior']} test images could not be read; the training prevalence was predicted")


def _submission(plan: Plan) -> Made:
    slices, adapter = SliceTable.read(plan.workspace, plan.prepared.folder), ADAPTERS[plan.recipe.competition.format]
    classes, ids = slices.classes, slices.ids(slices.test_rows)
    logits = read_logits(plan.workspace.model("blend") / "test.parquet", ids, classes)
    tuned = read_json(plan.workspace.thresholds) or {}
    with parsing(plan.workspace.thresholds):
        probability, cuts = final_probabilities(tuned, logits, classes, slices.class_weights)
        shifted = tuned["prevalence"]["applied"]
    path = plan.prepared.folder / "quarantine.csv"
    with parsing(path):
        quarantine = pd.read_csv(path, dtype=str, keep_default_na=False)
        unread = sorted(set(quarantine.loc[quarantine["split"] == "test", "image_id"]) - {*ids, ""})
    record = {
        "rows": 0,
        "filled_with_prior": len(unread),
        "thresholds": dict(zip(classes, cuts, strict=True)),
        "prevalence": "estimated" if shifted else "training",
        "submits": adapter.SUBMITS,
    }
    if not len(ids) and not unread:
        return {}, record
    values = pd.DataFrame(probability, columns=pd.Index(classes)).assign(image_id=ids)
    tables = submissions(adapter, plan.raw_root, values, unread, tuned)
    files = {name: plan.workspace.submissions / name for name in SUBMITTED[adapter.SUBMITS]}
    for path, submission in zip(files.values(), tables, strict=True):
        record["rows"] = len(submission)
        write_text(path, submission.to_csv(index=False))
    return files, record


def submissions(
    adapter: Adapter, root: Path, values: pd.DataFrame, unread: Sequence[str], tuned: Mapping[str, Any]
) -> list[pd.DataFrame]:
    """Return the submissions of probabilities and of decisions. `root`: folder of the sample submission.

    values: image_id and the probability of each class. unread: further images, which get the prevalence. tuned: content
    of thresholds.json. Raises UserError for an invalid submission.
    """
    classes = [str(name) for name in values if name != "image_id"]
    prior = pd.DataFrame([final_prevalence(tuned, classes)] * len(unread), columns=pd.Index(classes))
    values = pd.concat([values, prior.assign(image_id=list(unread))], ignore_index=True)
    decided = values.copy()
    decided[classes] = thresholds.apply(values[classes].to_numpy(), final_thresholds(tuned, classes)).astype(int)
    found = [adapter.submission(root, content) for content in (values, decided)]
    for submission in found:
        check(submission, root)
    return found


def check(submission: pd.DataFrame, root: Path) -> None:
    """Raise UserError unless each id occurs once and all values are in 0..1."""
    key, *columns = submission.columns
    twice = submission[key].duplicated()
    if twice.any():
        raise UserError(f"{root}: duplicate id in the sample submission: {submission.loc[twice, key].iloc[0]}")
    values = submission[columns]
    empty = values.isna().any(axis=1)
    if empty.any():
        raise UserError(
            f"{int(empty.sum())} rows of the submission have no prediction, the first is"
            f" {submission.loc[empty, key].iloc[0]}. The test set has changed: run `ich prepare`"
        )
    outside = ((values < 0) | (values > 1)).any(axis=1)
    if outside.any():
        raise UserError(f"submission of {submission.loc[outside, key].iloc[0]}: value outside 0..1")
