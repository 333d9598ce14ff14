"""Real files and every compression: the test files of pydicom, and a head CT of CQ500 where it is present."""

import time
import warnings
from dataclasses import replace
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
import pytest
from pydicom.pixels.utils import pixel_array

from compressed_slice import ENCODERS, HEADER, JPEG_LS, LOSSLESS, LOSSY, noisy_ramp, write_compressed
from ich.data import decoders, dicom
from ich.data.dicom import HU_HIGH, HU_LOW, Reason, Unreadable

SHIPPED = Path(pydicom.__file__).parent / "data"
FILES = sorted(p for p in SHIPPED.rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc", ".json"))
CQ500 = Path(__file__).parents[2] / "../shared/data/cq500/CQ500CT0"
LONGEST = 5  # seconds per file


def read(path: Path) -> np.ndarray | Reason:
    """Hounsfield units [frames, rows, columns], or why the file is refused; fails where it takes too long."""
    start = time.monotonic()
    try:
        first = dicom.geometry(path)
        return np.stack([dicom.hounsfield(path, k) for k in range(1 + len(first.further))])
    except Unreadable as refused:
        return refused.reason
    finally:
        assert time.monotonic() - start < LONGEST, path


def by_pydicom(path: Path) -> np.ndarray | None:
    """Hounsfield units by pydicom and its decoders; None where it has no decoder for the file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = pydicom.dcmread(path, force=True)
        try:
            stored = pixel_array(dataset)
        except Exception:  # the decoders' errors have no common base
            return None
    slope, intercept = float(dataset.get("RescaleSlope", 1)), float(dataset.get("RescaleIntercept", 0))
    if dataset.PixelRepresentation == 0 and dataset.BitsStored == 12 and abs(intercept) < 100:
        stored, intercept = (stored.astype(int) + 1000) % 4096, -1000  # as in RSNA's wrapped files
    units = np.clip(np.rint(stored * slope + intercept), HU_LOW, HU_HIGH).astype(np.int16)
    return units if units.ndim == 3 else units[None]


def as_ct(source: Path, path: Path) -> bool:
    """Write a copy of a grey image as a CT slice; False where the file has none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            dataset = pydicom.dcmread(source, force=True)
            if "PixelData" not in dataset or dataset.SamplesPerPixel != 1 or dataset.BitsAllocated not in (8, 16, 32):
                return False
            if dataset.BitsAllocated == 32 and dataset.file_meta.TransferSyntaxUID.is_compressed:
                return False
            dataset.Modality, dataset.PatientID = "CT", "p"
            dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.2", "1.2.1"
            dataset.PhotometricInterpretation = "MONOCHROME2"
            dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
            for keyword in ("PixelPaddingValue", "ModalityLUTSequence", "RescaleType"):
                if keyword in dataset:
                    delattr(dataset, keyword)
            dataset.save_as(path)
        except Exception:  # some of the files are damaged on purpose
            return False
    return True


def test_pydicoms_files_are_refused_or_read_with_the_same_units(tmp_path):
    equal, refused = set(), {}
    for source in FILES:
        converted = tmp_path / source.name
        for path in (source, converted) if as_ct(source, converted) else (source,):
            found = read(path)
            if isinstance(found, Reason):
                refused[path] = found
            elif (expected := by_pydicom(path)) is not None:
                np.testing.assert_array_equal(found, expected, err_msg=str(path))
                equal.add(path.name)
    assert len(equal) >= 30
    assert {"CT_small.dcm", "MR_small_RLE.dcm", "MR_small_jp2klossless.dcm", "MR_small_bigendian.dcm"} <= equal
    assert {"image_dfl.dcm", "rtdose.dcm"} <= equal
    assert {path.name: reason for path, reason in refused.items() if path.parent == tmp_path} == {
        "MR_truncated.dcm": Reason.TRUNCATED,
        "badVR.dcm": Reason.BAD_SIZE,  # "1A" frames
        "JPEG2000-embedded-sequence-delimiter.dcm": Reason.NOT_DECODED,  # claims 3.8e12 pixels
    }


def test_every_supported_syntax_is_tested():
    assert set(ENCODERS) == set(decoders.SYNTAXES)


@pytest.mark.parametrize(
    ("bits", "signed", "shape"), [(12, False, (64, 48)), (16, False, (31, 17)), (16, True, (8, 8))]
)
@pytest.mark.parametrize("syntax", LOSSLESS)
def test_lossless_compression_keeps_the_units(tmp_path, syntax, bits, signed, shape):
    values = noisy_ramp(*shape, 2**bits - 1).astype(int) - (30000 if signed else 0)
    stored = values.astype(np.int16).view(np.uint16) if signed else values.astype(np.uint16)
    header = replace(HEADER, bits_stored=bits, signed=signed)
    path = write_compressed(tmp_path / "a.dcm", syntax, [bytes(LOSSLESS[syntax](stored))], shape, header)
    expected = np.clip((values.astype(np.int16) if signed else values) - 1024.0, HU_LOW, HU_HIGH)
    np.testing.assert_array_equal(dicom.hounsfield(path), expected)
    other = by_pydicom(path)
    if other is not None:
        np.testing.assert_array_equal(other[0], expected)


def test_lossy_jpeg_has_the_units_of_pydicom(tmp_path):
    baseline, extended = LOSSY
    stored = noisy_ramp(64, 64, 255)
    header = replace(HEADER, bits_stored=8, intercept=-100.0)
    frames = [bytes(LOSSY[baseline](stored))]
    path = write_compressed(tmp_path / "a.dcm", baseline, frames, (64, 64), header, BitsAllocated=8)
    found, other = dicom.hounsfield(path), by_pydicom(path)
    assert other is not None
    np.testing.assert_array_equal(found, other[0])
    assert np.abs(found - (stored.astype(int) - 100)).mean() < 2
    frames = [bytes(LOSSY[extended](noisy_ramp(64, 64, 4095)))]  # 12 bits: pydicom has no decoder
    found = dicom.hounsfield(write_compressed(path, extended, frames, (64, 64)))
    assert np.abs(found - np.clip(noisy_ramp(64, 64, 4095) - 1024.0, HU_LOW, HU_HIGH)).mean() < 10


@pytest.mark.parametrize("syntax", ENCODERS)
def test_a_truncated_stream_is_refused(tmp_path, syntax):
    whole = bytes(ENCODERS[syntax](noisy_ramp(64, 48, 255)))
    for part in (0.9, 0.5, 0.1):
        path = write_compressed(tmp_path / "a.dcm", syntax, [whole[: int(len(whole) * part) // 2 * 2]], (64, 48))
        assert read(path) == Reason.NOT_DECODED


def test_a_stream_of_another_size_than_the_header_is_refused(tmp_path):
    stream = bytes(imagecodecs.jpegls_encode(noisy_ramp(64, 48, 4095)))
    assert read(write_compressed(tmp_path / "a.dcm", JPEG_LS, [stream], (48, 64))) == Reason.NOT_DECODED


@pytest.mark.parametrize(("count", "pieces"), [(3, 1), (3, 2), (1, 3)])
def test_frames_are_found_by_their_fragments(tmp_path, count, pieces):
    frames = [noisy_ramp(32, 32, 1000 * (k + 1)) for k in range(count)]
    streams = [bytes(imagecodecs.jpegls_encode(frame)) for frame in frames]
    path = write_compressed(tmp_path / "a.dcm", JPEG_LS, streams, (32, 32), HEADER, pieces, NumberOfFrames=count)
    np.testing.assert_array_equal(read(path), np.clip(np.stack(frames) - 1024.0, HU_LOW, HU_HIGH))


def test_only_frames_with_a_damaged_offset_are_refused(tmp_path):
    streams = [bytes(imagecodecs.jpegls_encode(noisy_ramp(32, 32, 1000 * (k + 1)))) for k in range(3)]
    path = write_compressed(tmp_path / "a.dcm", JPEG_LS, streams, (32, 32), HEADER, 2, NumberOfFrames=3)
    content = path.read_bytes()
    table = content.index(b"\xfe\xff\x00\xe0\x0c\0\0\0") + 8  # three offsets, the first is 0
    path.write_bytes(content[: table + 8] + b"\1\0\0\0" + content[table + 12 :])
    found = dicom.hounsfields(path, range(3))
    assert [isinstance(frame, np.ndarray) for frame in found] == [True, False, False]


def test_an_unknown_compression_is_refused_with_its_name(tmp_path):
    path = write_compressed(tmp_path / "a.dcm", "1.2.840.10008.1.2.4.100", [b"video"], (8, 8))
    with pytest.raises(Unreadable, match=r"1\.2\.840\.10008\.1\.2\.4\.100") as refused:
        dicom.geometry(path)
    assert refused.value.reason is Reason.NO_DECODER


@pytest.mark.skipif(not CQ500.is_dir(), reason="../shared/data/cq500 is not here")
def test_a_head_ct_in_jpeg_lossless_is_read_and_its_stray_file_has_another_patient():
    files = sorted(CQ500.glob("*.dcm"))
    assert len(files) > 40
    patients = {path.name: dicom.geometry(path).patient_id for path in files}
    assert [name for name, patient in patients.items() if patient != "CQ500-CT-0"] == ["CT000000.dcm"]
    for path in files[1:]:
        found = dicom.hounsfield(path)
        assert found.shape == (512, 512)
        assert (found.min(), found.max() > 1000) == (HU_LOW, True)
    # liblj92 is an independent implementation
    dataset = pydicom.dcmread(files[20])
    stored = imagecodecs.ljpeg_decode(pydicom.encaps.get_frame(dataset.PixelData, 0, number_of_frames=1)).view(np.int16)
    expected = np.clip(stored.astype(int) + int(dataset.RescaleIntercept), HU_LOW, HU_HIGH)
    np.testing.assert_array_equal(dicom.hounsfield(files[20]), expected)
