from dataclasses import replace

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.uid import CTImageStorage, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless

from ich.data import dicom
from ich.data.dicom import Reason, SliceHeader, Unreadable

HEADER = SliceHeader(
    image_id="ID_0123456ab",
    patient_id="ID_01234567",
    study_id="ID_0123456789",
    series_id="ID_9876543210",
    position=(-100.0, -120.0, 35.5),
    orientation=(1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
    pixel_spacing=(0.5, 0.45),
    bits_stored=12,
    signed=False,
    slope=1.0,
    intercept=-1024.0,
    window_center=(36.0, 36.0),
    window_width=(80.0, 80.0),
    explicit_vr=False,
)
SIGNED = replace(HEADER, bits_stored=16, signed=True)
STORED = np.array([[0, 1024, 4095], [1060, 24, 2000]], dtype=np.uint16)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "slice.dcm"


def edited(path, header=HEADER, stored=STORED, **elements):
    """Write a slice, then set elements of it (None deletes) behind our writer's back."""
    dicom.write(path, stored, header)
    dataset = pydicom.dcmread(path)
    for keyword, value in elements.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    dataset.save_as(path)
    return path


def refusal(path) -> Reason | None:
    """Why a file is refused; None where it is read."""
    try:
        dicom.geometry(path)
        dicom.hounsfield(path)
    except Unreadable as refused:
        return refused.reason
    return None


@pytest.mark.parametrize("explicit_vr", [False, True])
def test_hounsfield_units_are_stored_values_plus_the_intercept(path, explicit_vr):
    dicom.write(path, STORED, replace(HEADER, explicit_vr=explicit_vr))
    hu = dicom.hounsfield(path)
    assert hu.dtype == np.int16
    assert hu.tolist() == [[-1024, 0, 3071], [36, -1000, 976]]


def test_signed_padding_below_air_becomes_air(path):
    stored = np.array([[-2000, -1024], [40, 30000]], dtype=np.int16)
    dicom.write(path, stored, replace(SIGNED, intercept=0.0))
    assert dicom.hounsfield(path).tolist() == [[-1024, -1024], [40, 3071]]


def test_a_slope_is_applied_before_the_intercept_and_rounded(path):
    edited(
        path,
        header=replace(SIGNED, slope=0.5, intercept=-10.0),
        stored=np.array([[101, -41]], dtype=np.int16),
    )
    assert dicom.hounsfield(path).tolist() == [[40, -30]]  # 50.5 - 10 = 40.5 and -20.5 - 10 = -30.5, to even


def test_a_wrapped_12_bit_file_with_a_wrong_intercept_is_unwrapped(path):
    # Air is stored as 3096 = -1000 wrapped at 4096, water as 0 and 40 HU as 40: intercept 0 would make air bone.
    edited(path, header=replace(HEADER, intercept=0.0), stored=np.array([[3096, 0, 40]], dtype=np.uint16))
    assert dicom.hounsfield(path).tolist() == [[-1000, 0, 40]]


def test_absent_rescale_means_hounsfield_units_already(path):
    edited(path, header=SIGNED, stored=np.array([[-5, 60]], np.int16), RescaleSlope=None, RescaleIntercept=None)
    assert dicom.hounsfield(path).tolist() == [[-5, 60]]


def test_bits_above_bits_stored_are_not_part_of_the_value(path):
    dicom.write(path, np.array([[1024 + 0x8000, 1064]], dtype=np.uint16), HEADER)
    assert dicom.hounsfield(path).tolist() == [[0, 40]]


def test_a_12_bit_signed_value_keeps_its_sign(path):
    header = replace(HEADER, signed=True, intercept=0.0)
    dicom.write(path, np.array([[0x0FFF, 5]], dtype=np.uint16).view(np.int16), header)
    assert dicom.hounsfield(path).tolist() == [[-1, 5]]


@pytest.mark.parametrize("syntax", [ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian])
def test_other_uncompressed_syntaxes_give_the_same_units(path, syntax):
    dicom.write(path, STORED, replace(HEADER, explicit_vr=True))
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = syntax
    if syntax == ExplicitVRBigEndian:
        dataset.PixelData = STORED.astype(">u2").tobytes()
    pydicom.dcmwrite(path, dataset, little_endian=syntax.is_little_endian, implicit_vr=False)
    assert dicom.hounsfield(path).tolist() == [[-1024, 0, 3071], [36, -1000, 976]]


def test_rle_gives_the_same_units(path):
    dicom.write(path, STORED, replace(HEADER, explicit_vr=True))
    dataset = pydicom.dcmread(path)
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    dataset.compress(RLELossless)
    dataset.save_as(path)
    assert dicom.hounsfield(path).tolist() == [[-1024, 0, 3071], [36, -1000, 976]]


def test_rsna_identifiers_do_not_warn(path, recwarn):
    dicom.write(path, STORED, HEADER)
    dicom.geometry(path)
    dicom.hounsfield(path)
    assert not recwarn.list


# ---- geometry


def test_position_is_the_projection_on_the_normal_of_a_tilted_slice(path):
    tilt = np.radians(20)
    header = replace(HEADER, orientation=(1, 0, 0, 0, float(np.cos(tilt)), float(np.sin(tilt))), position=(3, 10, 50))
    dicom.write(path, STORED, header)
    found = dicom.geometry(path)
    # normal = row x column = (0, -sin, cos)
    assert found.position == pytest.approx(-10 * np.sin(tilt) + 50 * np.cos(tilt), abs=1e-4)
    assert found.tilt == pytest.approx(20, abs=1e-3)
    assert (found.row_spacing, found.column_spacing) == (0.5, 0.45)
    assert (found.patient_id, found.study_id, found.series_id) == (
        "ID_01234567",
        "ID_0123456789",
        "ID_9876543210",
    )


def test_a_slice_without_position_says_so_and_keeps_its_number(path):
    edited(path, ImagePositionPatient=None, InstanceNumber=12)
    found = dicom.geometry(path)
    assert found.position is None
    assert found.instance == 12


# ---- refusals


@pytest.mark.parametrize(
    ("elements", "reason"),
    [
        ({"PatientID": ""}, Reason.NO_IDENTITY),
        ({"StudyInstanceUID": None}, Reason.NO_IDENTITY),
        ({"Modality": "MR"}, Reason.NOT_CT_SLICE),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, Reason.NOT_CT_SLICE),
        ({"Rows": 0}, Reason.BAD_SIZE),
        ({"Columns": 60000}, Reason.BAD_SIZE),
        ({"BitsAllocated": None}, Reason.BAD_SIZE),
        ({"BitsStored": 17}, Reason.BAD_SIZE),
        ({"Rows": 3}, Reason.TRUNCATED),
        ({"PixelData": None}, Reason.TRUNCATED),
        ({"RescaleSlope": "0"}, Reason.BAD_RESCALE),
        ({"RescaleSlope": "1e9"}, Reason.BAD_RESCALE),
        ({"SamplesPerPixel": 3}, Reason.NOT_CT_SLICE),
        ({"NumberOfFrames": 2}, Reason.NOT_CT_SLICE),
    ],
)
def test_an_unusable_element_has_its_reason(path, elements, reason):
    assert refusal(edited(path, **elements)) == reason


def test_a_slope_that_is_no_number_is_refused(path):
    dicom.write(path, STORED, replace(HEADER, slope=7.25))
    path.write_bytes(path.read_bytes().replace(b"7.25", b"nan "))
    assert refusal(path) == Reason.BAD_RESCALE


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.9.9\0"),  # a transfer syntax that nobody knows
        (b"1.2.840.10008.1.2.1\0", b"1.2.840.10008\\1.2.1\0"),  # two of them
        (b"\x28\x00\x03\x01US", b"\x28\x00\x03\x01XX"),  # a value representation that does not exist
        (b"\xe0\x7f\x10\x00OW", b"\xe0\x7f\x10\x00ZZ"),
        (b"\xe0\x7f\x10\x00OW", b"\xe0\x7f\x10\x00LT"),  # pixels as text
    ],
)
def test_one_damaged_byte_of_the_header_is_refused_and_not_raised(path, old, new):
    dicom.write(path, STORED, replace(HEADER, explicit_vr=True))
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new, 1))
    assert refusal(path) in Reason


def test_files_that_are_not_there_or_not_dicom_have_their_reason(tmp_path):
    (tmp_path / "text.dcm").write_text("hello" * 100)
    (tmp_path / "empty.dcm").write_bytes(b"")
    (tmp_path / "folder.dcm").mkdir()
    assert refusal(tmp_path / "none.dcm") == Reason.UNREADABLE
    assert refusal(tmp_path / "folder.dcm") == Reason.UNREADABLE
    assert refusal(tmp_path / "text.dcm") == Reason.NOT_DICOM
    assert refusal(tmp_path / "empty.dcm") == Reason.NOT_DICOM


WHOLE: list[bytes] = []


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_mutated_file_is_read_or_refused_and_nothing_else(data, tmp_path_factory):
    if not WHOLE:
        source = tmp_path_factory.mktemp("fuzz") / "whole.dcm"
        dicom.write(source, STORED, replace(HEADER, explicit_vr=True))
        WHOLE.append(source.read_bytes())
    content = bytearray(WHOLE[0])
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(128, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(100, len(content)))]
    path = tmp_path_factory.getbasetemp() / "mutated.dcm"
    path.write_bytes(content)
    assert refusal(path) in (None, *Reason)


def test_what_is_written_reads_as_a_ct_slice_elsewhere(path):
    dicom.write(path, STORED, HEADER)
    dataset = pydicom.dcmread(path)
    assert dataset.SOPClassUID == CTImageStorage
    assert dataset.SOPInstanceUID == "ID_0123456ab"
    assert dataset.WindowCenter == [36, 36]
    assert (dataset.pixel_array == STORED).all()
