"""`ich submit`: submission.csv (probabilities) and submission_binary.csv (0/1 at the thresholds), checked."""

from pathlib import Path
from typing import TYPE_CHECKING

from ich.console import say
from ich.stages.plan import Made, Plan
from ich.workspace import UserError, atomic, read_json

if TYPE_CHECKING:
    import pandas as pd


def run(plan: Plan, *, force: bool = False) -> None:
    made = plan.make(plan.submit, lambda _: _submission(plan), force=force)
    record = plan.submit.record.read() or {}
    say(
        f"submit: {'wrote' if made else 'done'}, {plan.workspace.submissions / 'submission.csv'}, {record['rows']} rows"
    )
    if record["filled_with_prior"]:
        say(f"warning: {record['filled_with_prior']} test images could not be read; they got the training prevalence")


def _submission(plan: Plan) -> Made:
    import pandas as pd

    from ich.data.competitions import ADAPTERS
    from ich.ensemble import thresholds
    from ich.ensemble.members import aligned, sigmoid
    from ich.stages.inputs import Slices, layout_errors

    slices, adapter = Slices(plan), ADAPTERS[plan.recipe.competition.format]
    classes = slices.classes
    ids = slices.ids(slices.test_rows)
    table = pd.read_parquet(plan.workspace.member("blend") / "test.parquet")
    probability = sigmoid(aligned(table, ids, classes))
    prior = slices.labels[slices.labelled].mean(axis=0)
    quarantine = pd.read_csv(plan.prepared.folder / "quarantine.csv", dtype=str, keep_default_na=False)
    unread = sorted(set(quarantine.loc[quarantine["split"] == "test", "image_id"]) - set(ids))
    values = pd.concat(
        [
            pd.DataFrame(probability, columns=pd.Index(classes)).assign(image_id=ids),
            pd.DataFrame([prior] * len(unread), columns=pd.Index(classes)).assign(image_id=unread),
        ],
        ignore_index=True,
    )
    cuts = (read_json(plan.workspace.thresholds) or {})["thresholds"]
    decided = values.copy()
    decided[classes] = thresholds.apply(values[classes].to_numpy(), [cuts[name] for name in classes]).astype(int)

    files: dict[str, Path] = {}
    rows = 0
    for name, content in (("submission.csv", values), ("submission_binary.csv", decided)):
        with layout_errors():
            submission = adapter.submission(plan.raw_root, content)
        check(submission, plan.raw_root)
        rows = len(submission)
        path = plan.workspace.submissions / name
        with atomic(path) as temporary:
            submission.to_csv(temporary, index=False)
        files[name] = path
    return files, {"rows": rows, "filled_with_prior": len(unread), "thresholds": cuts}


def check(submission: "pd.DataFrame", root: Path) -> None:
    """Raise UserError unless each wanted id has one value in 0..1; the adapter has put the rows in order."""
    key, value = submission.columns
    twice = submission[key].duplicated()
    if twice.any():
        raise UserError(f"{root}: the sample submission names {submission.loc[twice, key].iloc[0]} twice")
    empty = submission[value].isna()
    if empty.any():
        raise UserError(
            f"{int(empty.sum())} rows of the submission have no prediction, {submission.loc[empty, key].iloc[0]} first;"
            " run `ich prepare` again: the test set has changed since"
        )
    outside = (submission[value] < 0) | (submission[value] > 1)
    if outside.any():
        raise UserError(f"{submission.loc[outside, key].iloc[0]}: a value outside 0..1")
