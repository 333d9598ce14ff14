import stat
import zipfile

import pytest

from ich.data import files
from ich.data.competitions import folder
from ich.data.competitions.layout import LayoutError
from ich.data.dicom import Unreadable


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
        (["image_id,any", "a/1"], r"row 2: ''"),
        (["image_id,any", "a/1,1", "a/1,1"], r"row 3: 'a/1'\); expected each image_id once"),
        (["name,any", "a/1,1"], "no column image_id or study_id; it has 'name', 'any'"),
        (["image_id", "a/1"], "add one column per class"),
        (["image_id,../x", "a/1,1"], r"'\.\./x' cannot be a class"),
        (["image_id,position", "a/1,1"], "'position' cannot be a class"),
        (["image_id,any,split", "a/1,1,valid"], "expected split train or test"),
        (["image_id,any", "z,1"], r"none of its 1 images has a file; .* 'z', .* 'a/1' \(a/1\.dcm\)"),
        (["image_id,any"], "it has no rows"),
    ],
)
def test_a_fault_in_the_labels_is_one_line(root, lines, message):
    labels(root, *lines)
    with pytest.raises(LayoutError, match=message) as error:
        folder.raw(root)
    assert "\n" not in str(error.value)


def test_missing_labels_and_missing_scans_are_errors(tmp_path):
    with pytest.raises(LayoutError, match=r"labels\.csv: no such file"):
        folder.raw(tmp_path)
    labels(tmp_path, "image_id,any", "a,1")
    with pytest.raises(LayoutError, match="no DICOM file at any depth"):
        folder.raw(tmp_path)


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
    assert sum("leads out" in line for line in refused) == 4


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
    with pytest.raises(LayoutError, match=r"scans\.zip: not a whole \.zip archive"):
        folder.raw(root)
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
