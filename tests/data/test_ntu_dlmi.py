import pandas as pd
import pytest

from ich.data.competitions import ntu_dlmi
from ich.data.competitions.layout import SUBTYPES, LayoutError


def rows(labels: dict[str, str]) -> list[str]:
    return [f"{n},{k},{v}" for n, digits in labels.items() for k, v in zip(SUBTYPES, digits, strict=True)]


@pytest.fixture
def root(tmp_path):
    for path in ("train1/a.dcm", "train1/p/q/b.dcm", "train2/c.dcm", "test/x/d.dcm"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    write(tmp_path, rows({"b": "10001", "a": "00000"}))
    (tmp_path / "sample_submission.csv").write_text("\n".join(["id,label", *(f"d_{k},0" for k in SUBTYPES)]) + "\n")
    return tmp_path


def write(root, lines):
    (root / "train.csv").write_text("\n".join(lines) + "\n")


def test_files_at_any_depth_labels_and_test_ids_are_read(root):
    raw = ntu_dlmi.raw(root)
    assert raw.files.values.tolist() == [
        ["a", "train", "train1/a.dcm"],
        ["b", "train", "train1/p/q/b.dcm"],
        ["c", "train", "train2/c.dcm"],
        ["d", "test", "test/x/d.dcm"],
    ]
    assert raw.labels.set_index("image_id").loc["b"].tolist() == [1, 0, 0, 0, 1]
    assert raw.test_ids == ["d"]
    assert raw.classes == dict.fromkeys(SUBTYPES, 1.0)


@pytest.mark.parametrize("shape", ["header", "index", "header and index", "names with folder and .dcm", "blank end"])
def test_header_index_column_and_file_names_are_optional(root, shape):
    before, lines = ntu_dlmi.raw(root).labels, rows({"b": "10001", "a": "00000"})
    if shape == "names with folder and .dcm":
        lines = [f"train1/{line.replace(',', '.dcm,', 1)}" for line in lines]
    if "index" in shape:
        lines = [f"{k},{line}" for k, line in enumerate(lines)]
    if "header" in shape:
        lines = [(",dicom,subtype,label" if "index" in shape else "dicom,subtype,label"), *lines]
    write(root, [*lines, "", ""] if shape == "blank end" else lines)
    pd.testing.assert_frame_equal(ntu_dlmi.raw(root).labels, before)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("e,subdral,0", r"row 11: 'subdral'; expected in the second column one of .* \(did you mean subdural\?\)"),
        ("e,subdural,2", r"row 11: '2'; expected in the third column 0 or 1"),
        ("e,subdural,", r"row 11: ''"),
        ("e,subdu", "row 11: 'subdu'"),
        ("e,subdural", r"row 11: ''; expected in the third column"),
        ("e,subdural,1", r"image e has no row for epidural; expected 5 rows per image .* cut-off"),
        ("b,subdural,0", r"the same ID with Label 0 and 1: b_subdural \(rows 5, 11\)"),
    ],
)
def test_a_bad_row_is_an_error_with_its_number(root, line, message):
    write(root, [*rows({"b": "10001", "a": "00000"}), line])
    with pytest.raises(LayoutError, match=message) as error:
        ntu_dlmi.raw(root)
    assert "train.csv" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["train.csv", "sample_submission.csv", "train1", "test"])
def test_a_missing_file_or_folder_is_an_error(root, name):
    (root / name).rename(root / "elsewhere")
    with pytest.raises(LayoutError, match=name):
        ntu_dlmi.raw(root)


def test_the_unlabelled_folder_is_optional_but_not_empty(root):
    (root / "train2/c.dcm").rename(root / "train2/c.txt")
    with pytest.raises(LayoutError, match=r"train2: no \.dcm file at any depth"):
        ntu_dlmi.raw(root)
    (root / "train2").rename(root / "elsewhere")
    assert "c" not in set(ntu_dlmi.raw(root).files["image_id"])


def test_the_same_name_in_two_folders_is_refused_with_both(root):
    (root / "train2/a.dcm").touch()
    with pytest.raises(LayoutError, match=r"image a is in two places \(train1/a\.dcm, train2/a\.dcm\)"):
        ntu_dlmi.raw(root)


def test_files_without_label_are_counted(root):
    (root / "train1/e.dcm").touch()
    assert ntu_dlmi.raw(root).notes == ("train1: 1 files have no label in train.csv; they count as unlabelled",)


def test_a_submission_has_the_rows_of_the_sample(root):
    values = pd.DataFrame({"image_id": ["d"]} | {name: [k] for k, name in enumerate(SUBTYPES)})
    (root / "sample_submission.csv").write_text("id,label\n" + "".join(f"d_{k},0\n" for k in reversed(SUBTYPES)))
    table = ntu_dlmi.submission(root, values)
    assert table.columns.tolist() == ["id", "label"]
    assert table["label"].tolist() == [4, 3, 2, 1, 0]


def test_repeated_rows_of_the_solution_are_dropped_and_contradicting_ones_refused(root):
    lines = ["id,label", *(f"d_{name},1" for name in SUBTYPES), "d_subdural,1"]
    (root / "solution.csv").write_text("\n".join(lines))
    assert ntu_dlmi.solution(root)[list(SUBTYPES)].to_numpy().tolist() == [[1] * 5]
    (root / "solution.csv").write_text("\n".join([*lines, "d_subdural,0"]))
    with pytest.raises(LayoutError, match=r"solution\.csv: the same ID with Label 0 and 1: d_subdural \(rows 6, 8\)"):
        ntu_dlmi.solution(root)
