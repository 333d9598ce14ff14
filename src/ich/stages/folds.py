"""`ich folds`: split patients into folds; folds/<recipe>.csv is written once and kept, with pseudonyms for own scans.

With folds.by: slice the file has one row per slice and the folds are random, which leaks.
"""

import pandas as pd

from ich.console import say, table, warn
from ich.data import folds, rules
from ich.errors import UserError, parsing
from ich.models.pseudonyms import Pseudonyms
from ich.models.table import FOLDS_REMEDY, read_folds, read_parquet
from ich.pipeline.state import Made, Plan
from ich.store.atomic import write_bytes
from ich.store.hashes import sha256_file


def run(plan: Plan, *, force: bool = False) -> None:
    made = plan.make(plan.folds, lambda _: _divide(plan, force), force=force)
    record = plan.folds.record.read() or {}
    say(f"folds: {'wrote' if made else 'up to date,'} {plan.workspace.folds}")
    if made:
        columns = {"studies": record["studies"], "slices": record["slices"], **record["positives"]}
        counts = zip(*columns.values(), strict=True)
        table(["fold", *columns], [[str(k), *map(str, values)] for k, values in enumerate(counts)])
    for warning in record["warnings"]:
        warn(warning)


def _divide(plan: Plan, force: bool) -> Made:
    path, settings = plan.workspace.folds, plan.recipe.folds
    classes = plan.record_of(plan.prepared)["classes"]
    slices = read_parquet(plan.prepared.folder / "slices.parquet")
    labelled = folds.labelled_slices(slices, classes)
    by_slice = settings.by == "slice"
    try:
        assigned = (folds.assign_slices if by_slice else folds.assign)(slices, classes, settings.n, settings.seed)
    except ValueError as error:
        raise UserError(f"{plan.raw_root}: {error}") from None
    pseudonyms = Pseudonyms.of(plan.workspace, plan.recipe.competition.format)
    pseudonyms.write_list(plan.workspace.private / f"{plan.recipe.name}.csv", slices)
    try:
        text = _text(assigned, pseudonyms)
        same = plan.record_of(plan.folds).get("settings", plan.folds.settings) == plan.folds.settings
        kept = _kept(plan, labelled, classes, pseudonyms, text) if same and not force and not by_slice else None
    except (ValueError, KeyError) as error:
        raise UserError(f"{path}: {error}. Run `ich folds --force` to make new folds") from None
    if kept is not None:
        assigned = kept
    if kept is None or pseudonyms.file is not None:  # a kept file may have ids
        write_bytes(path, _text(assigned, pseudonyms))
    key = rules.fold_key(assigned)
    joined = labelled.merge(assigned[[key, "fold"]], on=key, validate="many_to_one")
    counts = joined.groupby("fold")[classes].sum().astype(int)
    warnings = [f"fold {k} has no study with {c}" for k, c in folds.missing_classes(assigned, classes, settings.n)]
    if by_slice:
        warnings.append("folds are random over slices: every out-of-fold score is optimistic")
    elif plan.record_of(plan.prepared)["values"] == "hu" and (alone := folds.unknown_patients(labelled)):
        warnings.append(
            f"{len(alone)} of {len(assigned)} labelled studies have no PatientID: each counts as a patient of its own."
            " Studies of one patient may be in several folds, and every score is then too optimistic (leakage)."
            " Add a column patient_id to labels.csv"
        )
    return {path.name: path}, {
        "studies": assigned.groupby("fold")["study_id"].nunique().tolist(),
        "slices": joined.groupby("fold").size().tolist(),
        "positives": {c: counts[c].tolist() for c in classes},
        "warnings": warnings,
    }


def _text(assigned: pd.DataFrame, pseudonyms: Pseudonyms) -> bytes:
    return pseudonyms.hidden(assigned).sort_values(rules.fold_key(assigned)).to_csv(index=False).encode()


def _kept(
    plan: Plan, labelled: pd.DataFrame, classes: list[str], pseudonyms: Pseudonyms, written_now: bytes
) -> pd.DataFrame | None:
    """Return the existing fold file, since new folds would make scores incomparable. None: write it again.

    Raises ValueError for a file that does not fit the studies, unless `ich folds` wrote it.
    """
    path = plan.workspace.folds
    if not path.is_file():
        return None
    record = plan.record_of(plan.folds)
    if record and record["files"].get(path.name) != sha256_file(path):
        if path.read_bytes() == written_now:  # a kill came between file and record
            return None
        raise UserError(
            f"{path} was changed after `ich folds` wrote it. Delete {plan.folds.record.path} to use it as it is, or run"
            " `ich folds --force` to make new folds"
        )
    with parsing(path, FOLDS_REMEDY):
        assigned = read_folds(path, pseudonyms, labelled)
    try:
        rules.require(rules.folds(assigned, labelled, plan.recipe.folds.n, classes), assigned, "study_id")
    except (ValueError, KeyError) as error:
        if not record:
            raise
        say(f"folds: the studies have changed ({error}), making new folds")
        return None
    return assigned
