import cv2
import numpy as np
import pandas as pd
import pytest

from ich.data import images
from ich.data.competitions import unibuc
from ich.data.competitions.layout import LayoutError
from ich.data.dicom import Reason, Unreadable


@pytest.fixture
def root(tmp_path):
    (tmp_path / "data").mkdir()
    for name in ("000001", "000002", "000003", "000009"):
        (tmp_path / f"data/{name}.png").touch()
    (tmp_path / "train_labels.txt").write_text("id,class\n000001,1\n")
    (tmp_path / "validation_labels.txt").write_text("id,class\n000002,0\n")
    (tmp_path / "sample_submission.txt").write_text("id,class\n000003,0\n")
    return tmp_path


def test_both_label_tables_are_training_labels_and_ids_keep_zeros(root):
    raw = unibuc.raw(root)
    assert raw.files.values.tolist() == [
        ["000001", "train", "data/000001.png"],
        ["000002", "train", "data/000002.png"],
        ["000003", "test", "data/000003.png"],
    ]
    assert raw.labels.values.tolist() == [["000001", 1], ["000002", 0]]
    assert (raw.test_ids, raw.values) == (["000003"], "grey")
    assert "1 images are in no table and ignored" in raw.notes


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("train_labels.txt", "id,class\n000001,2\n", r"train_labels\.txt: row 2: '2'"),
        ("train_labels.txt", "id,class\n000001,1\n0000", r"train_labels\.txt: row 3: ''"),
        ("train_labels.txt", "id;class\n", r"train_labels\.txt: "),
        ("train_labels.txt", "id,klass\n000001,1\n", "no column 'class'; it has 'id', 'klass'"),
        ("train_labels.txt", "id,class\n000001,1\n000001,0\n", r"000001 \(rows 2, 3\)"),
        ("validation_labels.txt", "id,class\n000001,1\n", r"image 000001 is in train_labels\.txt too"),
        ("sample_submission.txt", "id,class\n000001,0\n", "image 000001 is in the label tables too"),
        ("sample_submission.txt", "id,class\n000003,0\n000003,0\n", "expected each id once"),
    ],
)
def test_a_fault_in_a_table_is_one_line(root, file, text, message):
    (root / file).write_text(text)
    with pytest.raises(LayoutError, match=message) as error:
        unibuc.raw(root)
    assert "\n" not in str(error.value)


def test_a_submission_is_id_and_class(root):
    values = pd.DataFrame({"image_id": ["000003"], unibuc.CLASS: [1]})
    assert unibuc.submission(root, values).to_csv(index=False) == "id,class\n000003,1\n"


GREY = np.array([[0, 10], [200, 255]], dtype=np.uint8)


@pytest.mark.parametrize("kind", ["grey", "rgb", "rgba", "grey16", "rgb16"])
def test_grey_values_do_not_depend_on_channels_and_bits(tmp_path, kind):
    image = GREY.astype(np.uint16) * 257 if kind.endswith("16") else GREY
    if kind.startswith("rgb"):
        image = cv2.merge([image] * (4 if kind == "rgba" else 3))
    if kind == "rgba":
        image[..., 3] = [[255, 255], [255, 0]]
    cv2.imwrite(str(tmp_path / "a.png"), image)
    expected = GREY.astype(int).tolist()
    if kind == "rgba":
        expected[1][1] = 0  # transparent is black
    found = images.grey(tmp_path / "a.png")
    assert found.dtype == np.int16
    assert found.tolist() == expected
    header = images.geometry(tmp_path / "a.png")
    assert (header.patient_id, header.study_id, header.rows, header.columns) == ("a", "a", 2, 2)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda data: b"", Reason.NOT_IMAGE),
        (lambda data: b"text" * 20, Reason.NOT_IMAGE),
        (lambda data: data[:-20], Reason.TRUNCATED),
        (lambda data: data[:16] + b"\x7f\xff\xff\xff" + data[20:], Reason.BAD_SIZE),
        (lambda data: data[:24] + b"\x07" + data[25:], Reason.BAD_SIZE),
    ],
)
def test_a_damaged_image_is_refused_with_a_reason(tmp_path, change, reason):
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), np.arange(1600, dtype=np.uint8).reshape(40, 40))
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(Unreadable) as error:
        images.grey(path)
    assert error.value.reason is reason
