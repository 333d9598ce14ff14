import stat
import zipfile
from dataclasses import replace

import numpy as np
import pytest

from ich.data import dicom, files, slice_table
from ich.data.competitions import folder
from ich.data.competitions.layout import LayoutError
from ich.data.dicom import Unreadable
from plain_slice import HEADER


@pytest.fixture
def root(tmp_path):
    for path in ("a/1.dcm", "a/2.dcm", "b/1.dcm", "c/1.2.840.7", "notes.txt", "c/.hidden", "c/DICOMDIR"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).touch()
    labels(tmp_path, "image_id,any,subdural", "a/1,1,0", "2,0,0", "b/1.dcm,1,1")
    return tmp_path


def labels(root, *lines):
    (root / "labels.csv").write_text("\n".join(lines) + "\n")


def test_ids_are_names_with_folders_where_two_files_share_one(root):
    raw = folder.raw(root)
    assert raw.files["image_id"].tolist() == ["a/1", "2", "b/1", "1.2.840.7"]
    assert raw.labels.values.tolist() == [["2", 0, 0], ["a/1", 1, 0], ["b/1", 1, 1]]
    assert (raw.level, raw.test_ids, raw.template) == ("slice", [], "")
    assert raw.notes == ("1 files have no row in labels.csv; they count as unlabelled",)


def test_a_split_column_and_a_test_folder_make_the_test_set(root):
    labels(root, "image_id,any,split", "a/1,1,train", "2,0,test", "b/1,1,train")
    assert folder.raw(root).test_ids == ["2"]
    (root / "b").rename(root / "test")
    labels(root, "image_id,any", "a/1,1", "2,0")
    raw = folder.raw(root)
    assert raw.test_ids == ["test/1"]
    assert len(raw.labels) == 2


def test_labels_of_studies_are_noted_as_weak(root):
    labels(root, "study_id,any,split", "1.2,1,train", "1.3,0,test")
    raw = folder.raw(root)
    assert (raw.level, raw.test_studies) == ("study", frozenset({"1.3"}))
    assert raw.labels["study_id"].tolist() == ["1.2"]
    assert any("weak labels" in note for note in raw.notes)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["image_id,any", "a/1,2"], r"labels\.csv: row 2: '2'; expected in column 'any'"),
        (["image_id,any", "a/1,1", "2,0", "b/1,yes"], r"row 4: 'yes'; expected in column 'any' 0, 1 or nothing"),
        (["image_id,any", "a/1,1", "a/1,1"], r"row 2: 'a/1', row 3: 'a/1'; expected each image_id once$"),
        (["image_id,any", "1,a/1,1", "2,2,0"], r"csv: row 2 has 3 cells, the header 2; remove the surplus"),
        (["name,any", "a/1,1"], "no column image_id or study_id; it has 'name', 'any'"),
        (["image_id", "a/1"], "add one column per class"),
        (["image_id,../x", "a/1,1"], r"'\.\./x' cannot be a class"),
        (["image_id,position", "a/1,1"], "'position' cannot be a class"),
        (["image_id,any,split", "a/1,1,valid"], "expected split train or test"),
        (["image_id,any", "z,1"], r"none of its 1 images has a file; .* 'z', .* 'a/1' \(a/1\.dcm\)"),
        (["image_id,any"], "it has no rows"),
        (["StudyInstanceUID,study_id,any", "1,1,1"], "columns 'StudyInstanceUID', 'study_id' are the same; remove one"),
    ],
)
def test_a_fault_in_the_labels_is_one_line(root, lines, message):
    labels(root, *lines)
    with pytest.raises(LayoutError, match=message) as error:
        folder.raw(root)
    assert "\n" not in str(error.value)


def test_missing_scans_are_an_error(tmp_path):
    labels(tmp_path, "image_id,any", "a,1")
    with pytest.raises(LayoutError, match="no DICOM file at any depth"):
        folder.raw(tmp_path)


def test_scans_without_labels_have_no_classes(root):
    (root / "labels.csv").unlink()
    raw = folder.raw(root)
    assert (len(raw.files), dict(raw.classes), len(raw.labels)) == (4, {}, 0)
    assert "labels.csv: no such file; write one row per image or study" in raw.no_labels
    (root / "labels.xlsx").write_bytes(b"PK\3\4")
    assert "labels.xlsx: this is an Excel file; save it as labels.csv" in folder.raw(root).no_labels


@pytest.mark.parametrize("start", [b"PK\3\4\x14\0", b"\xd0\xcf\x11\xe0\xa1\xb1"])
def test_an_excel_file_is_recognised(root, start):
    (root / "labels.csv").write_bytes(start + bytes(600))
    with pytest.raises(LayoutError, match=r"labels\.csv: this is an Excel file; save it as CSV"):
        folder.raw(root)


ROWS = [("image_id", "any", "subdural"), ("a/1", "1", "0"), ("2", "0", ""), ("b/1", "", "1")]
FORMS = {
    "comma": (",", "utf-8", {}),
    "semicolon": (";", "utf-8-sig", {}),
    "tab": ("\t", "utf-16", {}),
    "big-endian": (";", "utf-16-be", {"image_id": "\ufeffimage_id"}),
    "decimal comma": (";", "cp1252", {"1": "1,0", "0": "0,00"}),
    "quoted decimal comma": (",", "utf-8", {"1": '"1,0"', "0": '"0,0"'}),
    "decimal point": (",", "utf-8", {"1": "1.0", "0": " 0.0 "}),
    "words": (",", "utf-8", {"1": "True", "0": "FALSE", "": "NaN"}),
    "R": (",", "utf-8", {"1": "TRUE", "": "NA", "a/1": '"a/1"'}),
    "Windows": (";", "utf-8", {"b/1": "b/1.dcm"}),
}


@pytest.mark.parametrize("form", FORMS)
def test_labels_are_read_as_people_write_them(root, form):
    separator, encoding, words = FORMS[form]
    end = "\r\n" if form == "Windows" else "\n"
    lines = [separator.join(words.get(cell, cell) for cell in row) for row in ROWS]
    (root / "labels.csv").write_bytes((end.join(lines) + end).encode(encoding))
    raw = folder.raw(root)
    assert list(raw.classes) == ["any", "subdural"]
    found = raw.labels.set_index("image_id")
    np.testing.assert_array_equal(found.loc[["a/1", "2", "b/1"]], [[1, 0], [0, np.nan], [np.nan, 1]])
    assert found.dtypes.tolist() == ["float32"] * 2
    assert folder.solution(root).values.tolist() == [["a/1", 1, 0]], "of complete labels"


def test_separators_at_the_end_of_rows_are_ignored(root, recwarn):
    labels(root, "image_id,any", "a/1,1,", "2,0,")
    assert folder.raw(root).labels["any"].tolist() == [0, 1]
    assert not recwarn.list


def test_other_columns_are_listed_and_ignored(root):
    header = ";image_id;StudyInstanceUID;Größe in cm;any;age;comment;empty;reads"
    rows = ["0;a/1;1.2;170;1;61;links;;1", "1;2;1.2;171;0;1;;;0", "2;b/1;1.3;;1;70;1;;0"]
    (root / "labels.csv").write_bytes("\r\n".join([header, *rows]).encode("cp1252"))
    raw = folder.raw(root)
    assert list(raw.classes) == ["any", "reads"]
    assert "labels.csv: ignored columns: study_id, Größe in cm, age, comment, empty" in raw.notes


def scan(path, image, study, patient):
    header = replace(HEADER, image_id=image, study_id=study, series_id=study, patient_id=patient)
    path.parent.mkdir(exist_ok=True)
    dicom.write(path, np.zeros((4, 4), np.int16), header)


def table_of(root):
    raw = folder.raw(root)
    geometries = slice_table.read_geometries(root, raw.files["path"].tolist(), 1, lambda _: None)
    return slice_table.slice_table(raw, geometries)[0].set_index("image_id")


def test_labels_by_the_uids_of_dicom(tmp_path):
    for name, image in {"a/1": "1.2.1", "a/2": "1.2.2", "b/1": "1.2.3", "b/2": "1.2.3"}.items():
        scan(tmp_path / f"{name}.dcm", image, "1.2", "p")
    labels(tmp_path, "SOPInstanceUID,StudyInstanceUID,any", "1.2.1,1.2,1", "1.2.3,1.2,0", "1.2.9,1.2,1")
    assert table_of(tmp_path)["any"].dropna().to_dict() == {"a/1": 1, "b/1": 0, "b/2": 0}
    raw = folder.raw(tmp_path)
    assert raw.labels["image_id"].tolist() == ["1.2.9", "a/1", "b/1", "b/2"]
    labels(tmp_path, "SOPInstanceUID,any", "1.2.8,1", "1.2.9,1")
    with pytest.raises(LayoutError, match=r"none of its 2 .* is '1\.2\.8', but that of a/1\.dcm is '1\.2\.1'"):
        folder.raw(tmp_path)
    labels(tmp_path, "studyinstanceuid,any", "1.2,1")
    assert (table_of(tmp_path)["any"] == 1).all()


def test_the_patient_is_that_of_the_labels_then_of_the_header_then_the_study(tmp_path):
    for name, study, patient in [
        ("1", "1.1", ""),
        ("2", "1.1", ""),
        ("3", "1.2", "ANON"),
        ("4", "1.2", ""),
        ("5", "1.3", "ANON"),
        ("6", "1.3", "ANON"),
    ]:
        scan(tmp_path / f"{name}.dcm", name, study, patient)
    labels(tmp_path, "image_id,any", "1,1")
    assert table_of(tmp_path)["patient_id"].to_dict() == {
        "1": "1.1",
        "2": "1.1",
        "3": "ANON",
        "4": "ANON",
        "5": "ANON",
        "6": "ANON",
    }
    labels(tmp_path, "image_id,any,PatientID", "1,1,", "4,1,x", "5,1, y ")
    assert table_of(tmp_path)["patient_id"].tolist() == ["1.1", "1.1", "x", "x", "y", "y"]
    labels(tmp_path, "study_id,patient_id,any", "1.1,x,1", "1.3,x,0")
    assert table_of(tmp_path)["patient_id"].tolist() == ["x", "x", "ANON", "ANON", "x", "x"]


@pytest.fixture
def archive(tmp_path):
    path = tmp_path / "scans.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("./a//1.dcm", b"one")
        for name in ("../up.dcm", "/absolute.dcm", "C:\\drive.dcm", "a/../../up.dcm"):
            made.writestr(name, b"out")
        link = zipfile.ZipInfo("link.dcm")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        made.writestr(link, "/etc/passwd")
        made.writestr("bomb.dcm", bytes(20_000_000))
    return path


def test_members_outside_of_the_archive_links_and_bombs_are_refused(archive):
    kept, refused = files.members(archive)
    assert kept == ["a/1.dcm"]
    assert len(refused) == 6
    assert sum("leads out" in why for why in refused.values()) == 4


def test_a_member_is_read_from_a_temporary_copy(archive):
    with files.located(archive.parent / "scans.zip!/a/1.dcm") as copy:
        assert copy.read_bytes() == b"one"
    assert not copy.exists()
    for name in ("link.dcm", "bomb.dcm", "none.dcm", "../up.dcm"):
        with pytest.raises(Unreadable), files.located(archive.parent / f"scans.zip!/{name}"):
            pass


def test_a_nul_in_the_name_of_a_member_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as made:
        made.writestr("axb.dcm", b"one")
    data = (tmp_path / "a.zip").read_bytes().replace(b"axb.dcm", b"a\0b.dcm")
    (tmp_path / "a.zip").write_bytes(data)
    assert files.members(tmp_path / "a.zip")[0] == []


def test_a_damaged_archive_and_a_damaged_member_are_one_line(root, tmp_path):
    (root / "scans.zip").write_bytes(b"PK\x03\x04 nothing")
    (refused,) = folder.raw(root).refused
    assert refused.path == "scans.zip"
    assert "not a whole .zip archive" in refused.detail
    with zipfile.ZipFile(root / "scans.zip", "w") as made:
        made.writestr("1.dcm", b"x" * 500)
    data = bytearray((root / "scans.zip").read_bytes())
    data[100] ^= 1
    (root / "scans.zip").write_bytes(data)
    with pytest.raises(Unreadable, match="is damaged"), files.located(root / "scans.zip!/1.dcm"):
        pass


def test_circular_links_of_folders_are_read_once(root):
    (root / "a/up").symlink_to(root)
    assert len(folder.raw(root).files) == 4
