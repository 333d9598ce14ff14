import numpy as np
import pandas as pd
import pytest

from ich.data import rules

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
        "tilt": 12.0,
        "row_spacing": 0.5,
        "column_spacing": 0.5,
        "subdural": [0, 1, 0, 0, NAN],
        "any": [0, 1, 0, 0, NAN],
        "frame": 0,
        "path": [f"{name}.dcm" for name in "abcde"],
        "shard": [0, 0, 0, 0, 1],
        "shard_row": [0, 1, 2, 3, 0],
    }
    return pd.DataFrame(table | columns)


def described(faults: rules.Faults, table: pd.DataFrame, key: str = "image_id") -> list[str]:
    return [rules.describe(fault, table, key) for fault in faults]


# ---- labels and slices


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({}, []),
        ({"image_id": ["a", "b", "a"]}, ["image_id a: image_id is a; expected each once"]),
        ({"image_id": ["a", " ", "c"]}, ["image_id  : image_id is  ; expected a name"]),
        ({"any": [0.0, 1.0, 2.0]}, ["image_id c: any is 2.0; expected 0 or 1"]),
        ({"all": 1}, ["all: a column that does not belong; expected image_id, any"]),
    ],
)
def test_label_table(columns, expected):
    table = pd.DataFrame({"image_id": ["a", "b", "c"], "any": [0.0, 1.0, NAN]} | columns)
    assert described(rules.label_table(table, ["any"]), table) == expected


@pytest.mark.parametrize(
    ("column", "value", "expected"),
    [
        ("position", 1e6, "-10000 to 10000"),
        ("row_spacing", 512.0, "0.05 to 5"),
        ("n_slices", 0, "1 to 100000"),
        ("n_slices", NAN, "1 to 100000"),
        ("split", "valid", "one of train, test"),
        ("any", 0.5, "0 or 1"),
        ("patient_id", "", "a name"),
        ("path", "", "a name"),
    ],
)
def test_an_implausible_value_is_a_fault(column, value, expected):
    table = slices()
    table[column] = [*table[column][:4], value]
    assert described(rules.slice_values(table, CLASSES), table) == [
        f"image_id e: {column} is {value}; expected {expected}"
    ]


@pytest.mark.parametrize("table", [slices(), slices(position=NAN, tilt=NAN, row_spacing=NAN, column_spacing=NAN)])
def test_plausible_values_and_missing_positions_and_spacings_are_no_fault(table):
    assert described(rules.slice_values(table, CLASSES), table) == []


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({}, []),
        ({"image_id": ["a", "b", "a", "d", "e"]}, ["image_id a: image_id is a; expected each once"]),
        ({"any": [0, 0.5, 0, 0, NAN]}, ["image_id b: any is 0.5; expected 0 or 1"]),
        ({"any": [0, 1, 0, 0, 1]}, ["image_id e: any is 1; expected no label of a test slice"]),
        ({"index": [0, 1, 0, 0, 0]}, ["image_id d: index is 0; expected its place in its series"]),
        ({"n_slices": [2, 3, 2, 2, 1]}, ["image_id b: n_slices is 3; expected its series' length"]),
        (
            {"position": [5.0, 0.0, 0.0, -1.0, 1.0]},
            ["image_id b: position is 0.0; expected in ascending order within the series (2 such rows)"],
        ),
        ({"position": [5.0, NAN, -5.0, 0.0, 1.0]}, []),  # without positions, a series may be in any order
        ({"position": [5.0004, 5.0, -5.0, 0.0, 1.0]}, []),  # the same position
        ({"shard_row": [0, 1, 3, 2, 0]}, ["image_id c: shard_row is 3; expected its place in its shard (2 such rows)"]),
        (
            {"shard": [1, 1, 0, 0, 0], "shard_row": [0, 1, 0, 1, 2]},
            ["image_id c: shard is 0; expected in ascending order"],
        ),
        (
            {"series_id": ["1", "2", "2", "1", "3"], "study_id": ["s"] * 4 + ["u"], "position": NAN},
            [
                "image_id d: series_id is 1; expected the slices of a series together",
                "image_id b: index is 1; expected its place in its series (2 such rows)",
            ],
        ),
    ],
)
def test_slice_table(columns, expected):
    table = slices(**columns)
    assert described(rules.slice_table(table, CLASSES), table) == expected


def test_require_raises_for_the_first_fault():
    table = slices(split=["train"] * 2 + ["valid"] * 2 + ["test"])
    with pytest.raises(ValueError, match=r"image_id c: split is valid; expected one of train, test \(2 such rows\)"):
        rules.require(rules.slice_table(table, CLASSES), table, "image_id")


@pytest.mark.parametrize(("values", "outside"), [("hu", [0, 2]), ("grey", [0, 2, 3])])
def test_pixels_out_of_range_are_a_fault(values, outside, monkeypatch):
    monkeypatch.setattr(rules, "CHUNK", 2)
    hu = np.zeros((5, 3, 3), dtype=np.int16)
    hu[0, 0, 0], hu[2, 2, 2], hu[3, 1, 1] = -1025, 3072, -1
    read: list[int] = []
    (fault,) = rules.pixels(hu, 5, values, read.append)
    assert fault.rows.tolist() == outside
    assert read == [2, 2, 1]


@pytest.mark.parametrize("hu", [np.zeros((5, 3, 3), np.float32), np.zeros((4, 3, 3), np.int16), np.zeros(5, np.int16)])
def test_pixels_of_another_shape_or_type_are_rejected(hu):
    with pytest.raises(ValueError, match=r"expected int16 \[5, s, s\]"):
        list(rules.pixels(hu, 5, "hu", lambda _: None))


@pytest.mark.parametrize("column", ["reason", "split"])
def test_an_unknown_reason_or_split_in_the_quarantine_list_is_a_fault(column):
    table = pd.DataFrame({"image_id": ["x", "y"], "split": ["test", "train"], "reason": "truncated"})
    table.loc[1, column] = "because"
    (fault,) = rules.quarantine(table)
    assert (fault.rows.tolist(), fault.column) == ([1], column)


# ---- folds

LABELLED = slices().iloc[:4]
BY_STUDY = pd.DataFrame({"study_id": ["s", "t"], "patient_id": ["p", "q"], "fold": [0, 1]})
BY_SLICE = LABELLED[["image_id", "study_id", "patient_id"]].assign(fold=[0, 1, 0, 1])


@pytest.mark.parametrize("assigned", [BY_STUDY, BY_SLICE])
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda t: t, []),
        (lambda t: t[t["fold"] == 1], ["fold 0 is empty", "labelled have no fold"]),
        (lambda t: pd.concat([t, t.iloc[:1]]), ["expected each once"]),
        (lambda t: t.assign(fold=t["fold"] + 1), ["fold is 2; expected 0 to 1", "fold 0 is empty"]),
        (lambda t: t.assign(fold=0), ["fold 1 is empty (folds.n is 2)"]),
        (lambda t: pd.concat([t, t.iloc[:1].assign(image_id="z", study_id="z")]), ["expected a labelled"]),
    ],
)
def test_folds_by_study_and_by_slice(assigned, change, expected):
    changed = change(assigned)[assigned.columns].reset_index(drop=True)
    found = described(rules.folds(changed, LABELLED, 2), changed, rules.fold_key(assigned))
    assert len([one for one in found if any(part in one for part in expected)]) == len(expected)
    assert bool(found) == bool(expected)


@pytest.mark.parametrize(
    ("patients", "labelled", "expected"),
    [
        (["p", "p"], LABELLED.assign(patient_id="p"), "study_id s: patient_id is p; expected all studies of a patient"),
        (["p", "x"], LABELLED, "study_id t: patient_id is x; expected the patient of the slice table"),
    ],
)
def test_a_patient_in_two_folds_or_another_patient_is_a_fault(patients, labelled, expected):
    table = BY_STUDY.assign(patient_id=patients)
    (fault,) = described(rules.folds(table, labelled, 2), table, "study_id")
    assert fault.startswith(expected)
