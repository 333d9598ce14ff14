from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from ich.data import checks, dicom, examine, rules
from ich.data.dicom import Geometry, Unreadable
from ich.data.examine import Image
from ich.data.findings import COLUMNS, RULES, findings, layout, summary
from ich.data.slice_table import Quarantined
from plain_slice import HEADER

CLASSES = ["bleed", "any"]


def slices(**columns) -> pd.DataFrame:
    """Four training slices of one sound series and two of a test series, 5 mm apart; `columns` replace the defaults."""
    sound = {
        "image_id": list("abcdef"),
        "patient_id": ["p"] * 4 + ["q"] * 2,
        "study_id": ["s"] * 4 + ["t"] * 2,
        "series_id": ["r"] * 4 + ["u"] * 2,
        "position": [0.0, 5.0, 10.0, 15.0, 0.0, 5.0],
        "index": [0, 1, 2, 3, 0, 1],
        "n_slices": [4] * 4 + [2] * 2,
        "split": ["train"] * 4 + ["test"] * 2,
        "frame": 0,
        "tilt": 0.0,
        "row_spacing": 0.5,
        "column_spacing": 0.5,
        "bleed": [0.0, 1.0, 0.0, 0.0, np.nan, np.nan],
        "any": [0.0, 1.0, 0.0, 1.0, np.nan, np.nan],
        "path": [f"train/{i}.dcm" for i in "abcd"] + [f"test/{i}.dcm" for i in "ef"],
        "instance_uid": list("abcdef"),
        "rows": 512,
        "columns": 512,
        "digest": list("123456"),
        "blank": False,
    }
    return pd.DataFrame(sound | columns)


def of(rule: str, found: pd.DataFrame) -> list[tuple[str, str]]:
    """Names and details of the instances of a rule."""
    assert list(found.columns) == list(COLUMNS)
    assert (found["severity"] == [RULES[r].severity for r in found["rule"]]).all()
    part = found[found["rule"] == rule]
    return list(zip(part["name"], part["detail"], strict=True))


def kinds(found: pd.DataFrame) -> set[str]:
    return set(found["rule"])


# ---- files and labels


def test_extra_files_are_those_in_folders_and_images_at_the_top():
    present = ["train/a.dcm", "train/.DS_Store", "b.dcm", "labels.csv", "all.zip", "notes.txt", "train/scans.zip"]
    found = checks.extra_files(present, ["train/a.dcm", "train/scans.zip!/x.dcm"])
    assert of("extra_file", found) == [("b.dcm", ""), ("train/.DS_Store", "")]


def test_refused_files_and_listed_images_without_file_have_different_rules():
    refused = [
        Quarantined("a", "train", "train/a.dcm", "truncated", "3 of 8 bytes"),
        Quarantined("b", "train", "", "label_without_file", ""),
        Quarantined("c", "test", "", "label_without_file", ""),
        Quarantined("d", "test", "test/d.dcm", "other_series", ""),
    ]
    found = checks.quarantined(refused)
    assert of("quarantined", found) == [("train/a.dcm", "truncated: 3 of 8 bytes")]
    assert of("other_series", found) == [("test/d.dcm", "")]
    assert of("label_without_file", found) == [("b", "")]
    assert of("test_image_without_file", found) == [("c", "")]


def test_slices_without_label_or_not_in_the_sample_submission_are_found():
    table = slices(bleed=[0, 1, np.nan, 0, np.nan, np.nan])
    found = checks.coverage(table, CLASSES, ["e"])
    assert of("file_without_label", found) == [("train/c.dcm", "")]
    assert of("test_file_not_asked_for", found) == [("test/f.dcm", "")]
    assert checks.coverage(slices(), CLASSES, ["e", "f"]).empty


def test_a_split_without_a_readable_slice_is_an_error():
    assert checks.coverage(slices()[:4], CLASSES, [], ["train"]).empty
    assert [n for n, _ in of("nothing_to_read", checks.coverage(slices()[:4], CLASSES, ["e"]))] == ["test"]
    assert [n for n, _ in of("nothing_to_read", checks.coverage(slices()[4:], CLASSES, ["e", "f"]))] == ["train"]


def test_an_unlabelled_study_is_one_finding():
    table = pd.concat([slices(), slices(study_id="v", bleed=np.nan, any=np.nan)[:2]], ignore_index=True)
    found = checks.coverage(table, CLASSES, ["e", "f"])
    assert of("unlabelled_study", found) == [("v", "")]
    assert kinds(found) == {"unlabelled_study"}


# ---- duplicates


def test_two_files_with_one_image_id_are_an_error():
    files = pd.DataFrame({"image_id": ["a", "b", "a"], "path": ["x/a.dcm", "x/b.dcm", "y/a.dcm"]})
    found = checks.duplicates("duplicate_id", files, "image_id")
    assert of("duplicate_id", found) == [("y/a.dcm", "the same as x/a.dcm")]


def test_two_files_with_one_instance_uid_are_found():
    table = slices(instance_uid=["a", "b", "a", "", "", "f"])
    found = checks.duplicate_images(table, CLASSES)
    assert of("duplicate_uid", found) == [("train/c.dcm", "the same as train/a.dcm")]


def test_copies_of_pixels_across_labels_patients_and_splits_are_found():
    table = slices(digest=["1", "2", "2", "4", "4", "6"])
    found = checks.duplicate_images(table, CLASSES)
    assert of("duplicate_pixels", found) == [
        ("train/c.dcm", "the same as train/b.dcm; with other labels"),
        ("test/e.dcm", "the same as train/d.dcm; of another patient; in train and test"),
    ]


def test_blank_images_are_not_copies():
    table = slices(digest=["1", "1", "3", "4", "5", "6"], blank=[True, True, False, False, False, False])
    found = checks.duplicate_images(table, CLASSES)
    assert kinds(found) == {"blank_image"}
    assert [n for n, _ in of("blank_image", found)] == ["train/a.dcm", "train/b.dcm"]


# ---- patients and classes


def test_patients_in_both_splits_and_studies_of_two_patients_are_found():
    found = checks.patients(slices(patient_id=["p", "p", "x", "p", "q", "q"]), excluded=False)
    assert of("study_of_two_patients", found) == [("s", "p, x")]
    table = slices(patient_id=["p"] * 6, study_id=["s", "s", "s2", "s2", "t", "t"])
    found = checks.patients(table, excluded=False)
    assert of("patient_in_train_and_test", found) == [("p", "2 training studies, 1 test studies")]
    assert kinds(checks.patients(table, excluded=True)) == {"overlap_left_out"}
    assert checks.patients(slices(), excluded=False).empty


def test_prevalence_and_classes_without_positives_or_negatives():
    found = checks.prevalence(slices(), CLASSES)
    assert of("prevalence", found) == [
        ("bleed", "1 of 4 slices (25.00%), 1 of 1 studies"),
        ("any", "2 of 4 slices (50.00%), 1 of 1 studies"),
    ]
    one_sided = slices(bleed=[0, 0, 0, 0, 1, 1], any=[1, 1, 1, 1, np.nan, np.nan])  # test labels are ignored
    found = checks.prevalence(one_sided, CLASSES)
    assert of("class_without_positives", found) == [("bleed", "")]
    assert of("class_without_negatives", found) == [("any", "")]


def fold_table(**columns) -> pd.DataFrame:
    return pd.DataFrame(
        {"study_id": ["s", "v"], "patient_id": ["p", "w"], "fold": ["0", "1"], "bleed": ["1", "0"], "any": ["1", "1"]}
        | columns
    )


def two_studies() -> pd.DataFrame:
    more = slices(study_id="v", patient_id="w", series_id="x", image_id=list("ghijkl"))[:4]
    more = more.assign(bleed=[0.0, 0.0, 0.0, 0.0], any=[1.0, 0.0, 0.0, 0.0])
    return pd.concat([slices(), more], ignore_index=True)


def test_a_fold_without_positives_of_a_class_is_found():
    ids = [f"s{k}" for k in range(4)]
    table = pd.concat([slices(study_id=i, patient_id=i, image_id=i, series_id=i)[:1] for i in ids], ignore_index=True)
    table = table.assign(bleed=[1.0, 1.0, 0.0, 0.0], any=[1.0, 1.0, 1.0, 1.0])
    assigned = pd.DataFrame(
        {"study_id": ids, "patient_id": ids, "fold": ["0", "0", "1", "1"], "bleed": list("1100"), "any": list("1111")}
    )
    found = checks.folds(assigned, table, CLASSES, 2, "f.csv")
    assert of("fold_without_class", found) == [("bleed", "fold 1 has no positive study")]


def test_a_fold_table_of_other_slices_is_an_error():
    found = checks.folds(fold_table(study_id=["s", "z"]), two_studies(), CLASSES, 2, "f.csv")
    assert of("folds", found) == [
        ("f.csv", "study_id z: study_id is z; expected a labelled study of the slice table"),
        ("f.csv", "study_id: 1 labelled have no fold, v first"),
    ]


# ---- columns and values that do not belong


def test_unknown_and_missing_columns_are_errors():
    found = checks.folds(fold_table().rename(columns={"bleed": "bled"}), two_studies(), CLASSES, 2, "f.csv")
    assert found["row"].tolist() == [1, 1]
    assert found["detail"].tolist() == [
        "bled: a column that does not belong; expected study_id, patient_id, fold, bleed, any",
        "bleed: this column is missing",
    ]


def test_wrong_values_of_a_table_in_memory_have_no_row():
    found = checks.misfits(slices(), rules.slice_values(slices(tilt=[0, 0, 91, 0, 92, 0]), CLASSES), "slices")
    assert found[["rule", "name", "row"]].to_numpy().tolist() == [
        ["value_out_of_place", "slices: c", ""],
        ["value_out_of_place", "slices: e", ""],
    ]


# ---- studies and series


def test_an_intact_study_has_no_finding_but_its_length():
    assert checks.positions(slices()).empty
    assert checks.mixtures(slices()).empty
    found = checks.lengths(slices())
    assert of("study_lengths", found) == [
        ("all studies", "2 studies of 2 to 4 slices, median 3; shortest t, longest s")
    ]
    assert kinds(found) == {"study_lengths"}
    assert of("single_slice", checks.lengths(slices()[:5])) == [("t", "")]


def test_gaps_of_two_medians_are_warnings_and_smaller_differences_notes():
    gap = checks.positions(slices(position=[0, 5, 15, 20, 0, 5]))
    assert of("gap", gap) == [("s/r", "5.0 to 10.0 mm, median 5.0")]
    assert kinds(gap) == {"gap"}
    uneven = checks.positions(slices(position=[0, 5, 12, 17, 0, 5]))
    assert of("irregular_spacing", uneven) == [("s/r", "5.0 to 7.0 mm, median 5.0")]
    assert kinds(uneven) == {"irregular_spacing"}
    assert checks.positions(slices(position=[0, 5, 10.4, 15.4, 900, 905])).empty  # within a tenth, and in each series


def test_slices_at_one_position_are_found_and_ignored_as_gaps():
    found = checks.positions(slices(position=[0, 5, 5.0004, 10, 0, 5]))
    assert of("duplicate_position", found) == [("train/c.dcm", "same position as b")]
    assert kinds(found) == {"duplicate_position"}


def test_a_series_without_all_positions_is_found_and_its_gaps_are_ignored():
    found = checks.positions(slices(position=[0, 5, np.nan, 50, 0, 5]))
    assert of("no_position", found) == [("s/r", "")]
    assert kinds(found) == {"no_position"}


def test_tilted_series_mixed_tilts_and_other_planes_are_found():
    assert of("tilted", checks.positions(slices(tilt=[12.0] * 4 + [0.0] * 2))) == [("s/r", "12.0 to 12.0 degrees")]
    mixed = checks.positions(slices(tilt=[12.0, 12.0, 12.0, 14.0, 0.0, 0.0]))
    assert of("mixed_tilt", mixed) == [("s/r", "12.0 to 14.0 degrees")]
    across = checks.positions(slices(tilt=[90.0] * 4 + [0.0] * 2))
    assert of("not_axial", across) == [("s/r", "90.0 to 90.0 degrees")]
    assert len(mixed) == len(across) == 1


def test_several_series_or_sizes_in_a_study_are_found():
    found = checks.mixtures(slices(series_id=["r", "r", "r2", "r2", "u", "u"]))
    assert found[["rule", "name", "detail"]].to_numpy().tolist() == [["mixed_series", "s", "2 series"]]
    found = checks.mixtures(slices(rows=[512, 512, 512, 256, 512, 512]))
    assert found[["rule", "name", "detail"]].to_numpy().tolist() == [["mixed_sizes", "s", "256 x 512, 512 x 512"]]


# ---- the files


def written(tmp_path, pixels: dict[str, np.ndarray]) -> list[str]:
    for name, stored in pixels.items():
        dicom.write(tmp_path / name, stored.astype(np.int16), replace(HEADER, image_id=name[0]))
    return list(pixels)


@pytest.mark.parametrize("jobs", [1, 2])
def test_examine_reads_header_and_pixels_of_each_file_in_order(tmp_path, jobs):
    ramp = np.arange(12).reshape(3, 4)
    names = written(tmp_path, {"a": ramp, "b": ramp + 1, "c": ramp, "d": ramp.reshape(4, 3), "e": ramp * 0 + 5})
    (tmp_path / "f").write_text("no")
    (tmp_path / "g").write_bytes((tmp_path / "a").read_bytes()[:-4])  # truncated pixels
    done: list[int] = []
    examined = examine.examine(tmp_path, [*names, "f", "g"], jobs, done.append)
    assert sum(done) == 7
    headers = [header for header, _ in examined]
    assert [h.reason.name if isinstance(h, Unreadable) else h.instance_uid for h in headers] == [
        *"abcde",
        "NOT_DICOM",
        "TRUNCATED",
    ]
    first = headers[0]
    assert isinstance(first, Geometry)
    assert (first.rows, first.columns) == (3, 4)
    assert [len(shown) for _, shown in examined] == [1, 1, 1, 1, 1, 0, 0]
    kept = [shown[0] for _, shown in examined[:5] if isinstance(shown[0], Image)]
    assert [p.blank for p in kept] == [False, False, False, False, True]
    assert len({p.digest for p in kept}) == 4  # a and c are equal; d has the bytes of a in another shape
    assert kept[0] == kept[2]


def test_a_copy_in_another_encoding_has_the_same_digest(tmp_path):
    stored = np.arange(12, dtype=np.int16).reshape(3, 4)
    dicom.write(tmp_path / "a", stored, HEADER)
    dicom.write(tmp_path / "b", (stored + 1024).astype(np.uint16), replace(HEADER, signed=False, intercept=-1024.0))
    (_, first), (_, second) = examine.examine(tmp_path, ["a", "b"], 1, lambda _: None)
    assert first == second


def test_images_are_joined_to_slices_and_unreadable_slices_removed():
    header = Geometry("p", "s", "r", 0.0, 1, 0.0, 0.5, 0.5, instance_uid="u", rows=3, columns=4)
    frames = replace(header, further=(replace(header, frame=1), replace(header, frame=2)))
    bad = Unreadable(dicom.Reason.NOT_DECODED, "cut")
    examined = [(header, [Image("1", False)]), (bad, []), (frames, [Image("2", False), bad, Image("3", True)])]
    paths = ["m.dcm", "m.dcm", "m.dcm", "a.dcm"]
    table = pd.DataFrame(
        {"image_id": ["m#2", "m#0", "m#1", "a"], "split": "train", "path": paths, "frame": [2, 0, 1, 0]}
    )
    joined, refused = examine.with_images(table, ["a.dcm", "b.dcm", "m.dcm"], examined)
    assert joined[["image_id", "path", "instance_uid", "digest", "blank", "rows", "columns"]].to_numpy().tolist() == [
        ["m#2", "m.dcm#2", "u#2", "3", True, 3, 4],
        ["m#0", "m.dcm#0", "u#0", "2", False, 3, 4],
        ["a", "a.dcm", "u", "1", False, 3, 4],
    ]
    assert refused == [Quarantined("m#1", "train", "m.dcm", "not_decoded", "cut")]


# ---- the printed table


def test_a_layout_error_is_a_finding_with_file_and_row():
    found = layout("/in/train.csv: row 21: '2'; expected Label 0 or 1")
    assert found[["severity", "rule", "name", "row", "detail"]].to_numpy().tolist() == [
        ["error", "layout", "/in/train.csv", "21", "row 21: '2'; expected Label 0 or 1"]
    ]


def test_the_summary_has_errors_first_and_few_names_per_rule():
    found = pd.concat([findings("extra_file", list("vwxyz")), findings("duplicate_id", ["a"])], ignore_index=True)
    assert summary(found) == [
        ["duplicate id", "error", "1", "a", RULES["duplicate_id"].advice],
        ["extra file", "warning", "5", "v, w, x, ...", RULES["extra_file"].advice],
    ]


def test_the_summary_shortens_long_names():
    (row,) = summary(findings("single_slice", ["1." * 1000]))
    assert len(row[3]) <= 64
    assert row[3].startswith("1.1.")


def test_rules_are_ordered_by_severity_and_errors_and_warnings_have_advice():
    order = [rule.severity for rule in RULES.values()]
    assert order == sorted(order, key=["error", "warning", "info"].index)
    assert all(rule.advice for rule in RULES.values() if rule.severity != "info")
