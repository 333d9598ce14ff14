"""The only place that speaks DICOM: Hounsfield units and geometry out of a file, and a slice back into one.

A file is read, or it is refused with one of `Reason`; nothing is guessed in silence.
"""

import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pydicom
from pydicom.config import IGNORE, settings
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian

Result = TypeVar("Result")

HU_LOW, HU_HIGH = -1024, 3071  # what the cache keeps: air to the densest bone, 12 bits
LARGEST_SIDE = 4096  # pixels; a header that claims more is damaged

# RSNA's identifiers are no valid UIDs; the reader would warn at each of 870,000 files.
settings.reading_validation_mode = IGNORE
settings.writing_validation_mode = IGNORE


class Reason(StrEnum):
    """Why a file is quarantined: the closed list."""

    UNREADABLE = "the file cannot be opened"
    NOT_DICOM = "this is not a DICOM file, or its header is damaged"
    NOT_CT_SLICE = "this is not a CT slice (another modality, a localizer or no picture)"
    NO_IDENTITY = "patient, study or series identifier is missing"
    BAD_SIZE = "rows, columns or bits are missing or impossible"
    BAD_RESCALE = "slope or intercept is not a usable number"
    TRUNCATED = "there are fewer pixels than the header says"
    NOT_DECODED = "the compressed pixels cannot be decoded"
    LABEL_WITHOUT_FILE = "the competition names this image, and there is no file"


class Unreadable(ValueError):
    """A DICOM file that cannot serve as a slice."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(f"{reason}{f' ({detail})' if detail else ''}")
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type["Unreadable"], tuple[Reason, str]]:
        return type(self), (self.reason, self.detail)


@dataclass(frozen=True)
class Geometry:
    """Identity and place of one slice, from its header."""

    patient_id: str
    study_id: str
    series_id: str
    position: float | None  # mm along the slice normal; None where the file does not say
    instance: int | None
    tilt: float  # degrees between the slice normal and the scanner's axis
    row_spacing: float  # mm; NaN where the file does not say
    column_spacing: float


@dataclass(frozen=True)
class SliceHeader:
    """What `write` puts beside the pixels. Lengths in mm, `slope` and `intercept` give HU."""

    image_id: str
    patient_id: str
    study_id: str
    series_id: str
    position: tuple[float, float, float]
    orientation: tuple[float, float, float, float, float, float]
    pixel_spacing: tuple[float, float]
    bits_stored: int
    signed: bool
    slope: float
    intercept: float
    window_center: tuple[float, ...]
    window_width: tuple[float, ...]
    explicit_vr: bool


def _refusing(read: Callable[[Path], Result]) -> Callable[[Path], Result]:
    """Let a reader of a file raise Unreadable and nothing else.

    A damaged element raises wherever it is first touched, and whatever the parser stumbles over: ValueError, KeyError,
    NotImplementedError, struct.error and numpy's own were seen among thousands of mutated headers.
    """

    @functools.wraps(read)
    def reader(path: Path) -> Result:
        try:
            return read(path)
        except Unreadable:
            raise
        except OSError as error:
            raise Unreadable(Reason.UNREADABLE, error.strerror or type(error).__name__) from None
        except Exception as error:
            raise Unreadable(Reason.NOT_DICOM, type(error).__name__) from None

    return reader


def _open(path: Path, *, pixels: bool) -> Dataset:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pydicom.dcmread(path, stop_before_pixels=not pixels)


def _numbers(dataset: Dataset, keyword: str, count: int) -> np.ndarray | None:
    """`count` finite numbers of an element, or None."""
    try:
        value = dataset.get(keyword)
        numbers = np.atleast_1d(np.asarray(value, dtype=np.float64)) if value is not None else np.empty(0)
    except Exception:  # an element that does not parse is an element that is not there
        return None
    return numbers if numbers.shape == (count,) and np.isfinite(numbers).all() else None


def _text(dataset: Dataset, keyword: str) -> str:
    try:
        value = dataset.get(keyword)
    except Exception:
        return ""
    return "" if value is None else str(value).strip()


@_refusing
def geometry(path: Path) -> Geometry:
    """Read the header alone. Position is ImagePositionPatient projected on the normal of ImageOrientationPatient.

    Raises Unreadable.
    """
    return _geometry(_open(path, pixels=False))


def _geometry(dataset: Dataset) -> Geometry:
    identity = [_text(dataset, k) for k in ("PatientID", "StudyInstanceUID", "SeriesInstanceUID")]
    _refuse_other_than_ct(dataset)
    if not all(identity):
        raise Unreadable(Reason.NO_IDENTITY)
    origin = _numbers(dataset, "ImagePositionPatient", 3)
    axes = _numbers(dataset, "ImageOrientationPatient", 6)
    normal = np.array([0.0, 0.0, 1.0]) if axes is None else np.cross(axes[:3], axes[3:])
    length = float(np.linalg.norm(normal))
    normal = normal / length if length > 0.5 else np.array([0.0, 0.0, 1.0])
    spacing = _numbers(dataset, "PixelSpacing", 2)
    instance = _numbers(dataset, "InstanceNumber", 1)
    return Geometry(
        *identity,
        position=None if origin is None else float(origin @ normal),
        instance=None if instance is None else int(instance[0]),
        tilt=float(np.degrees(np.arccos(np.clip(abs(normal[2]), 0, 1)))),
        row_spacing=float("nan") if spacing is None else float(spacing[0]),
        column_spacing=float("nan") if spacing is None else float(spacing[1]),
    )


def _refuse_other_than_ct(dataset: Dataset) -> None:
    modality = _text(dataset, "Modality")
    if modality and modality != "CT":
        raise Unreadable(Reason.NOT_CT_SLICE, f"modality {modality[:16]}")
    kind = _text(dataset, "ImageType").upper()
    if "LOCALIZER" in kind or "SCOUT" in kind:
        raise Unreadable(Reason.NOT_CT_SLICE, "a localizer")


@_refusing
def hounsfield(path: Path) -> np.ndarray:
    """The slice in Hounsfield units: int16 [rows, columns], clipped to -1024..3071. Raises Unreadable."""
    dataset = _open(path, pixels=True)
    stored = _stored(dataset)
    slope, intercept = _rescale(dataset)
    if not bool(dataset.get("PixelRepresentation", 0)) and dataset.get("BitsStored") == 12 and intercept > -100:
        # Some RSNA files of this kind are stored 1000 too low, wrapped at 4096, and name an intercept near 0.
        # Undone as in public solutions of the 2019 challenge: shift, wrap, intercept -1000.
        stored, intercept = (stored.astype(np.int32) + 1000) % 4096, -1000.0
    if slope == 1 and intercept == int(intercept):
        units = stored.astype(np.int32) + int(intercept)
    else:
        units = np.rint(stored * slope + intercept)
    return np.clip(units, HU_LOW, HU_HIGH).astype(np.int16)


def _rescale(dataset: Dataset) -> tuple[float, float]:
    """Slope and intercept. Absent ones mean that the values are Hounsfield units already."""
    pair: list[float] = []
    for keyword, absent in (("RescaleSlope", 1.0), ("RescaleIntercept", 0.0)):
        if keyword not in dataset:
            pair.append(absent)
            continue
        number = _numbers(dataset, keyword, 1)
        if number is None:
            raise Unreadable(Reason.BAD_RESCALE, f"{keyword} is {_text(dataset, keyword)[:24]!r}")
        pair.append(float(number[0]))
    slope, intercept = pair
    if slope == 0 or abs(slope) > 1e3 or abs(intercept) > 1e5:
        raise Unreadable(Reason.BAD_RESCALE, f"slope {slope:g}, intercept {intercept:g}")
    return slope, intercept


def _stored(dataset: Dataset) -> np.ndarray:
    """Stored values [rows, columns] of an uncompressed or compressed single-frame slice."""
    rows, columns, allocated = (_whole(dataset, k) for k in ("Rows", "Columns", "BitsAllocated"))
    if not (0 < rows <= LARGEST_SIDE and 0 < columns <= LARGEST_SIDE) or allocated not in (8, 16):
        raise Unreadable(Reason.BAD_SIZE, f"{rows} x {columns}, {allocated} bits")
    if _whole(dataset, "SamplesPerPixel", 1) != 1 or _whole(dataset, "NumberOfFrames", 1) != 1:
        raise Unreadable(Reason.NOT_CT_SLICE, "colour or several frames")
    if "PixelData" not in dataset:
        raise Unreadable(Reason.TRUNCATED, "no pixel data")
    syntax = getattr(dataset.file_meta, "TransferSyntaxUID", ImplicitVRLittleEndian)
    if syntax.is_compressed and not syntax.is_deflated:
        return _decoded(dataset)
    order, sign = "<" if syntax.is_little_endian else ">", "i" if _whole(dataset, "PixelRepresentation", 0) else "u"
    kind = np.dtype(f"{order}{sign}{allocated // 8}")
    data: Any = dataset.PixelData
    wanted = rows * columns * kind.itemsize
    if len(data) < wanted:
        raise Unreadable(Reason.TRUNCATED, f"{len(data)} of {wanted} bytes")
    return _significant(np.frombuffer(data, kind, rows * columns).reshape(rows, columns), dataset)


def _whole(dataset: Dataset, keyword: str, absent: int = -1) -> int:
    number = _numbers(dataset, keyword, 1)
    return absent if number is None else int(number[0])


def _significant(stored: np.ndarray, dataset: Dataset) -> np.ndarray:
    """Drop what lies above BitsStored (overlays were kept there once) and extend the sign."""
    allocated, bits = stored.dtype.itemsize * 8, _whole(dataset, "BitsStored")
    if not 1 <= bits <= allocated:
        raise Unreadable(Reason.BAD_SIZE, f"{bits} bits stored in {allocated}")
    if bits == allocated:
        return stored
    shift = allocated - bits
    native = stored.astype(stored.dtype.newbyteorder("="))
    return (native << shift) >> shift


def _decoded(dataset: Dataset) -> np.ndarray:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return dataset.pixel_array
    # Each decoder plug-in raises its own exceptions.
    except Exception as error:
        raise Unreadable(Reason.NOT_DECODED, " ".join(str(error).split())[:80]) from None


def write(path: Path, stored: np.ndarray, header: SliceHeader) -> None:
    """Write an uncompressed CT slice as RSNA 2019 has them: stored values uint16 or int16 [rows, columns]."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = UID(header.image_id)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian if header.explicit_vr else ImplicitVRLittleEndian
    meta.ImplementationClassUID = UID("1.2.3.4")
    slice_ = Dataset()
    slice_.file_meta = meta
    slice_.SOPClassUID = CTImageStorage
    slice_.SOPInstanceUID = header.image_id
    slice_.Modality = "CT"
    slice_.PatientID = header.patient_id
    slice_.StudyInstanceUID = header.study_id
    slice_.SeriesInstanceUID = header.series_id
    slice_.StudyID = ""
    slice_.ImagePositionPatient = [f"{v:.6f}" for v in header.position]
    slice_.ImageOrientationPatient = [f"{v:.6f}" for v in header.orientation]
    slice_.SamplesPerPixel = 1
    slice_.PhotometricInterpretation = "MONOCHROME2"
    slice_.Rows, slice_.Columns = stored.shape
    slice_.PixelSpacing = [f"{v:.6f}" for v in header.pixel_spacing]
    slice_.BitsAllocated = 16
    slice_.BitsStored = header.bits_stored
    slice_.HighBit = header.bits_stored - 1
    slice_.PixelRepresentation = int(header.signed)
    slice_.WindowCenter = [f"{v:05g}" for v in header.window_center]
    slice_.WindowWidth = [f"{v:05g}" for v in header.window_width]
    slice_.RescaleIntercept = f"{header.intercept:g}"
    slice_.RescaleSlope = f"{header.slope:g}"
    slice_.PixelData = np.ascontiguousarray(stored, dtype="<i2" if header.signed else "<u2").tobytes()
    slice_["PixelData"].VR = "OW"
    slice_.save_as(path, enforce_file_format=True)
