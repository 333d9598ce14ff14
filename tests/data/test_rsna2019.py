import pandas as pd
import pytest

from ich.data.competitions import rsna2019
from ich.data.competitions.layout import LayoutError

CLASSES = rsna2019.CLASSES


def long(labels: dict[str, str]) -> list[str]:
    """image -> six digits as ID,Label rows."""
    return [
        f"{image}_{name},{digit}"
        for image, digits in labels.items()
        for name, digit in zip(CLASSES, digits, strict=True)
    ]


@pytest.fixture
def root(tmp_path):
    for folder, images in (("stage_2_train", ("ID_a", "ID_b")), ("stage_2_test", ("ID_c",))):
        (tmp_path / folder).mkdir()
        for image in images:
            (tmp_path / folder / f"{image}.dcm").touch()
    write(tmp_path / "stage_2_train.csv", long({"ID_b": "100001", "ID_a": "000000"}))
    write(tmp_path / "stage_2_sample_submission.csv", [row + ".5" for row in long({"ID_c": "000000"})])
    return tmp_path


def write(path, rows, header="ID,Label"):
    path.write_text("\n".join([header, *rows]) + "\n")


def test_labels_files_and_test_ids_are_read(root):
    raw = rsna2019.raw(root)
    assert raw.labels["image_id"].tolist() == ["ID_a", "ID_b"]
    assert raw.labels.loc[1, list(CLASSES)].tolist() == [1, 0, 0, 0, 0, 1]
    assert raw.files.values.tolist() == [
        ["ID_a", "train", "stage_2_train/ID_a.dcm"],
        ["ID_b", "train", "stage_2_train/ID_b.dcm"],
        ["ID_c", "test", "stage_2_test/ID_c.dcm"],
    ]
    assert raw.test_ids == ["ID_c"]
    assert raw.notes == ()


def test_repeated_equal_rows_are_dropped_and_counted(root):
    rows = long({"ID_b": "100001", "ID_a": "000000"})
    write(root / "stage_2_train.csv", rows + rows[:6])
    raw = rsna2019.raw(root)
    assert len(raw.labels) == 2
    assert raw.notes == ("stage_2_train.csv: 6 repeated rows dropped",)


def test_contradicting_rows_are_an_error(root):
    write(root / "stage_2_train.csv", [*long({"ID_b": "100001"}), "ID_b_subdural,1"])
    with pytest.raises(LayoutError, match="the same ID with Label 0 and 1: ID_b_subdural"):
        rsna2019.raw(root)


def test_an_index_column_and_the_order_of_rows_do_not_matter(root):
    before = rsna2019.raw(root).labels
    rows = [f"{i},{row}" for i, row in enumerate(reversed(long({"ID_b": "100001", "ID_a": "000000"})))]
    write(root / "stage_2_train.csv", rows, header="index,ID,Label")
    pd.testing.assert_frame_equal(rsna2019.raw(root).labels, before)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["ID_b_subdral,1"], r"stage_2_train.csv: row 2: 'ID_b_subdral'; .*did you mean subdural"),
        (["ID_b_any,2"], r"row 2: '2'; expected Label 0 or 1"),
        (["ID_b_any,"], r"row 2: ''; expected Label 0 or 1"),
        (["ID_b_any,1"], "image ID_b has no row for epidural"),
        (["nounderscore,1"], "row 2: 'nounderscore'"),
    ],
)
def test_a_bad_row_is_an_error_with_its_number(root, rows, message):
    write(root / "stage_2_train.csv", rows)
    with pytest.raises(LayoutError, match=message):
        rsna2019.raw(root)


@pytest.mark.parametrize(
    "name", ["stage_2_train.csv", "stage_2_sample_submission.csv", "stage_2_train", "stage_2_test"]
)
def test_a_missing_file_or_folder_is_an_error(root, name):
    (root / name).rename(root / "elsewhere")
    with pytest.raises(LayoutError, match=name):
        rsna2019.raw(root)


def test_an_empty_folder_and_an_empty_table_are_refused(root):
    (root / "stage_2_test/ID_c.dcm").unlink()
    with pytest.raises(LayoutError, match=r"stage_2_test: no \.dcm file in it"):
        rsna2019.raw(root)
    (root / "stage_2_train.csv").write_text("")
    with pytest.raises(LayoutError, match="not a whole CSV file"):
        rsna2019.raw(root)


def test_stage_1_is_read_where_stage_2_is_missing(root):
    for path in list(root.iterdir()):
        path.rename(root / path.name.replace("stage_2", "stage_1"))
    assert len(rsna2019.raw(root).files) == 3


def test_a_submission_has_the_rows_of_the_sample(root):
    rows = list(reversed(long({"ID_c": "000000", "ID_d": "000000"})))
    write(root / "stage_2_sample_submission.csv", rows)
    values = pd.DataFrame({"image_id": ["ID_c", "ID_d"]} | {name: [i, i + 10.0] for i, name in enumerate(CLASSES)})
    table = rsna2019.submission(root, values)
    assert table["ID"].tolist() == [row.split(",")[0] for row in rows]
    assert table["Label"].tolist() == [15, 14, 13, 12, 11, 10, 5, 4, 3, 2, 1, 0]


def test_the_solution_is_read_if_published(root):
    assert rsna2019.solution(root) is None
    write(root / "solution.csv", long({"ID_c": "010001"}))
    solution = rsna2019.solution(root)
    assert solution is not None
    assert solution[["intraparenchymal", "any"]].values.tolist() == [[1, 1]]
