"""`ich submit`: submission.csv as the competition wants it, probabilities or 0/1, the other beside it; checked."""

from pathlib import Path
from typing import TYPE_CHECKING

from ich.console import say, warn
from ich.errors import UserError
from ich.pipeline.plan import Made, Plan
from ich.stages.artefacts import as_written, logits_of
from ich.store.atomic import atomic, read_json

if TYPE_CHECKING:
    import pandas as pd

NAMES = {  # of probabilities and of decisions (0/1 at the thresholds), by what the competition wants
    "probabilities": ("submission.csv", "submission_binary.csv"),
    "decisions": ("submission_probabilities.csv", "submission.csv"),
}


def run(plan: Plan, *, force: bool = False) -> None:
    made = plan.make(plan.submit, lambda _: _submission(plan), force=force)
    record = plan.submit.record.read() or {}
    if record["prevalence"] == "estimated":
        say("submit: probabilities and thresholds are shifted to the prevalence estimated for the test set")
    if not record["files"]:
        say("submit: there is no test set, so there is nothing to submit")
        return
    said = "wrote" if made else "done"
    say(f"submit: {said}, {plan.workspace.submissions / 'submission.csv'} ({record['submits']}), {record['rows']} rows")
    if record["filled_with_prior"]:
        warn(f"{record['filled_with_prior']} test images could not be read; they got the training prevalence")


def _submission(plan: Plan) -> Made:
    import pandas as pd

    from ich.data.competitions import ADAPTERS
    from ich.ensemble import thresholds
    from ich.stages.inputs import Slices, layout_errors, submitted

    slices, adapter = Slices(plan), ADAPTERS[plan.recipe.competition.format]
    classes = slices.classes
    ids = slices.ids(slices.test_rows)
    logits = logits_of(plan.workspace.member("blend") / "test.parquet", ids, classes)
    prior = slices.labels[slices.labelled].mean(axis=0)
    tuned = read_json(plan.workspace.thresholds) or {}
    with as_written(plan.workspace.thresholds):
        probability, cuts = submitted(tuned, logits, classes, slices.class_weights)
        shifted = tuned["prevalence"]["applied"]
        if shifted:
            prior = [tuned["prevalence"]["classes"][name]["test"] for name in classes]
    path = plan.prepared.folder / "quarantine.csv"
    with as_written(path):
        quarantine = pd.read_csv(path, dtype=str, keep_default_na=False)
        unread = sorted(set(quarantine.loc[quarantine["split"] == "test", "image_id"]) - set(ids))
    record = {
        "rows": 0,
        "filled_with_prior": len(unread),
        "thresholds": dict(zip(classes, cuts, strict=True)),
        "prevalence": "estimated" if shifted else "training",
        "submits": adapter.SUBMITS,
    }
    if not len(ids) and not unread:
        return {}, record
    values = pd.concat(
        [
            pd.DataFrame(probability, columns=pd.Index(classes)).assign(image_id=ids),
            pd.DataFrame([prior] * len(unread), columns=pd.Index(classes)).assign(image_id=unread),
        ],
        ignore_index=True,
    )
    decided = values.copy()
    decided[classes] = thresholds.apply(values[classes].to_numpy(), cuts).astype(int)

    files: dict[str, Path] = {}
    for name, content in zip(NAMES[adapter.SUBMITS], (values, decided), strict=True):
        with layout_errors():
            submission = adapter.submission(plan.raw_root, content)
        check(submission, plan.raw_root)
        record["rows"] = len(submission)
        path = plan.workspace.submissions / name
        with atomic(path) as temporary:
            submission.to_csv(temporary, index=False)
        files[name] = path
    return files, record


def check(submission: "pd.DataFrame", root: Path) -> None:
    """Raise UserError unless each wanted id has one value in 0..1 a column; the adapter has put the rows in order."""
    key, *columns = submission.columns
    twice = submission[key].duplicated()
    if twice.any():
        raise UserError(f"{root}: the sample submission names {submission.loc[twice, key].iloc[0]} twice")
    values = submission[columns]
    empty = values.isna().any(axis=1)
    if empty.any():
        raise UserError(
            f"{int(empty.sum())} rows of the submission have no prediction, {submission.loc[empty, key].iloc[0]} first;"
            " run `ich prepare` again: the test set has changed since"
        )
    outside = ((values < 0) | (values > 1)).any(axis=1)
    if outside.any():
        raise UserError(f"{submission.loc[outside, key].iloc[0]}: a value outside 0..1")
