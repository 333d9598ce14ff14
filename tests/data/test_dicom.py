import errno
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, ExplicitVRBigEndian

import plain_slice
from ich.data import cache, dicom, slice_table, units
from ich.data.competitions import Raw
from ich.data.crop import resized
from ich.data.dicom import Reason, Unreadable, parsed, reading
from ich.data.units import Scale

HEADER = replace(
    plain_slice.HEADER,
    image_id="ID_0123456ab",
    patient_id="ID_01234567",
    study_id="ID_0123456789",
    series_id="ID_9876543210",
    pixel_spacing=(0.5, 0.45),
    bits_stored=12,
    signed=False,
    intercept=-1024.0,
    window_center=(36.0, 36.0),
    explicit_vr=False,
)
SIGNED = replace(HEADER, bits_stored=16, signed=True)
STORED = np.array([[0, 1024, 4095], [1060, 24, 2000]], dtype=np.uint16)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "slice.dcm"


def edited(path, header=HEADER, stored=STORED, **elements):
    """Write a slice, then set elements of its header with pydicom (None deletes)."""
    dicom.write(path, stored, header)
    dataset = pydicom.dcmread(path)
    for keyword, value in elements.items():
        if value is None:
            delattr(dataset, keyword)
        elif keyword.startswith("PixelPadding"):
            dataset.add_new(keyword, "US", value)
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


HU = [[-1024, 0, 3071], [36, -1000, 976]]
SIGNED_HU = replace(SIGNED, intercept=0.0)
UNITS = {
    "implicit VR": (HEADER, STORED, {}, HU),
    "explicit VR": (replace(HEADER, explicit_vr=True), STORED, {}, HU),
    "inverted display": (HEADER, STORED, {"PhotometricInterpretation": "MONOCHROME1"}, HU),
    "below air": (SIGNED_HU, [[-2000, -1024], [40, 30000]], {}, [[-1024, -1024], [40, 3071]]),
    # 50.5 - 10 = 40.5 and -20.5 - 10 = -30.5, rounded to even
    "slope": (replace(SIGNED, slope=0.5, intercept=-10.0), [[101, -41]], {}, [[40, -30]]),
    # Air is stored as 3096 = -1000 wrapped at 4096, water as 0 and 40 HU as 40: intercept 0 would make air bone.
    "wrapped at 12 bits": (replace(HEADER, intercept=0.0), [[3096, 0, 40]], {}, [[-1000, 0, 40]]),
    "no rescale": (SIGNED, [[-5, 60]], {"RescaleSlope": None, "RescaleIntercept": None}, [[-5, 60]]),
    "padding": (SIGNED_HU, [[3000, 40]], {"PixelPaddingValue": 3000}, [[-1024, 40]]),
    "negative padding": (SIGNED_HU, [[-900, 40]], {"PixelPaddingValue": -900 % 65536}, [[-1024, 40]]),
    "range of padding": (
        SIGNED_HU,
        [[2000, 2500, 2501, 1999]],
        {"PixelPaddingValue": 2500, "PixelPaddingRangeLimit": 2000},
        [[-1024, -1024, 2501, 1999]],
    ),
}


@pytest.mark.parametrize("case", UNITS)
def test_hounsfield_units_by_hand(path, case):
    header, stored, elements, expected = UNITS[case]
    stored = np.asarray(stored).astype(np.int16 if header.signed else np.uint16)
    hu = dicom.hounsfield(edited(path, header=header, stored=stored, **elements))
    assert hu.dtype == np.int16
    assert hu.tolist() == expected


@pytest.mark.parametrize("explicit", [True, False])
def test_a_file_whose_encoding_is_not_as_declared_is_read(path, explicit):
    dicom.write(path, STORED, replace(HEADER, explicit_vr=explicit))
    syntaxes = [b"\x14\01.2.840.10008.1.2.1\0", b"\x12\01.2.840.10008.1.2\0"]  # explicit, implicit; with lengths
    path.write_bytes(path.read_bytes().replace(*(syntaxes if explicit else syntaxes[::-1])))
    assert dicom.hounsfield(path).tolist() == HU


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
def test_a_full_disk_raises_the_error_of_the_system():
    with pytest.raises(OSError, check=lambda error: error.errno == errno.ENOSPC):
        dicom.write(Path("/dev/full"), STORED, HEADER)


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
    assert (found.patient_id, found.study_id, found.series_id) == ("ID_01234567", "ID_0123456789", "ID_9876543210")


def test_a_slice_without_position_keeps_its_instance_number(path):
    edited(path, ImagePositionPatient=None, InstanceNumber=12)
    found = dicom.geometry(path)
    assert found.position is None
    assert found.instance == 12


# ---- several frames in a file


def group(**elements) -> Sequence:
    """A sequence of one item that holds these elements."""
    item = Dataset()
    for keyword, value in elements.items():
        setattr(item, keyword, value)
    return Sequence([item])


def enhanced(path, heights=(30.0, 10.0, 20.0)):
    """An enhanced CT: shared orientation and spacing; position, slope and intercept per frame."""
    dicom.write(path, STORED, replace(HEADER, explicit_vr=True))
    dataset = pydicom.dcmread(path)
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope"):
        delattr(dataset, keyword)
    del dataset.RescaleIntercept
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = EnhancedCTImageStorage
    dataset.NumberOfFrames = len(heights)
    shared = Dataset()
    shared.PlaneOrientationSequence = group(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])
    shared.PixelMeasuresSequence = group(PixelSpacing=[0.4, 0.3])
    dataset.SharedFunctionalGroupsSequence = Sequence([shared])
    frames = []
    for k, height in enumerate(heights):
        item = Dataset()
        item.PlanePositionSequence = group(ImagePositionPatient=[0, 0, height])
        item.PixelValueTransformationSequence = group(RescaleSlope=1, RescaleIntercept=-1000 - k)
        frames.append(item)
    dataset.PerFrameFunctionalGroupsSequence = Sequence(frames)
    dataset.PixelData = b"".join((STORED // (k + 1)).astype("<u2").tobytes() for k in range(len(heights)))
    dataset["PixelData"].VR = "OW"
    dataset.save_as(path)
    return path


def test_each_frame_of_an_enhanced_ct_has_its_own_position_and_units(path):
    first = dicom.geometry(enhanced(path))
    frames = [first, *first.further]
    assert [frame.position for frame in frames] == [30, 10, 20]
    assert [frame.frame for frame in frames] == [0, 1, 2]
    assert {(frame.row_spacing, frame.column_spacing, frame.tilt) for frame in frames} == {(0.4, 0.3, 0)}
    expected = [np.clip(STORED.astype(int) // (k + 1) - 1000 - k, -1024, 3071) for k in range(3)]
    np.testing.assert_array_equal([dicom.hounsfield(path, k) for k in range(3)], expected)
    np.testing.assert_array_equal(list(dicom.hounsfields(path, [2, 0])), [expected[2], expected[0]])


def test_the_frames_of_a_file_are_slices_of_the_table_and_the_cache(tmp_path):
    enhanced(tmp_path / "a.dcm")
    files = pd.DataFrame({"image_id": ["a"], "split": ["train"], "path": ["a.dcm"]})
    labels = pd.DataFrame({"image_id": ["a#0", "a#1", "a#2"], "bleed": [0.0, 1.0, 0.0]})
    headers = slice_table.read_geometries(tmp_path, ["a.dcm"], 1, lambda _: None)
    table, refused = slice_table.slice_table(Raw(files, labels, [], {"bleed": 1.0}, "", ()), headers)
    assert not refused
    assert table["image_id"].tolist() == ["a#1", "a#2", "a#0"]
    assert table["bleed"].tolist() == [1, 0, 0]
    filled, refused, _ = cache.write_shards(tmp_path, table, tmp_path, cache.ImageFormat(3), 1, lambda _: None)
    assert not refused
    assert filled["n_slices"].tolist() == [3, 3, 3]
    hu = cache.HuCache.open(tmp_path, filled)
    for row, frame in enumerate((1, 2, 0)):
        expected = resized(dicom.hounsfield(tmp_path / "a.dcm", frame), (0, 0, 3), 3)
        np.testing.assert_array_equal(hu[row], expected)


def test_a_localizer_among_the_frames_refuses_the_file(path):
    dataset = pydicom.dcmread(enhanced(path))
    dataset.PerFrameFunctionalGroupsSequence[1].CTImageFrameTypeSequence = group(
        FrameType=["ORIGINAL", "PRIMARY", "LOCALIZER", "NONE"]
    )
    dataset.save_as(path)
    assert refusal(path) == Reason.NOT_CT_SLICE


# ---- values


def test_8_bit_values_are_scaled(path):
    header = replace(HEADER, bits_stored=8, slope=2.0, intercept=-100.0)
    edited(path, header, np.zeros((1, 4), np.uint16), BitsAllocated=8, PixelData=bytes([0, 50, 100, 255]))
    assert dicom.hounsfield(path).tolist() == [[-100, 0, 100, 410]]


@settings(max_examples=200)
@given(
    values=st.lists(st.integers(0, 65535), min_size=1, max_size=8),
    bits=st.integers(1, 16),
    signed=st.booleans(),
    slope=st.sampled_from([1.0, 2.0, -1.0]),
    intercept=st.sampled_from([-1024, -1000, 0, 100, 3000, 70000]) | st.integers(-40000, 40000),
    padding=st.sampled_from([None, (0, 0), (-2000, 5), (60000, 60000)]),
    big=st.booleans(),
    in_place=st.booleans(),
)
def test_units_are_computed_from_the_stored_bits(values, bits, signed, slope, intercept, padding, big, in_place):
    stored = np.array([values], ">u2" if big else "<u2")
    kept = stored.copy()
    expected: list[int] = []
    for number in values:
        value = number % (1 << bits)
        value -= (value >> (bits - 1) << bits) if signed else 0
        padded = padding is not None and padding[0] <= value <= padding[1]
        wrapped = bits == 12 and not signed and abs(intercept) < 100
        result = (value + 1000) % 4096 * slope - 1000 if wrapped else value * slope + intercept
        expected.append(-1024 if padded else int(min(max(result, -1024), 3071)))
    found = units.hounsfield(stored, Scale(bits, signed, slope, float(intercept), padding), in_place=in_place)
    assert found.dtype == np.int16
    assert found[0].tolist() == expected
    assert in_place or stored.tolist() == kept.tolist()


# ---- refusals


@pytest.mark.parametrize(
    ("elements", "reason"),
    [
        ({"PatientID": ""}, None),
        ({"PatientID": None}, None),
        ({"PatientID": "a\0\x10\0\x30"}, Reason.NO_IDENTITY),
        ({"StudyInstanceUID": None}, Reason.NO_IDENTITY),
        ({"SeriesInstanceUID": ""}, Reason.NO_IDENTITY),
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
        ({"NumberOfFrames": 2}, Reason.TRUNCATED),
        ({"NumberOfFrames": 10**9}, Reason.BAD_SIZE),
        ({"BitsAllocated": 32}, Reason.TRUNCATED),
        ({"BitsAllocated": 64}, Reason.BAD_SIZE),
        ({"PixelRepresentation": 7}, Reason.BAD_SIZE),
        ({"Modality": None, "SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, Reason.NOT_CT_SLICE),
        ({"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]}, Reason.NOT_CT_SLICE),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, Reason.NOT_CT_SLICE),
        ({"RescaleType": "Z_EFF"}, Reason.NOT_HOUNSFIELD),
        ({"Modality": None}, None),
        ({"RescaleType": "HU"}, None),
    ],
)
def test_an_unusable_element_is_refused_with_its_reason(path, elements, reason):
    assert refusal(edited(path, **elements)) == reason


def test_32_bits_have_the_units_of_pydicom(path):
    stored = np.array([[-2000, 40, 70000], [1, -5, 3000]], dtype="<i4")
    bits = {"BitsAllocated": 32, "BitsStored": 32, "HighBit": 31, "PixelData": stored.tobytes()}
    assert dicom.hounsfield(edited(path, SIGNED, **bits)).tolist() == [[-1024, -984, 3071], [-1023, -1024, 1976]]
    dataset = pydicom.dcmread(path)
    expected = dataset.pixel_array * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)
    assert (dicom.hounsfield(path) == np.clip(expected, -1024, 3071)).all()
    edited(path, **bits | {"PixelData": stored.view("<u4").tobytes()})  # unsigned
    assert dicom.hounsfield(path).tolist() == [[3071, -984, 3071], [-1023, 3071, 1976]]


@pytest.mark.parametrize("explicit", [True, False])
@pytest.mark.parametrize("short", [True, False])
def test_a_file_without_preamble_is_read(path, explicit, short):
    dicom.write(path, STORED, replace(HEADER, explicit_vr=explicit, short_meta=short))
    whole, expected = path.read_bytes(), dicom.geometry(path)
    data_set = whole.index(b"\x08\0\x16\0" if not short else b"\x08\0\x18\0")
    for start in (128, 132, data_set):  # DICM, the file meta information, the data set alone
        path.write_bytes(whole[start:])
        assert dicom.geometry(path) == expected
        assert dicom.hounsfield(path).tolist() == HU
        path.write_bytes(whole[start:-1])
        assert refusal(path) == Reason.TRUNCATED
    for start in (1, 64, 127, 129, 133, data_set + 1):
        path.write_bytes(whole[start:])
        assert refusal(path) == Reason.NOT_DICOM


def test_a_big_endian_file_without_preamble_is_read(path):
    dicom.write(path, STORED, replace(HEADER, explicit_vr=True))
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    dataset.PixelData = STORED.astype(">u2").tobytes()
    pydicom.dcmwrite(path, dataset, little_endian=False, implicit_vr=False)
    whole = path.read_bytes()
    for start in (132, whole.index(b"\0\x08\0\x16")):
        path.write_bytes(whole[start:])
        assert dicom.hounsfield(path).tolist() == HU


def test_a_huge_file_without_preamble_is_refused(path, monkeypatch):
    monkeypatch.setattr(parsed, "MAX_COPIED", 200)
    dicom.write(path, STORED, HEADER)
    path.write_bytes(path.read_bytes()[128:])
    assert refusal(path) == Reason.BAD_SIZE


def test_a_truncated_file_is_refused_by_its_header(path):
    dicom.write(path, STORED, HEADER)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(Unreadable, match="11 of 12 bytes"):
        dicom.geometry(path)


def test_control_characters_of_a_header_are_removed(path):
    edited(path, Modality="\x1b[2J\nX", PatientID="a\nb")
    with pytest.raises(Unreadable) as refused:
        dicom.geometry(path)
    assert refused.value.detail.isprintable()
    assert dicom.geometry(edited(path, PatientID="a\x1b\nb")).patient_id == "ab"


def test_each_reason_is_documented():
    text = (Path(__file__).parents[2] / "docs" / "reference" / "quarantine.md").read_text(encoding="utf-8")
    explained = re.findall(r"^\| `(\w+)` \|", text, flags=re.MULTILINE)
    assert explained == [reason.name.lower() for reason in Reason]


def test_a_nan_slope_is_refused(path):
    dicom.write(path, STORED, replace(HEADER, slope=7.25))
    path.write_bytes(path.read_bytes().replace(b"7.25", b"nan "))
    assert refusal(path) == Reason.BAD_RESCALE


def test_missing_files_folders_pipes_and_other_formats_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.dcm")
    assert refusal(tmp_path / "pipe.dcm") == Reason.UNREADABLE
    (tmp_path / "text.dcm").write_text("hello" * 100)
    (tmp_path / "empty.dcm").write_bytes(b"")
    (tmp_path / "folder.dcm").mkdir()
    assert refusal(tmp_path / "none.dcm") == Reason.UNREADABLE
    assert refusal(tmp_path / "folder.dcm") == Reason.UNREADABLE
    assert refusal(tmp_path / "text.dcm") == Reason.NOT_DICOM
    assert refusal(tmp_path / "empty.dcm") == Reason.NOT_DICOM


def test_pydicom_reads_a_written_slice(path):
    dicom.write(path, STORED, HEADER)
    dataset = pydicom.dcmread(path)
    assert dataset.SOPClassUID == CTImageStorage
    assert dataset.SOPInstanceUID == "ID_0123456ab"
    assert dataset.WindowCenter == [36, 36]
    assert (dataset.pixel_array == STORED).all()


def test_a_programming_error_is_raised(path, monkeypatch):
    dicom.write(path, STORED, HEADER)
    monkeypatch.delattr(reading, "_normal")
    with pytest.raises(NameError):
        dicom.geometry(path)
