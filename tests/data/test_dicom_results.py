"""Structured reports and heat maps as DICOM files: read back, and validated by dciodvfy where it is installed."""

import io
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pydicom
import pytest
from highdicom.sr import ComprehensiveSR

from hospital_slice import STUDY, write_slice
from ich.data.dicom.results import (
    NO_DATE,
    Finding,
    Model,
    derived_uid,
    read_sources,
    secondary_capture,
    structured_report,
    valid_uid,
)

MODEL = Model("demo", "0.1.0", "ab" * 32)
FINDINGS = [Finding("subdural", 0.75, 0.5, [("b.dcm", 0)]), Finding("any", 0.25, 0.5), Finding("fracture", 0.1)]


def sources(folder: Path, **elements):
    for number, name in enumerate(("a.dcm", "b.dcm")):
        write_slice(folder / name, number, **elements)
    return read_sources(folder, ["a.dcm", "b.dcm"])


def read(content: bytes) -> pydicom.Dataset:
    return pydicom.dcmread(io.BytesIO(content))


def require_valid(path: Path, content: bytes) -> None:
    """Check the file with dciodvfy, if it is installed."""
    path.write_bytes(content)
    if shutil.which("dciodvfy"):
        said = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True).stderr
        assert "Error" not in said, said


def test_a_report_holds_probabilities_thresholds_and_references(tmp_path):
    content = structured_report(sources(tmp_path), FINDINGS, 2, MODEL)
    require_valid(tmp_path / "sr.dcm", content)
    report = ComprehensiveSR.from_dataset(read(content))
    groups = report.content.get_image_measurement_groups()
    found = {group.tracking_identifier: group for group in groups}
    values = {name: [float(m.value) for m in group.get_measurements()] for name, group in found.items()}
    assert values == {"subdural": [0.75, 0.5], "any": [0.25, 0.5], "fracture": [0.1]}
    decided = {name: [e.value.meaning for e in group.get_qualitative_evaluations()] for name, group in found.items()}
    assert decided == {"subdural": ["Present"], "any": ["Absent"], "fracture": []}
    types = {name: (group.finding_type.scheme_designator, group.finding_type.value) for name, group in found.items()}
    assert types == {"subdural": ("SCT", "35486000"), "any": ("SCT", "1386000"), "fracture": ("99ICH", "fracture")}
    (reference,) = found["subdural"].source_images
    assert reference.referenced_sop_instance_uid == f"{STUDY}.1.2"
    assert {instance for _, _, instance, _ in report.get_evidence()} == {f"{STUDY}.1.1", f"{STUDY}.1.2"}
    for text in (
        f"SHA-256 of the bundle: {MODEL.digest}",
        "ich demo",
        "Research use only. Not for diagnosis. 2 slices",
    ):
        assert text.encode() in content


def test_patient_study_and_date_are_copied_and_nothing_is_invented(tmp_path):
    report = read(structured_report(sources(tmp_path, PatientID="", PatientSex=None), FINDINGS, 2, MODEL))
    assert (report.PatientName, report.PatientBirthDate, report.AccessionNumber) == ("Doe^Jane", "19700102", "A1")
    assert (report.PatientID, report.PatientSex) == ("", "")
    assert (report.StudyInstanceUID, report.StudyDate, report.StudyTime) == (STUDY, "20260203", "101112")
    assert (report.ContentDate, report.ContentTime) == ("20260203", "101112")
    assert not {"InstanceCreationDate", "InstanceCreationTime", "InstitutionName"} & set(report.dir())


def test_the_same_scans_and_model_give_the_same_bytes_and_others_other_uids(tmp_path):
    first = structured_report(sources(tmp_path), FINDINGS, 2, MODEL)
    assert structured_report(sources(tmp_path), FINDINGS, 2, MODEL) == first
    other = read(structured_report(sources(tmp_path), FINDINGS, 2, Model("demo", "0.1.0", "cd" * 32)))
    fewer = read(structured_report(read_sources(tmp_path, ["b.dcm"]), FINDINGS, 1, MODEL))
    assert len({read(first).SOPInstanceUID, other.SOPInstanceUID, fewer.SOPInstanceUID}) == 3


@pytest.mark.parametrize(
    "elements",
    [
        {"PatientName": "Müller^Jörg", "SpecificCharacterSet": "ISO_IR 100"},
        {"PatientName": "山田^太郎", "SpecificCharacterSet": "ISO_IR 192"},
    ],
)
def test_names_in_any_character_set_are_copied(tmp_path, elements):
    content = structured_report(sources(tmp_path, **elements), FINDINGS, 2, MODEL)
    require_valid(tmp_path / "sr.dcm", content)
    assert read(content).PatientName == elements["PatientName"]


@pytest.mark.parametrize(
    "elements",
    [
        {"PatientName": "^^^^^^^^", "PatientBirthDate": "x" * 99, "PatientSex": "Unknown", "StudyDate": "2026.13.1"},
        {"PatientID": "a\\b", "StudyTime": "noon", "ReferringPhysicianName": "\x1b$B\x7f"},
    ],
)
def test_damaged_elements_do_not_prevent_a_report(tmp_path, elements):
    report = read(structured_report(sources(tmp_path, **elements), FINDINGS, 2, MODEL))
    assert report.StudyInstanceUID == STUDY
    if "StudyDate" in elements:
        assert (report.ContentDate, report.ContentTime) == NO_DATE


def test_uids_that_are_not_valid_are_replaced(tmp_path):
    write_slice(tmp_path / "a.dcm", study="ID_../../x")
    content = structured_report(read_sources(tmp_path, ["a.dcm"]), FINDINGS[2:], 1, MODEL)
    require_valid(tmp_path / "sr.dcm", content)
    assert read(content).StudyInstanceUID == derived_uid("source", "ID_../../x")


@pytest.mark.parametrize("uid", ["", "1", "1..2", "1.02", "../1.2", "1.2/3", "1.2\n", "1." * 33 + "1", "ID_1"])
def test_only_uids_of_digits_and_dots_are_valid(uid):
    assert not valid_uid(uid)
    assert valid_uid("1.2.840.10008.5.1.4.1.1.2")
    assert valid_uid(derived_uid("anything", 1))


def test_an_image_is_a_secondary_capture_of_its_slice(tmp_path):
    image = np.random.default_rng(1).integers(0, 256, (20, 16, 3), np.uint8)
    content = secondary_capture(sources(tmp_path)["b.dcm"], 0, image, 3, MODEL)
    require_valid(tmp_path / "image.dcm", content)
    capture = read(content)
    np.testing.assert_array_equal(capture.pixel_array, image)
    assert capture.SourceImageSequence[0].ReferencedSOPInstanceUID == f"{STUDY}.1.2"
    assert (capture.InstanceNumber, capture.PatientName, list(capture.PatientOrientation)) == (
        3,
        "Doe^Jane",
        ["L", "P"],
    )
    assert content == secondary_capture(sources(tmp_path)["b.dcm"], 0, image, 3, MODEL)


def test_frames_are_referred_to_by_number(tmp_path):
    found = sources(tmp_path)
    found["b.dcm"].NumberOfFrames = 4
    report = ComprehensiveSR.from_dataset(
        read(structured_report(found, [Finding("any", 0.9, 0.5, [("b.dcm", 1), ("b.dcm", 3)])], 5, MODEL))
    )
    (group,) = report.content.get_image_measurement_groups()
    assert list(group.source_images[0].referenced_frame_numbers) == [2, 4]
    capture = read(secondary_capture(found["b.dcm"], 3, np.zeros((8, 8, 3), np.uint8), 1, MODEL))
    assert capture.SourceImageSequence[0].ReferencedFrameNumber == 4
