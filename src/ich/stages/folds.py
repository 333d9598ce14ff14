"""`ich folds`: folds/<recipe>.csv, by patient, written once and then used by every stage.

With folds.by slice the file has a row per slice, at random, as some solutions divide: their scores leak.
"""

import pandas as pd

from ich.console import say, table, warn
from ich.data import folds, rules
from ich.errors import UserError, as_written
from ich.models.table import FOLDS, read_parquet
from ich.pipeline.state import Made, Plan
from ich.store.atomic import write_bytes
from ich.store.hashes import sha256_file


def run(plan: Plan, *, force: bool = False) -> None:
    made = plan.make(plan.folds, lambda _: _divide(plan, force), force=force)
    record = plan.folds.record.read() or {}
    say(f"folds: {'wrote' if made else 'done'}, {plan.workspace.folds}")
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
        text = assigned.to_csv(index=False).encode()
        keep = not force and not by_slice and plan.fold_settings_hold()
        kept = _kept(plan, labelled, text) if keep else None
    except (ValueError, KeyError) as error:
        raise UserError(f"{path}: {error}; `ich folds --force` makes new folds") from None
    if kept is None:
        write_bytes(path, text)
    else:
        assigned = kept
    key = rules.fold_key(assigned)
    joined = labelled.merge(assigned[[key, "fold"]], on=key, validate="many_to_one")
    counts = joined.groupby("fold")[classes].sum().astype(int)
    warnings = [f"fold {k} has no study with {c}" for k, c in folds.missing_classes(assigned, classes, settings.n)]
    if by_slice:
        warnings.append("the folds divide studies and patients at random: every out-of-fold score is optimistic")
    return {path.name: path}, {
        "studies": assigned.groupby("fold")["study_id"].nunique().tolist(),
        "slices": joined.groupby("fold").size().tolist(),
        "positives": {c: counts[c].tolist() for c in classes},
        "warnings": warnings,
    }


def _kept(plan: Plan, labelled: pd.DataFrame, written_now: bytes) -> pd.DataFrame | None:
    """The existing fold file: other folds would make every score incomparable with those before. None: write it anew.

    A file that does not fit the studies is refused with ValueError, unless this program wrote it.
    """
    path = plan.workspace.folds
    if not path.is_file():
        return None
    record = plan.record_of(plan.folds)
    if record and record["files"].get(path.name) != sha256_file(path):
        if path.read_bytes() == written_now:  # a kill came between file and record
            return None
        raise UserError(
            f"{path} is not as `ich folds` left it. To use it as it is now, delete {plan.folds.record.path};"
            " `ich folds --force` makes new folds"
        )
    with as_written(path, FOLDS):
        assigned = pd.read_csv(path, dtype={"study_id": str, "patient_id": str})
    try:
        rules.require(rules.folds(assigned, labelled, plan.recipe.folds.n), assigned, "study_id")
    except (ValueError, KeyError) as error:
        if not record:
            raise
        say(f"folds: the studies have changed ({error}), so they are divided anew")
        return None
    return assigned
