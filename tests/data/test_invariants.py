import numpy as np
import pandas as pd
import pytest

from ich.data import invariants

CLASSES = ["subdural", "any"]
NAN = float("nan")


def slices(**columns) -> pd.DataFrame:
    """Two training series of two slices, of two patients, and a test series of one; columns may be replaced."""
    table = {
        "image_id": ["a", "b", "c", "d", "e"],
        "patient_id": ["p", "p", "q", "q", "r"],
        "study_id": ["s", "s", "t", "t", "u"],
        "series_id": ["1", "1", "2", "2", "3"],
        "position": [0.0, 5.0, -5.0, 0.0, 1.0],
        "index": [0, 1, 0, 1, 0],
        "n_slices": [2, 2, 2, 2, 1],
        "split": ["train"] * 4 + ["test"],
        "subdural": [0, 1, 0, 0, NAN],
        "any": [0, 1, 0, 0, NAN],
    }
    return pd.DataFrame(table | columns)


def broken(check) -> list[tuple[list[str], str]]:
    return [(list(names), what) for names, what in check if len(names)]


def test_a_table_in_order_keeps_its_promises():
    assert broken(invariants.slice_table(slices(), CLASSES)) == []


@pytest.mark.parametrize(
    ("columns", "names", "what"),
    [
        ({"image_id": ["a", "b", "a", "d", "e"]}, ["a"], "stands in it twice"),
        ({"split": ["train"] * 2 + ["valid"] * 2 + ["test"]}, ["c", "d"], "in neither split"),
        ({"any": [0, 0.5, 0, 0, NAN]}, ["b"], "neither 0 nor 1"),
        ({"any": [0, 1, 0, 0, 1]}, ["e"], "is a test slice and has a label"),
        ({"index": [0, 1, 0, 0, 0]}, ["d"], "not its place"),
        ({"n_slices": [2, 3, 2, 2, 1]}, ["b"], "another n_slices"),
        ({"position": [5.0, 0.0, -5.0, 0.0, 1.0]}, ["b"], "lies before"),
    ],
)
def test_a_slice_that_breaks_one_is_named(columns, names, what):
    ((found, said),) = broken(invariants.slice_table(slices(**columns), CLASSES))
    assert found == names
    assert what in said


def test_slices_apart_from_their_series_are_named():
    found = broken(invariants.slice_table(slices().iloc[[0, 2, 1, 3, 4]].reset_index(drop=True), CLASSES))
    assert (["b", "d"], "lies apart from its series") in found


def test_a_series_that_lacks_a_position_may_stand_in_any_order():
    assert broken(invariants.slice_table(slices(position=[5.0, NAN, -5.0, 0.0, 1.0]), CLASSES)) == []


@pytest.mark.parametrize(("values", "outside"), [("hu", ["a", "c"]), ("grey", ["a", "c", "d"])])
def test_pixels_outside_their_range_are_named(values, outside, monkeypatch):
    monkeypatch.setattr(invariants, "CHUNK", 2)
    hu = np.zeros((5, 3, 3), dtype=np.int16)
    hu[0, 0, 0], hu[2, 2, 2], hu[3, 1, 1] = -1025, 3072, -1
    read: list[int] = []
    ((names, _),) = broken(invariants.pixels(hu, slices()["image_id"], values, read.append))
    assert names == outside
    assert read == [2, 2, 1]


@pytest.mark.parametrize("hu", [np.zeros((5, 3, 3), np.float32), np.zeros((4, 3, 3), np.int16), np.zeros(5, np.int16)])
def test_pixels_of_another_shape_are_refused(hu):
    with pytest.raises(ValueError, match=r"int16 \[5, s, s\] belongs"):
        list(invariants.pixels(hu, slices()["image_id"], "hu", lambda _: None))


def test_a_reason_or_a_split_that_is_not_of_the_list_is_named():
    table = pd.DataFrame({"image_id": ["x", "y"], "split": ["test", "train"], "reason": ["truncated", "because"]})
    ((names, what),) = broken(invariants.quarantine(table))
    assert (names, what) == (["y"], "is quarantined for a reason that there is not")
    ((names, what),) = broken(invariants.quarantine(table.assign(reason="truncated", split=["test", ""])))
    assert (names, what) == (["y"], "is in neither split")


LABELLED = slices().iloc[:4]
BY_STUDY = pd.DataFrame({"study_id": ["s", "t"], "patient_id": ["p", "q"], "fold": [0, 1]})
BY_SLICE = LABELLED[["image_id", "study_id", "patient_id"]].assign(fold=[0, 1, 0, 1])


def test_the_fold_of_a_slice_is_its_study_s_or_its_own():
    assert invariants.fold_of(BY_STUDY, LABELLED).to_dict() == {"a": 0, "b": 0, "c": 1, "d": 1}
    assert invariants.fold_of(BY_SLICE, LABELLED).to_dict() == {"a": 0, "b": 1, "c": 0, "d": 1}


@pytest.mark.parametrize("assigned", [BY_STUDY, BY_SLICE])
def test_folds_by_study_and_by_slice_keep_their_promises(assigned):
    assert broken(invariants.folds(assigned, LABELLED, 2)) == []


def fold_faults(assigned: pd.DataFrame, table: pd.DataFrame) -> list[tuple[list[str], str]]:
    """What is wrong by name, and no matter what `folds.check` says after that."""
    found = []
    try:
        for names, what in invariants.folds(assigned, table, 2):
            found += [(list(names), what)] if len(names) else []
    except ValueError:
        pass
    return found


@pytest.mark.parametrize("assigned", [BY_STUDY, BY_SLICE])
@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda t: t.iloc[1:], "has labels and no fold"),
        (lambda t: pd.concat([t, t.iloc[:1]]), "stands in it twice"),
        (lambda t: t.assign(fold=t["fold"] + 1), "has a fold outside 0..1"),
        (lambda t: pd.concat([t, t.iloc[:1].assign(image_id="z", study_id="z")]), "has no labelled slice"),
    ],
)
def test_folds_that_break_one_are_named(assigned, change, what):
    changed = change(assigned)[assigned.columns]
    assert [said for _, said in fold_faults(changed, LABELLED)] == [what]


def test_a_patient_in_two_folds_is_named():
    table = LABELLED.assign(patient_id="p")
    assert fold_faults(BY_STUDY, table) == [(["p"], "is a patient in two folds")]


def test_a_study_of_another_patient_is_refused():
    with pytest.raises(ValueError, match="study t is not of the patient"):
        list(invariants.folds(BY_STUDY.assign(patient_id=["p", "x"]), LABELLED, 2))
