"""A bad file ends no run: it is quarantined under an escaped name, and the others are used."""

import csv
import io
import os
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest

from conftest import CLASSES, ROOT, make
from ich.data import dicom, files
from ich.data.competitions import cq500, folder, ntu_dlmi, rsna2019, unibuc
from ich.data.slice_table import read_geometries
from ich.errors import UserError
from ich.pipeline.state import Plan
from ich.recipe import load
from ich.stages import check
from ich.stages.scans import read_scans
from ich.store.raw import listing
from plain_slice import HEADER

NAMES = {
    "a\nb.dcm": "a\\nb.dcm",
    "c\udcff.dcm": "c\\udcff.dcm",
    "\x85\\.dcm": "\\x85\\\\.dcm",
    "e\u2028.dcm": "e\\u2028.dcm",
}
NAMES |= {"f\n/1.dcm": "f\\n/1.dcm"}


def scan(path: Path, number: int, frames: int = 1) -> None:
    """Write a slice with random pixels, or several frames of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 99, (16, 16)).astype(np.int16)
    patient = f"p{number}"
    identity = {"patient_id": patient, "study_id": f"1.2.{number}", "series_id": f"1.2.{number}.1"}
    dicom.write(path, pixels, replace(HEADER, image_id=f"1.2.{number}.1.1", **identity))
    if frames > 1:
        dataset = pydicom.dcmread(path)
        dataset.NumberOfFrames, dataset.PixelData = frames, dataset.PixelData * frames
        dataset.save_as(path)


def add_bad_files(root: Path) -> set[str]:
    """Return the names under which they are to be quarantined."""
    for number, name in enumerate(NAMES):
        scan(root / name, 50 + number)
    (root / "loop").symlink_to(root / "loop")
    scan(root / "inside" / "1.dcm", 60)
    with zipfile.ZipFile(root / "cut.zip", "w") as archive:
        archive.write(root / "inside" / "1.dcm", "1.dcm")
    (root / "cut.zip").write_bytes((root / "cut.zip").read_bytes()[:-9])
    os.mkfifo(root / "pipe.zip")
    with zipfile.ZipFile(root / "some.zip", "w") as archive:
        for name in ("g\nh.dcm", "../up.dcm", "1.dcm"):
            archive.write(root / "inside" / "1.dcm", name)
    (root / "inside" / "1.dcm").unlink()
    scan(root / "m.dcm", 61, frames=2)
    scan(root / "m#0.dcm", 62)
    (root / "locked").mkdir()
    refused = {*NAMES.values(), "loop", "cut.zip", "pipe.zip", "some.zip!/g\\nh.dcm", "some.zip!/../up.dcm"}
    return {*refused, "m#0.dcm", "locked/"}


@pytest.fixture
def locked(monkeypatch):
    """Folders with this name cannot be read. (As root, all permissions are given.)"""
    real = os.scandir

    def scandir(path: str | Path = ".") -> object:
        if os.path.basename(os.fspath(path)) == "locked":
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)


@pytest.fixture
def plan(tmp_path, locked, monkeypatch):
    """A competition of 8 good slices among bad files."""
    monkeypatch.setattr(Plan, "cores", 1)
    root = tmp_path / "input" / "folder_example"
    for number in range(8):
        scan(root / f"{number}.dcm", number)
    rows = [f"{k},{k % 2}" for k in range(8)]
    (root / "labels.csv").write_text("\n".join(["image_id,any", *rows]) + "\n")
    changes = ["image.size=16", "cnn.resnet.pretrained=false", "cnn.densenet.pretrained=false"]  # nothing is downloaded
    return Plan(load(ROOT / "configs/folder_example.yaml", changes), tmp_path)


def test_prepare_and_check_quarantine_them_and_use_the_others(plan):
    expected = add_bad_files(plan.raw_root)
    make(plan, "prepare")
    text = (plan.prepared.folder / "quarantine.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert len(text.splitlines()) == len(rows) + 1
    assert {row["path"] for row in rows} == expected
    used = pd.read_parquet(plan.prepared.folder / "slices.parquet")["image_id"]
    assert set(used) == {*map(str, range(8)), "m#0", "m#1", "some/1"}
    check.run(plan)
    found = pd.read_csv(plan.workspace.submissions / "check.csv").groupby("rule")["name"].agg(set)
    assert found["quarantined"] == expected
    assert "extra_file" not in found


def test_predict_quarantines_them_and_finds_the_others(plan):
    expected = add_bad_files(plan.raw_root)
    found = read_scans(plan.raw_root, CLASSES, "hu")
    assert {file.path for file in found.quarantined} == expected | {"labels.csv"}
    assert len(found.slices) == 11
    assert [len(read_scans(plan.raw_root / name, CLASSES, "hu").headers) for name in ("m.dcm", "some.zip")] == [1, 1]
    for name in ("cut.zip", "pipe.zip", "a\nb.dcm"):
        with pytest.raises(UserError, match="no files in this archive") as refusal:
            read_scans(plan.raw_root / name, CLASSES, "hu")
        assert "\n" not in str(refusal.value)


FORMATS = {
    rsna2019: ("stage_2_train/", ".dcm"),
    ntu_dlmi: ("train1/", ".dcm"),
    unibuc: ("images/", ".png"),
    cq500: ("CQ500CT1/", ".dcm"),
}


@pytest.mark.parametrize("adapter", FORMATS, ids=lambda adapter: adapter.__name__.rpartition(".")[2])
def test_names_that_are_not_one_line_of_utf_8_are_quarantined_in_each_format(tmp_path, adapter, monkeypatch):
    start, suffix = FORMATS[adapter]
    (tmp_path / start).mkdir()
    for name in ("good", "a\nb", "c\udcff"):
        (tmp_path / start / f"{name}{suffix}").touch()
    if adapter is cq500:
        monkeypatch.setattr(cq500, "reads", lambda root: None)
        raw = cq500.raw(tmp_path)
        paths, refused = raw.files["path"].tolist(), raw.refused
    elif adapter is rsna2019:
        table, refused = rsna2019._files(tmp_path / "stage_2_train", "train")
        paths = table["path"].tolist()
    else:
        table, refused = adapter.layout.images(tmp_path, start[:-1], suffix, "train")
        paths = table["path"].tolist()
    assert paths == [f"{start}good{suffix}"]
    assert {file.path for file in refused} == {f"{start}a\\nb{suffix}", f"{start}c\\udcff{suffix}"}


# ---- folders that look like archives


def test_a_folder_named_like_an_archive_is_a_folder(tmp_path):
    root = tmp_path / "clone.zip!" / "input"  # a clone below such a folder
    scan(root / "test.zip!" / "1.dcm", 1)
    scan(root / "2.dcm", 2)
    with zipfile.ZipFile(root / "b.zip", "w") as archive:
        archive.write(root / "2.dcm", "x/3.dcm")
    with zipfile.ZipFile(tmp_path / "clone.zip", "w") as archive:
        archive.writestr("input/2.dcm", b"of another")
    table, refused = folder._files(root)
    assert dict(zip(table["path"], table["split"], strict=True)) == {
        "2.dcm": "train",
        "b.zip!/x/3.dcm": "train",
        "test.zip!/1.dcm": "train",
    }
    assert refused == []
    for geometry, number in zip(
        read_geometries(root, table["path"].tolist(), 1, lambda _: None), (2, 2, 1), strict=True
    ):
        assert geometry.patient_id == f"p{number}"


def test_a_member_with_the_name_of_a_file_is_refused(tmp_path):
    scan(tmp_path / "a.zip!" / "1.dcm", 1)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("1.dcm", b"other content")
        archive.writestr("b.zip!/1.dcm", b"other content")
    found = files.with_members(tmp_path, files.below(tmp_path))
    assert found.names == ["a.zip!/1.dcm"]
    assert list(found.refused) == ["a.zip!/1.dcm", "a.zip!/b.zip!/1.dcm"]


# ---- details


def test_each_escaped_name_is_one_line_and_differs():
    names = [*NAMES, "a\\nb.dcm\n", "c\xff\n", "c\udcff\n", "\\\n", "\\\\\n"]
    found = [files.escaped(name) for name in names]
    assert len(set(found)) == len(names)
    assert all(len(name.splitlines()) == 1 and name.isprintable() and name.encode() for name in found)
    assert [name.encode("latin-1", "backslashreplace").decode("unicode_escape") for name in found] == names


def test_image_ids_differ_for_any_names():
    names = ["a.dcm", "a.png", "b/a.dcm.dcm", "c/a.dcm.dcm.dcm", "c/a.dcm.dcm"]
    assert len(set(files.image_ids(names))) == len(names)


@pytest.mark.usefixtures("locked")
def test_a_listing_includes_links_to_themselves_and_locked_folders(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "locked").mkdir()
    assert list(listing(tmp_path)) == ["locked/", "loop"]
    with pytest.raises(PermissionError):
        listing(tmp_path / "locked")


def test_a_list_of_members_that_is_too_long_is_refused(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for k in range(99):
            archive.writestr(f"{k}.dcm", b"")
    monkeypatch.setattr(files, "MAX_DIRECTORY", 4000)
    with pytest.raises(files.BadArchive, match="unpack it"):
        files.members(tmp_path / "a.zip")
