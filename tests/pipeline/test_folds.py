"""`ich folds`: the fold file is kept as it is, and refused where it does not fit."""

from pathlib import Path

import pandas as pd
import pytest

from conftest import make, plan_of
from ich.errors import UserError
from ich.store.hashes import sha256_file
from ich.store.records import read_record, write_record

FILE, RECORD = "folds/parts.csv", "folds/parts.run.json"


def rewritten(root: Path) -> bytes:
    """The fold file with its folds exchanged; returns what it was."""
    path = root / FILE
    before, table = path.read_bytes(), pd.read_csv(path)
    table.assign(fold=(table["fold"] + 1) % 3).to_csv(path, index=False)
    return before


def test_a_committed_fold_file_is_used_as_it_is(copy):
    rewritten(copy)
    (copy / RECORD).unlink()
    changed = (copy / FILE).read_bytes()
    make(plan_of(copy), "folds")
    assert (copy / FILE).read_bytes() == changed


def test_a_changed_fold_file_is_refused_until_the_user_says_which_to_use(copy):
    before = rewritten(copy)
    with pytest.raises(UserError, match=r"parts\.csv was changed after `ich folds` "):
        make(plan_of(copy), "folds")
    (copy / RECORD).unlink()
    make(plan_of(copy), "folds")
    assert (copy / FILE).read_bytes() != before
    make(plan_of(copy), "folds", force=True)
    assert (copy / FILE).read_bytes() == before


def test_a_kill_between_the_fold_file_and_its_record_needs_no_help(copy):
    record = read_record(copy / RECORD) or {}
    write_record(copy / RECORD, record | {"files": {"parts.csv": "of the file before"}})
    before = (copy / FILE).read_bytes()
    make(plan_of(copy), "folds")
    assert (copy / FILE).read_bytes() == before
    assert plan_of(copy).state(plan_of(copy).folds).done


def test_folds_are_made_anew_for_other_studies(copy):
    before = pd.read_csv(copy / FILE)
    written = (read_record(copy / "input/tiny/run.json") or {})["written"]
    write_record(copy / "input/tiny/run.json", {"written": written})  # as after a kill between the demo and its record
    plan = plan_of(copy, "demo={train_studies: 6, test_studies: 1, slices: 4, size: 48, seed: 4}")
    assert "making new folds" in make(plan, "demo", "prepare", "folds")
    assert plan.state(plan.demo).done
    assert not set(before["study_id"]) & set(pd.read_csv(copy / FILE)["study_id"])


def test_a_fold_file_that_splits_a_patient_is_refused(copy):
    folds = pd.read_csv(copy / FILE)
    patient = folds["patient_id"].value_counts().index[0]
    rows = folds.index[folds["patient_id"] == patient]
    assert len(rows) > 1, "the tiny competition has a patient with two studies"
    folds.loc[rows[0], "fold"] = 1 - folds.loc[rows[0], "fold"].clip(0, 1)
    folds.to_csv(copy / FILE, index=False)
    (copy / RECORD).unlink()
    with pytest.raises(UserError, match=f"patient_id is {patient}; expected all studies of a patient in one fold"):
        make(plan_of(copy), "folds")


WHOLE_STUDIES = ("end_to_end", "sequence", "smooth", "stack")  # models that read them
BY_SLICE = (
    "name=sliced",
    "folds.by=slice",
    "cnn.small=null",
    "cnn.resnext=null",
    *(f"{group}=null" for group in WHOLE_STUDIES),
)


def test_folds_by_slice_leak_and_say_so(copy):
    plan = plan_of(copy, *BY_SLICE, "ablation=null", "blend.calibration=none", "blend.method=logits")
    assert "every out-of-fold score is optimistic" in make(plan, "prepare", "folds")
    assert "slices of one patient" in make(plan, "cnn", "blend", "thresholds", "score")
    folds = pd.read_csv(copy / "folds/sliced.csv", dtype=str)
    assert (folds.groupby("patient_id")["fold"].nunique() > 1).all()
    for model in ("resnet", "blend"):
        oof = pd.read_parquet(copy / f"oof/sliced/{model}/oof.parquet")
        assert sorted(oof["image_id"]) == sorted(folds["image_id"])
    assert plan_of(copy).state(plan_of(copy).submit).done, "the recipe by patient is untouched"


@pytest.mark.parametrize("column", ["study_id", "patient_id", "any"])
def test_a_fold_file_without_a_column_is_refused_and_one_of_ours_made_anew(copy, column):
    pd.read_csv(copy / FILE).drop(columns=column).to_csv(copy / FILE, index=False)
    record = read_record(copy / RECORD) or {}
    (copy / RECORD).unlink()
    with pytest.raises(UserError, match=rf"parts\.csv: {column}: this column is missing; it has .*Run `ich folds"):
        make(plan_of(copy), "folds")
    write_record(copy / RECORD, record | {"fingerprint": "", "files": {"parts.csv": sha256_file(copy / FILE)}})
    assert "making new folds" in make(plan_of(copy), "folds")
    assert column in pd.read_csv(copy / FILE)
