"""`ich folds`: folds/<recipe>.csv, by patient, written once and then used by every stage.

With folds.by slice the file has a row a slice, at random, as some solutions divide: their scores leak.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from ich.console import say, table, warn
from ich.errors import UserError
from ich.pipeline.plan import Made, Plan
from ich.stages.artefacts import FOLDS, as_written, table_of
from ich.stages.member import leave_bytes
from ich.store.hashes import sha256_file

if TYPE_CHECKING:
    import pandas as pd


def run(plan: Plan, *, force: bool = False) -> None:
    path = plan.workspace.folds

    def make(_fingerprint: str) -> Made:
        from ich.data import folds

        classes = (plan.record_of(plan.prepared.record) or {})["classes"]
        slices = table_of(plan.prepared.folder / "slices.parquet")
        n, by_slice = plan.recipe.folds.n, plan.recipe.folds.by == "slice"
        assign, key = (folds.assign_slices, "image_id") if by_slice else (folds.assign, "study_id")
        labelled = slices[slices[classes].notna().all(axis=1) & (slices["split"] == "train")]

        def divided() -> "tuple[pd.DataFrame, bytes]":
            found = assign(slices, classes, n, plan.recipe.folds.seed)
            return found, found.to_csv(index=False).encode()

        try:
            keep = not (force or by_slice) and plan.fold_settings_hold()
            assigned = _kept(plan, labelled, n, lambda: divided()[1]) if keep else None
            if assigned is None:
                assigned, text = divided()
                leave_bytes(path, text)
        except (ValueError, KeyError) as error:
            raise UserError(f"{path}: {error}; `ich folds --force` makes new folds") from None
        joined = labelled.merge(assigned[[key, "fold"]], on=key, validate="many_to_one")
        counts = joined.groupby("fold")[classes].sum().astype(int)
        warnings = [f"fold {k} has no study with {c}" for k, c in folds.missing_classes(assigned, classes, n)]
        if by_slice:
            warnings.append("the folds divide studies and patients at random: every out-of-fold score is optimistic")
        return {path.name: path}, {
            "studies": assigned.groupby("fold")["study_id"].nunique().tolist(),
            "slices": joined.groupby("fold").size().tolist(),
            "positives": {c: counts[c].tolist() for c in classes},
            "warnings": warnings,
        }

    made = plan.make(plan.folds, make, force=force)
    record = plan.folds.record.read() or {}
    say(f"folds: {'wrote' if made else 'done'}, {path}")
    if made:
        classes = list(record["positives"])
        rows = [
            [
                str(k),
                str(record["studies"][k]),
                str(record["slices"][k]),
                *(str(record["positives"][c][k]) for c in classes),
            ]
            for k in range(len(record["studies"]))
        ]
        table(["fold", "studies", "slices", *classes], rows)
    for warning in record["warnings"]:
        warn(warning)


def _kept(plan: Plan, labelled: "pd.DataFrame", n: int, written_now: Callable[[], bytes]) -> "pd.DataFrame | None":
    """The fold file that is there: other folds would make every score incomparable with those before.

    One that does not fit the studies is refused with ValueError, unless it is as this program wrote it: then None.
    """
    import pandas as pd

    from ich.data import folds

    path = plan.workspace.folds
    if not path.is_file():
        return None
    record = plan.record_of(plan.folds.record)
    if record is not None and record["files"].get(path.name) != sha256_file(path):
        if path.read_bytes() == written_now():  # a kill came between file and record
            return None
        raise UserError(
            f"{path} is not as `ich folds` left it. To use it as it is now, delete {plan.folds.record.path};"
            " `ich folds --force` makes new folds"
        )
    with as_written(path, FOLDS):
        assigned = pd.read_csv(path, dtype={"study_id": str, "patient_id": str})
    try:
        folds.check(assigned, labelled, n)
    except (ValueError, KeyError) as error:
        if record is None:
            raise
        say(f"folds: the studies have changed ({error}), so they are divided anew")
        return None
    return assigned
