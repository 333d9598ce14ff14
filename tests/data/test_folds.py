import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ich.data import folds

CLASSES = ["rare", "common", "any"]


def competition(seed: int, patients: int, rare: float = 0.05) -> pd.DataFrame:
    """A slice table: patients with 1 to 3 studies of 5 to 12 slices."""
    random = np.random.default_rng(seed)
    rows = []
    for patient in range(patients):
        bleeds = random.random(2) < (rare, 0.4)
        for study in range(random.integers(1, 4)):
            n = random.integers(5, 13)
            label = (random.random((n, 2)) < 0.4) & bleeds
            part = pd.DataFrame(label.astype("float32"), columns=CLASSES[:2])
            rows.append(part.assign(patient_id=f"p{patient}", study_id=f"p{patient}s{study}"))
    table = pd.concat(rows, ignore_index=True)
    table["any"] = table[CLASSES[:2]].max(axis=1)
    return table.assign(split="train", image_id=[f"i{i}" for i in range(len(table))])


@settings(max_examples=40)
@given(seed=st.integers(0, 1000), patients=st.integers(5, 60), n=st.integers(2, 5))
def test_every_study_has_one_fold_and_every_patient_is_in_one_fold(seed, patients, n):
    table = competition(seed, patients)
    found = folds.assign(table, CLASSES, n, seed=1)
    assert sorted(found["study_id"]) == sorted(table["study_id"].unique())
    assert found.groupby("patient_id")["fold"].nunique().max() == 1
    assert set(found["fold"]) == set(range(n))


def test_a_class_with_as_many_patients_as_folds_is_in_every_fold():
    table = competition(3, 60, rare=0.0)
    table.loc[table["patient_id"].isin(["p4", "p17", "p30"]), ["rare", "any"]] = 1.0
    found = folds.assign(table, CLASSES, 3, seed=7)
    assert (found[found["rare"] == 1].groupby("fold")["patient_id"].nunique() == 1).all()
    assert folds.missing_classes(found, CLASSES, 3) == []


def test_a_class_with_fewer_patients_than_folds_is_not_reported_as_missing():
    table = competition(3, 20, rare=0.0)
    table.loc[table["patient_id"] == "p4", ["rare", "any"]] = 1.0
    found = folds.assign(table, CLASSES, 3, seed=7)
    assert folds.missing_classes(found, CLASSES, 3) == []
    assert (0, "rare") in folds.missing_classes(found.assign(rare=(found["fold"] > 0).astype(int)), CLASSES, 3)


def test_test_slices_and_unlabelled_slices_have_no_fold():
    table = competition(5, 10)
    table.loc[table["patient_id"] == "p0", "split"] = "test"
    table.loc[table["patient_id"] == "p1", CLASSES] = np.nan
    assert not {"p0", "p1"} & set(folds.assign(table, CLASSES, 3, seed=7)["patient_id"])


@pytest.mark.parametrize("assign", [folds.assign, folds.assign_slices])
def test_folds_depend_on_the_seed_and_not_on_the_order_of_rows(assign):
    table = competition(5, 40)
    first = assign(table, CLASSES, 3, seed=7)
    pd.testing.assert_frame_equal(first, assign(table.sample(frac=1, random_state=1), CLASSES, 3, seed=7))
    assert (first["fold"] != assign(table, CLASSES, 3, seed=8)["fold"]).any()


def test_fewer_patients_or_slices_than_folds_are_rejected():
    with pytest.raises(ValueError, match="2 labelled patients cannot fill 3 folds"):
        folds.assign(competition(1, 2), CLASSES, 3, seed=7)
    with pytest.raises(ValueError, match="2 labelled slices cannot fill 3 folds"):
        folds.assign_slices(competition(5, 2).iloc[:2], CLASSES, 3, seed=7)


def test_the_same_patient_in_all_studies_is_rejected_with_advice_that_helps():
    table = competition(1, 6)
    with pytest.raises(ValueError, match="studies have the same PatientID; add a column patient_id to labels"):
        folds.assign(table.assign(patient_id="ANON"), CLASSES, 2, seed=7)
    with pytest.raises(ValueError, match="1 labelled patients cannot fill 2 folds; label studies of more patients"):
        folds.assign(table[table["study_id"] == "p0s0"], CLASSES, 2, seed=7)
    assert not folds.too_few_patients(table.assign(patient_id=table["study_id"]), 6)


def test_a_study_with_two_patients_is_rejected():
    table = competition(5, 10)
    table.loc[0, "patient_id"] = "p9"
    with pytest.raises(ValueError, match="study p0s0 belongs to two patients"):
        folds.assign(table, CLASSES, 3, seed=7)


def test_the_fold_of_a_slice_is_that_of_its_study_or_its_own():
    table = competition(2, 8)
    by_study, by_slice = folds.assign(table, CLASSES, 2, seed=7), folds.assign_slices(table, CLASSES, 2, seed=7)
    for assigned, key in ((by_study, "study_id"), (by_slice, "image_id")):
        expected = table.merge(assigned[[key, "fold"]], on=key).set_index("image_id")["fold"]
        assert folds.fold_of(assigned, table).to_dict() == expected.to_dict()
    assert folds.fold_of(by_slice.iloc[1:], table).isna().sum() == 1


# ---- folds by slice


def test_folds_by_slice_have_every_labelled_slice_once_and_equal_sizes():
    table = competition(5, 20)
    table.loc[table["patient_id"] == "p0", "split"] = "test"
    table.loc[table["patient_id"] == "p1", CLASSES] = np.nan
    labelled = table[~table["patient_id"].isin(["p0", "p1"])]
    found = folds.assign_slices(table, CLASSES, 3, seed=7)
    assert list(found) == ["image_id", "study_id", "patient_id", "fold", *CLASSES]
    assert sorted(found["image_id"]) == sorted(labelled["image_id"])
    sizes = found["fold"].value_counts()
    assert sorted(sizes.index) == [0, 1, 2]
    assert sizes.max() - sizes.min() <= 1
    joined = found[["image_id"]].merge(labelled, on="image_id")[list(found.drop(columns="fold"))]
    pd.testing.assert_frame_equal(found.drop(columns="fold"), joined, check_dtype=False)


# ---- a share of the patients


def drawn(patients: np.ndarray, mask: np.ndarray) -> set[str]:
    """The patients drawn; all rows of a patient are drawn or none."""
    assert not set(patients[mask]) & set(patients[~mask])
    return set(patients[mask].tolist())


@settings(max_examples=100)
@given(
    with_bleeding=st.integers(0, 30),
    without=st.integers(0, 30),
    share=st.floats(0.01, 0.99),
    seed=st.integers(0, 1000),
    data=st.data(),
)
def test_a_share_is_stratified_by_patients_with_and_without_a_bleed(with_bleeding, without, share, seed, data):
    kinds = [with_bleeding, without]
    assume(max(kinds) >= 2)
    random = np.random.default_rng(data.draw(st.integers(0, 1000)))
    names = random.permutation(200)[: sum(kinds)]
    patients = np.array([f"p{name}" for name in np.repeat(names, random.integers(1, 5, sum(kinds)))])
    bleeds = {f"p{name}" for name in names[:with_bleeding]}
    first_rows = ~pd.Series(patients).duplicated().to_numpy()
    positive = np.isin(patients, sorted(bleeds)) & (first_rows | (random.random(len(patients)) < 0.5))
    order = random.permutation(len(patients))
    patients, positive = patients[order], positive[order]

    found = folds.patient_share(patients.tolist(), positive, share, seed)
    assert (found.dtype, found.shape) == (np.bool_, patients.shape)
    chosen = drawn(patients, found)
    assert chosen != set(patients.tolist())
    for part, size in zip((chosen & bleeds, chosen - bleeds), kinds, strict=True):
        assert size < 2 or 1 <= len(part) < size
        if 1 <= share * size <= size - 1:
            assert abs(len(part) - share * size) <= 0.5

    shuffled = random.permutation(len(patients))
    again = folds.patient_share(patients[shuffled].tolist(), positive[shuffled], share, seed)
    np.testing.assert_array_equal(again, found[shuffled])


def test_a_larger_share_includes_the_smaller_and_depends_on_the_seed():
    patients = np.repeat([f"p{i}" for i in range(50)], 3)
    positive = np.arange(150) % 15 == 0
    few, many = (drawn(patients, folds.patient_share(patients.tolist(), positive, s, 3)) for s in (0.1, 0.4))
    assert few < many
    assert len(few) == 5  # of 10 with and 40 without: 1 and 4
    assert drawn(patients, folds.patient_share(patients.tolist(), positive, 0.4, 4)) != many


@pytest.mark.parametrize(("share", "is_drawn"), [(0.1, False), (0.9, True)])
def test_the_only_patient_with_a_bleed_is_drawn_if_most_are(share, is_drawn):
    patients, positive = [f"p{i}" for i in range(10)], np.arange(10) == 3
    assert folds.patient_share(patients, positive, share, 0)[3] == is_drawn


def test_a_share_of_one_selects_everyone_and_too_few_patients_are_rejected():
    patients, positive = ["a", "b", "b"], np.array([True, False, False])
    assert folds.patient_share(patients, positive, 1, 0).all()
    with pytest.raises(ValueError, match="too few"):
        folds.patient_share(patients, positive, 0.5, 0)


def test_every_class_is_balanced_over_the_folds():
    table = competition(7, 1000)
    found = folds.assign(table, CLASSES, 5, seed=7)
    counts = table[CLASSES].groupby(table["study_id"].map(found.set_index("study_id")["fold"])).sum()
    assert (counts / counts.mean() - 1).abs().max().max() < 0.02
