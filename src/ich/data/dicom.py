"""The only place that speaks DICOM: Hounsfield units and geometry out of a file, and a slice back into one.

A file is read, or it is refused with one of `Reason`; nothing is guessed in silence. The header is read and judged
before memory is taken for pixels, and pixels that cannot be there by the file's size are refused with the header.
"""

import contextlib
import functools
import math
import os
import stat
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, ParamSpec, TypeVar

import numpy as np
import pydicom
from pydicom.config import IGNORE, settings
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from ich.data import decoders, fragments, units
from ich.data.elements import TAGS, counted, holder, numbers, text, whole
from ich.data.refusal import Reason, Unreadable, exhausted
from ich.data.units import HU_HIGH, HU_LOW, Scale

__all__ = ["HU_HIGH", "HU_LOW", "Geometry", "Reason", "SliceHeader", "Unreadable"]

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

LARGEST_SIDE = 4096  # pixels; a header that claims more is damaged
LARGEST_FILE = 1 << 30  # pixels of all frames: 4,096 slices of 512 x 512
LARGEST_INFLATED = 1 << 29  # bytes of a deflated file
FARTHEST = 1e5  # mm; no scanner is a hundred metres long
CT_CLASSES = tuple(f"1.2.840.10008.5.1.4.1.1.2{suffix}" for suffix in ("", ".1", ".2"))
DEFLATED = "1.2.840.10008.1.2.1.99"
NATIVE = {"1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2", DEFLATED}
NO_SLICES = ("LOCALIZER", "SCOUT", "TOPOGRAM", "SCREEN SAVE")  # in ImageType
NO_UNITS = ("OD", "MGML", "Z_EFF", "ED", "EDW", "PCT")  # RescaleType: density, iodine, effective atomic number, ...

# RSNA's identifiers are no valid UIDs; the reader would warn at each of 870,000 files.
settings.reading_validation_mode = IGNORE
settings.writing_validation_mode = IGNORE


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
    acquisition: int | None = None  # AcquisitionNumber; of two slices at one position, the earlier comes first
    instance_uid: str = ""  # SOPInstanceUID
    rows: int = 0  # pixels; 0 where the file does not say
    columns: int = 0
    frame: int = 0  # of a multi-frame file, from 0
    further: tuple["Geometry", ...] = ()  # with the first frame: the others


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


@dataclass(frozen=True)
class _Opened:
    """A file whose header was judged. `stream` holds the pixels: the file, or what was inflated of it."""

    dataset: Dataset
    stream: BinaryIO
    rows: int
    columns: int
    frames: int
    kind: np.dtype  # of the stored values as they lie in the file
    syntax: str
    offset: int  # of the first uncompressed pixel
    pieces: fragments.Fragments | None  # of compressed pixels


def _refusing(read: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Let a reader of a file raise Unreadable and nothing else.

    A damaged element raises wherever it is first touched, and whatever the parser stumbles over: ValueError, KeyError,
    NotImplementedError, struct.error and numpy's own were seen among thousands of mutated headers. A machine that has
    run out of something is not the file's fault: that ends the run, for else sound slices would be left out.
    """

    @functools.wraps(read)
    def reader(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        try:
            return read(*args, **kwargs)
        except (Unreadable, decoders.NoDecodingProcess):
            raise
        except (NameError, ImportError):  # a fault of this program, not of the file
            raise
        except Exception as error:
            if exhausted(error):
                raise
            if isinstance(error, OSError):
                raise Unreadable(Reason.UNREADABLE, error.strerror or type(error).__name__) from None
            raise Unreadable(Reason.NOT_DICOM, type(error).__name__) from None

    return reader


# ---- what a caller asks


@_refusing
def geometry(path: Path) -> Geometry:
    """Read the header alone. Position is ImagePositionPatient projected on the normal of ImageOrientationPatient.

    Raises Unreadable, also for what would prevent `hounsfield`, as far as header and file size tell.
    """
    with _opened(path) as file:
        return _all_frames(file)


@_refusing
def hounsfield(path: Path, frame: int = 0) -> np.ndarray:
    """The slice in Hounsfield units: int16 [rows, columns], clipped to -1024..3071. Raises Unreadable."""
    with _opened(path) as file:
        return _hounsfield(file, frame)


def hounsfields(path: Path, frames: Sequence[int]) -> list[np.ndarray | Unreadable]:
    """`hounsfield` of several frames of a file, whose header is read once; one that is refused gives why."""
    found: list[np.ndarray | Unreadable] = []
    try:
        _collect(path, frames, found)
    except Unreadable as refusal:
        found += [refusal] * (len(frames) - len(found))
    return found


@_refusing
def _collect(path: Path, frames: Sequence[int], found: list[np.ndarray | Unreadable]) -> None:
    one = _refusing(_hounsfield)
    with _opened(path) as file:
        for frame in frames:
            try:
                found.append(one(file, frame))
            except Unreadable as refusal:
                found.append(refusal)


@_refusing
def survey(path: Path, look: Callable[[np.ndarray], Result]) -> tuple[Geometry, list[Result | Unreadable]]:
    """`geometry`, and what `look` says of each frame's Hounsfield units (a refused frame gives its refusal).

    The file is opened once, and one frame is held at a time. Raises Unreadable.
    """
    one = _refusing(_hounsfield)
    seen: list[Result | Unreadable] = []
    with _opened(path) as file:
        first = _all_frames(file)
        for frame in range(file.frames):
            try:
                seen.append(look(one(file, frame)))
            except Unreadable as refusal:
                seen.append(refusal)
    return first, seen


# ---- the header


@contextmanager
def _opened(path: Path) -> Iterator[_Opened]:
    if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for ever
        raise Unreadable(Reason.UNREADABLE, "not a regular file")
    with path.open("rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _refuse_inflation(file)
        dataset = pydicom.dcmread(file, stop_before_pixels=True)
        # pydicom leaves the stream at the element of the pixels; a deflated one it has inflated into memory.
        inflated: Any = dataset.buffer
        yield _judged(dataset, file if inflated is None else inflated)


def _refuse_inflation(file: Any) -> None:
    """A deflated file of a megabyte may inflate to a gigabyte, and the parser would take the memory for it."""
    head = file.peek(1024)
    if DEFLATED.encode() not in head or len(head) < 144:
        return
    file.seek(144 + struct.unpack_from("<L", head, 140)[0])
    inflater, total = zlib.decompressobj(-zlib.MAX_WBITS), 0
    with contextlib.suppress(zlib.error):  # then it is not deflated, or the parser says that it is damaged
        while total <= LARGEST_INFLATED and (block := inflater.unconsumed_tail or file.read(1 << 16)):
            total += len(inflater.decompress(block, 1 << 20))
    if total > LARGEST_INFLATED:
        raise Unreadable(Reason.BAD_SIZE, f"inflates to more than {LARGEST_INFLATED} bytes")
    file.seek(0)


def _judged(dataset: Dataset, stream: BinaryIO) -> _Opened:
    """Refuse what cannot be a CT slice, or whose pixels cannot be there. Raises Unreadable."""
    _refuse_other_than_ct(dataset)
    rows, columns, allocated = (whole(dataset, k) for k in ("Rows", "Columns", "BitsAllocated"))
    frames, bits = whole(dataset, "NumberOfFrames", 1), whole(dataset, "BitsStored")
    if not (0 < rows <= LARGEST_SIDE and 0 < columns <= LARGEST_SIDE) or allocated not in (8, 16):
        raise Unreadable(Reason.BAD_SIZE, f"{rows} x {columns}, {allocated} bits")
    if not 1 <= bits <= allocated:
        raise Unreadable(Reason.BAD_SIZE, f"{bits} bits stored in {allocated}")
    if frames < 1 or rows * columns * frames > LARGEST_FILE:
        raise Unreadable(Reason.BAD_SIZE, f"{frames} frames of {rows} x {columns}")
    syntax = str(getattr(dataset.file_meta, "TransferSyntaxUID", ImplicitVRLittleEndian))
    if syntax not in NATIVE and syntax not in decoders.SYNTAXES:
        raise Unreadable(Reason.NO_DECODER, f"transfer syntax {syntax[:64]}")
    implicit, little = dataset.original_encoding
    kind = np.dtype(f"{'<' if little else '>'}u{allocated // 8}")
    length = _pixel_element(stream, bool(implicit), bool(little))
    offset = stream.tell()
    size = stream.seek(0, os.SEEK_END)
    stream.seek(offset)
    pieces = None
    if syntax in decoders.SYNTAXES:
        if length is not None:
            raise Unreadable(Reason.NOT_DECODED, "compressed pixels that are not in fragments")
        pieces = fragments.find(stream, size, frames, _extended_table(dataset))
    else:
        wanted = rows * columns * frames * kind.itemsize
        there = min(length or 0, size - offset)
        if there < wanted:
            raise Unreadable(Reason.TRUNCATED, f"{there} of {wanted} bytes")
    return _Opened(dataset, stream, rows, columns, frames, kind, syntax, offset, pieces)


def _refuse_other_than_ct(dataset: Dataset) -> None:
    modality = text(dataset, "Modality").upper()
    if modality != "CT" and (modality or text(dataset, "SOPClassUID") not in CT_CLASSES):
        raise Unreadable(Reason.NOT_CT_SLICE, f"modality {modality[:16]}" if modality else "no modality")
    _refuse_localizer(text(dataset, "ImageType"))
    if whole(dataset, "SamplesPerPixel", 1) != 1:
        raise Unreadable(Reason.NOT_CT_SLICE, "colour")
    shown = text(dataset, "PhotometricInterpretation")
    if shown and not shown.startswith("MONOCHROME"):
        raise Unreadable(Reason.NOT_CT_SLICE, f"photometric interpretation {shown[:16]}")


def _refuse_localizer(kind: str) -> None:
    said = next((word for word in NO_SLICES if word in kind.upper()), None)
    if said:
        raise Unreadable(Reason.NOT_CT_SLICE, f"a {said.lower()}")


def _pixel_element(stream: BinaryIO, implicit: bool, little: bool) -> int | None:
    """Go to the pixels' value; its length in bytes, None where it is undefined (compressed)."""
    order = "<" if little else ">"
    head = stream.read(8)
    if len(head) < 8 or struct.unpack(f"{order}HH", head[:4]) != (0x7FE0, 0x0010):
        raise Unreadable(Reason.TRUNCATED, "no pixel data")
    if not implicit and head[4:6] not in (b"OW", b"OB", b"UN"):
        raise Unreadable(Reason.NOT_DICOM, f"pixels of kind {head[4:6]!r}")
    (length,) = struct.unpack(f"{order}L", head[4:] if implicit else stream.read(4))
    return None if length == 0xFFFFFFFF else int(length)


def _extended_table(dataset: Dataset) -> tuple[int, ...]:
    table = dataset.get("ExtendedOffsetTable") or b""
    return struct.unpack(f"<{len(table) // 8}Q", table[: len(table) // 8 * 8])


def _all_frames(file: _Opened) -> Geometry:
    first, *further = (_geometry(file, frame) for frame in range(file.frames))
    return replace(first, further=tuple(further)) if further else first


def _geometry(file: _Opened, frame: int) -> Geometry:
    dataset = file.dataset
    identity = [text(dataset, k) for k in ("PatientID", "StudyInstanceUID", "SeriesInstanceUID")]
    if not all(identity):
        raise Unreadable(Reason.NO_IDENTITY)
    _scale(dataset, frame)
    _refuse_localizer(text(holder(dataset, "FrameType", frame), "FrameType"))
    origin, axes, spacing = (
        numbers(holder(dataset, keyword, frame), keyword, count)
        for keyword, count in (("ImagePositionPatient", 3), ("ImageOrientationPatient", 6), ("PixelSpacing", 2))
    )
    normal = _normal(axes)
    place = None if origin is None else sum(a * b for a, b in zip(origin, normal, strict=True))
    known = spacing is not None and all(0 < side < 100 for side in spacing)
    return Geometry(
        *identity,
        position=place if place is not None and abs(place) <= FARTHEST else None,
        instance=frame + 1 if file.frames > 1 else counted(dataset, "InstanceNumber"),
        tilt=math.degrees(math.acos(min(abs(normal[2]), 1.0))),
        row_spacing=spacing[0] if spacing and known else math.nan,
        column_spacing=spacing[1] if spacing and known else math.nan,
        acquisition=counted(dataset, "AcquisitionNumber"),
        instance_uid=text(dataset, "SOPInstanceUID"),
        rows=file.rows,
        columns=file.columns,
        frame=frame,
    )


def _normal(axes: tuple[float, ...] | None) -> tuple[float, float, float]:
    """Unit vector along which the slices of these row and column axes are stacked; z where they say nothing."""
    if axes is None or max(map(abs, axes)) > 2:
        return 0.0, 0.0, 1.0
    ax, ay, az, bx, by, bz = axes
    x, y, z = ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx
    length = math.sqrt(x * x + y * y + z * z)
    return (x / length, y / length, z / length) if length > 0.5 else (0.0, 0.0, 1.0)


# ---- the pixels


def _hounsfield(file: _Opened, frame: int) -> np.ndarray:
    if not 0 <= frame < file.frames:
        raise ValueError(f"frame {frame} of {file.frames}")
    scale = _scale(file.dataset, frame)
    if file.pieces is not None:
        return units.hounsfield(_decoded(file, frame), scale)
    count = file.rows * file.columns
    file.stream.seek(file.offset + frame * count * file.kind.itemsize)
    data = file.stream.read(count * file.kind.itemsize)
    return units.hounsfield(np.frombuffer(data, file.kind, count).reshape(file.rows, file.columns), scale)


def _decoded(file: _Opened, frame: int) -> np.ndarray:
    assert file.pieces is not None
    data = file.pieces.read(file.stream, frame, file.frames)
    try:
        return decoders.decode(file.syntax, data, file.rows, file.columns, file.kind.itemsize)
    except decoders.DecoderHung as error:
        raise Unreadable(Reason.DECODER_HUNG, str(error)) from None
    except decoders.DecoderCrashed as error:
        raise Unreadable(Reason.DECODER_CRASHED, str(error)) from None
    except decoders.DecoderError as error:
        raise Unreadable(Reason.NOT_DECODED, str(error)) from None


def _scale(dataset: Dataset, frame: int) -> Scale:
    """How stored values become Hounsfield units. Absent slope and intercept mean that they are already."""
    pair: list[float] = []
    for keyword, absent in (("RescaleSlope", 1.0), ("RescaleIntercept", 0.0)):
        place = holder(dataset, keyword, frame)
        number = numbers(place, keyword)
        if number is None and TAGS[keyword] in place:
            raise Unreadable(Reason.BAD_RESCALE, f"{keyword} is {text(place, keyword)[:24]!r}")
        pair.append(absent if number is None else number[0])
    slope, intercept = pair
    if slope == 0 or not 1e-6 < abs(slope) < 1e3 or abs(intercept) > 1e5:
        raise Unreadable(Reason.BAD_RESCALE, f"slope {slope:g}, intercept {intercept:g}")
    kind = text(holder(dataset, "RescaleType", frame), "RescaleType").upper()
    if kind in NO_UNITS:
        raise Unreadable(Reason.NOT_HOUNSFIELD, f"rescale type {kind}")
    if "ModalityLUTSequence" in dataset:
        raise Unreadable(Reason.NOT_HOUNSFIELD, "a look-up table in place of slope and intercept")
    sign = whole(dataset, "PixelRepresentation", 0)
    if sign not in (0, 1):
        raise Unreadable(Reason.BAD_SIZE, f"PixelRepresentation is {sign}")
    signed = sign == 1
    return Scale(whole(dataset, "BitsStored"), signed, slope, intercept, _padding(dataset, signed))


def _padding(dataset: Dataset, signed: bool) -> tuple[int, int] | None:
    """Stored values from..to of PixelPaddingValue and PixelPaddingRangeLimit (PS3.3, C.7.5.1.1.2)."""
    value = numbers(dataset, "PixelPaddingValue")
    if value is None:
        return None
    limit = numbers(dataset, "PixelPaddingRangeLimit") or value
    # Files write the value of signed pixels as an unsigned number now and then; its 16 bits mean the same.
    ends = [(int(n[0]) + 0x8000) % 0x10000 - 0x8000 if signed else int(n[0]) % 0x10000 for n in (value, limit)]
    return min(ends), max(ends)


# ---- writing


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
