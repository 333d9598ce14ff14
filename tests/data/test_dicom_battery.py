"""Real files: pydicom's own test files, and a head CT of CQ500 where it is at hand; every compression."""

import time
import warnings
from dataclasses import replace
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
import pytest
from pydicom.encaps import encapsulate
from pydicom.pixels.utils import pixel_array

import plain_slice
from ich.data import decoders, dicom
from ich.data.dicom import HU_HIGH, HU_LOW, Reason, Unreadable

SHIPPED = Path(pydicom.__file__).parent / "data"
FILES = sorted(p for p in SHIPPED.rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc", ".json"))
CQ500 = Path(__file__).parents[2] / "../shared/data/cq500/CQ500CT0"
LONGEST = 5  # seconds a file

HEADER = replace(plain_slice.HEADER, image_id="1.2.3", bits_stored=12, signed=False, intercept=-1024.0)


def read(path) -> np.ndarray | Reason:
    """The slice, or why it is refused; fails where it takes too long."""
    start = time.monotonic()
    try:
        dicom.geometry(path)
        return dicom.hounsfield(path)
    except Unreadable as refused:
        return refused.reason
    finally:
        assert time.monotonic() - start < LONGEST, path


def by_pydicom(path) -> np.ndarray | None:
    """Hounsfield units by pydicom and its own decoders; None where it has none for the file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = pydicom.dcmread(path)
        try:
            stored = pixel_array(dataset)
        except Exception:  # whatever its decoders raise
            return None
    slope, intercept = float(dataset.get("RescaleSlope", 1)), float(dataset.get("RescaleIntercept", 0))
    if dataset.PixelRepresentation == 0 and dataset.BitsStored == 12 and abs(intercept) < 100:
        stored, intercept = (stored.astype(int) + 1000) % 4096, -1000  # taken for one of RSNA's wrapped files
    return np.clip(np.rint(stored * slope + intercept), HU_LOW, HU_HIGH).astype(np.int16)


def as_ct(source: Path, path: Path) -> bool:
    """A copy of a grey picture that calls itself a CT slice; False where the file holds none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            dataset = pydicom.dcmread(source)
            if "PixelData" not in dataset or dataset.SamplesPerPixel != 1 or dataset.BitsAllocated not in (8, 16):
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


def test_pydicoms_files_are_read_or_refused_and_those_that_are_read_are_equal():
    read_files = {path.name: found for path in FILES if isinstance(found := read(path), np.ndarray)}
    assert len(FILES) > 150
    assert {"CT_small.dcm", "J2K_pixelrep_mismatch.dcm", "693_J2KI.dcm"} <= set(read_files)
    compared = []
    for path in FILES:
        if path.name in read_files and (other := by_pydicom(path)) is not None:
            np.testing.assert_array_equal(read_files[path.name], other, err_msg=path.name)
            compared.append(path.name)
    assert len(compared) >= 3


def test_every_grey_picture_of_pydicoms_files_has_the_units_that_pydicom_finds(tmp_path):
    equal, refused = set(), {}
    for source in FILES:
        path = tmp_path / source.name
        if as_ct(source, path):
            found, other = read(path), by_pydicom(path)
            if isinstance(found, Reason):
                refused[source.name] = found
            elif other is not None:
                frames = other if other.ndim == 3 else other[None]
                for k, frame in enumerate(frames):
                    np.testing.assert_array_equal(dicom.hounsfield(path, k), frame, err_msg=f"{source.name} {k}")
                equal.add(source.name)
    assert len(equal) >= 30
    assert {"MR_small_RLE.dcm", "MR_small_jp2klossless.dcm", "MR_small_bigendian.dcm", "image_dfl.dcm"} <= equal
    assert refused == {
        "MR_truncated.dcm": Reason.TRUNCATED,
        "JPEG2000-embedded-sequence-delimiter.dcm": Reason.NOT_DECODED,  # a picture of 3.8e12 pixels
    }


# ---- every compression


def smooth(rows: int, columns: int, high: int) -> np.ndarray:
    """Noise on a ramp: values 0..high, with both ends."""
    rng = np.random.default_rng(5)
    ramp = np.linspace(0, high, rows * columns).reshape(rows, columns)
    stored = np.clip(ramp + rng.normal(0, high / 50, ramp.shape), 0, high).astype(np.uint16)
    stored[0, 0], stored[-1, -1] = 0, high
    return stored


def rle(stored: np.ndarray) -> bytes:
    from pydicom.pixels.encoders.base import RLELosslessEncoder

    return RLELosslessEncoder.encode(
        stored,
        rows=stored.shape[0],
        columns=stored.shape[1],
        samples_per_pixel=1,
        number_of_frames=1,
        bits_allocated=16,
        bits_stored=16,
        pixel_representation=0,
        photometric_interpretation="MONOCHROME2",
    )


LOSSLESS = {
    "1.2.840.10008.1.2.5": rle,
    "1.2.840.10008.1.2.4.57": lambda a: imagecodecs.jpeg8_encode(a, lossless=True, predictor=4),
    "1.2.840.10008.1.2.4.70": lambda a: imagecodecs.jpeg8_encode(a, lossless=True, predictor=1),
    "1.2.840.10008.1.2.4.80": imagecodecs.jpegls_encode,
    "1.2.840.10008.1.2.4.81": imagecodecs.jpegls_encode,
    "1.2.840.10008.1.2.4.90": lambda a: imagecodecs.jpeg2k_encode(a, reversible=True, codecformat="j2k"),
    "1.2.840.10008.1.2.4.91": lambda a: imagecodecs.jpeg2k_encode(a, reversible=True, codecformat="jp2"),
    "1.2.840.10008.1.2.4.201": lambda a: imagecodecs.htj2k_encode(a, reversible=True),
    "1.2.840.10008.1.2.4.202": lambda a: imagecodecs.htj2k_encode(a, reversible=True),
    "1.2.840.10008.1.2.4.203": lambda a: imagecodecs.htj2k_encode(a, reversible=True),
}
LOSSY = {
    "1.2.840.10008.1.2.4.50": (8, lambda a: imagecodecs.jpeg8_encode(a.astype(np.uint8), level=98)),
    "1.2.840.10008.1.2.4.51": (12, lambda a: imagecodecs.jpeg8_encode(a, level=98, bitspersample=12)),
}


def compressed(path: Path, syntax: str, frames: list[bytes], shape: tuple[int, int], header=HEADER, **elements) -> Path:
    """Write a slice whose pixels are `frames`, compressed."""
    dicom.write(path, np.zeros(shape, np.uint16), header)
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.UID(syntax)
    dataset.PixelData = encapsulate(frames)
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    dataset.save_as(path)
    return path


def test_every_syntax_that_is_decoded_is_tested():
    assert {*LOSSLESS, *LOSSY} == set(decoders.SYNTAXES)


@pytest.mark.parametrize("shape", [(64, 48), (31, 17)])
@pytest.mark.parametrize("bits", [12, 16])
@pytest.mark.parametrize("syntax", LOSSLESS)
def test_lossless_compression_changes_no_unit(tmp_path, syntax, bits, shape):
    stored = smooth(*shape, 2**bits - 1)
    path = compressed(
        tmp_path / "a.dcm", syntax, [bytes(LOSSLESS[syntax](stored))], shape, replace(HEADER, bits_stored=bits)
    )
    expected = np.clip(stored.astype(int) - 1024, HU_LOW, HU_HIGH)
    np.testing.assert_array_equal(dicom.hounsfield(path), expected)
    other = by_pydicom(path)
    if other is not None:
        np.testing.assert_array_equal(other, expected)


@pytest.mark.parametrize("syntax", LOSSLESS)
def test_compressed_signed_values_keep_their_sign(tmp_path, syntax):
    values = smooth(32, 32, 4000).astype(np.int16) - 1500
    stored = values.view(np.uint16)
    header = replace(HEADER, bits_stored=16, signed=True, intercept=0.0)
    path = compressed(tmp_path / "a.dcm", syntax, [bytes(LOSSLESS[syntax](stored))], (32, 32), header)
    np.testing.assert_array_equal(dicom.hounsfield(path), np.clip(values, HU_LOW, HU_HIGH))


@pytest.mark.parametrize("syntax", LOSSY)
def test_lossy_jpeg_is_near_and_equal_to_what_pydicom_decodes(tmp_path, syntax):
    bits, encode = LOSSY[syntax]
    stored = smooth(64, 64, 2**bits - 1)
    header = replace(HEADER, bits_stored=bits, signed=False, intercept=-100.0)
    path = compressed(tmp_path / "a.dcm", syntax, [bytes(encode(stored))], (64, 64), header)
    path = path if bits == 12 else compressed(path, syntax, [bytes(encode(stored))], (64, 64), header, BitsAllocated=8)
    expected = np.clip(stored.astype(int) - (1000 if bits == 12 else 100), HU_LOW, HU_HIGH)
    found = dicom.hounsfield(path)
    if bits == 8:
        assert np.abs(found - expected).mean() < 2
        other = by_pydicom(path)
        assert other is not None
        np.testing.assert_array_equal(found, other)
    assert found.shape == (64, 64)


@pytest.mark.parametrize("syntax", [*LOSSLESS, *LOSSY])
def test_a_cut_stream_is_refused_and_not_filled_up(tmp_path, syntax):
    stored = smooth(64, 48, 255)
    whole = bytes(LOSSLESS[syntax](stored) if syntax in LOSSLESS else LOSSY[syntax][1](stored))
    for part in (0.9, 0.5, 0.1):
        path = compressed(tmp_path / "a.dcm", syntax, [whole[: int(len(whole) * part) // 2 * 2]], (64, 48))
        assert read(path) == Reason.NOT_DECODED


def test_a_stream_of_another_size_than_the_header_is_refused(tmp_path):
    stream = bytes(imagecodecs.jpegls_encode(smooth(64, 48, 4095)))
    assert read(compressed(tmp_path / "a.dcm", "1.2.840.10008.1.2.4.80", [stream], (48, 64))) == Reason.NOT_DECODED


@pytest.mark.parametrize(("count", "pieces"), [(3, 1), (3, 2), (1, 3)])
def test_frames_of_a_compressed_file_are_told_apart(tmp_path, count, pieces):
    frames = [smooth(32, 32, 1000 * (k + 1)) for k in range(count)]
    streams = [bytes(imagecodecs.jpegls_encode(frame)) for frame in frames]
    path = compressed(tmp_path / "a.dcm", "1.2.840.10008.1.2.4.80", streams, (32, 32), NumberOfFrames=count)
    dataset = pydicom.dcmread(path)
    dataset.PixelData = encapsulate(streams, fragments_per_frame=pieces)
    dataset.save_as(path)
    for k, frame in enumerate(frames):
        np.testing.assert_array_equal(dicom.hounsfield(path, k), np.clip(frame.astype(int) - 1024, HU_LOW, HU_HIGH))


def test_an_unknown_compression_is_refused_with_its_name(tmp_path):
    path = compressed(tmp_path / "a.dcm", "1.2.840.10008.1.2.4.100", [b"video"], (8, 8))
    with pytest.raises(Unreadable, match=r"no decoder.*1\.2\.840\.10008\.1\.2\.4\.100"):
        dicom.geometry(path)


# ---- a head CT as a hospital wrote it


@pytest.mark.skipif(not CQ500.is_dir(), reason="../shared/data/cq500 is not here")
def test_a_head_ct_in_jpeg_lossless_is_read_and_the_stray_file_is_another_patients():
    files = sorted(CQ500.glob("*.dcm"))
    assert len(files) > 40
    patients = {path.name: dicom.geometry(path).patient_id for path in files}
    assert [name for name, patient in patients.items() if patient != "CQ500-CT-0"] == ["CT000000.dcm"]
    for path in files[1:]:
        found = dicom.hounsfield(path)
        assert found.shape == (512, 512)
        assert (found.min(), found.max() > 1000) == (HU_LOW, True)
    # liblj92 is an implementation of its own
    dataset = pydicom.dcmread(files[20])
    stored = imagecodecs.ljpeg_decode(pydicom.encaps.get_frame(dataset.PixelData, 0, number_of_frames=1)).view(np.int16)
    expected = np.clip(stored.astype(int) + int(dataset.RescaleIntercept), HU_LOW, HU_HIGH)
    np.testing.assert_array_equal(dicom.hounsfield(files[20]), expected)
