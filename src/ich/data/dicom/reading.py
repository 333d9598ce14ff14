"""Read CT files: validate the header, then read geometry from it, or Hounsfield units from the pixels."""

import math
import os
import re
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ich.data import decoders, fragments, units
from ich.data.dicom import parsed, plain
from ich.data.dicom.elements import (
    MODALITY_LUT,
    TAGS,
    Header,
    PlainHeader,
    frame_item,
    identifier,
    integer,
    numbers,
    optional_integer,
    text,
)
from ich.data.dicom.plain import Pixels
from ich.data.refusal import Reason, Unreadable, exhausted, require_same
from ich.data.units import Scale
from ich.inputs import regular

MAX_FILE = 1 << 33  # bytes
MAX_SIDE = 4096  # pixels; a larger claim is damage
MAX_FRAMES = 4096
MAX_PIXELS = 1 << 30  # of all frames: 4,096 slices of 512 x 512
LARGEST = 8  # bytes of a compressed frame per pixel, and some for headers
IDENTITY = 1 << 12  # bytes; SOPInstanceUID is among the first elements
MAX_POSITION = 1e5  # mm; no scanner is a hundred metres long
CT_CLASSES = tuple(f"1.2.840.10008.5.1.4.1.1.2{suffix}" for suffix in ("", ".1", ".2"))
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7."  # with a dot appended; also its multi-frame variants
NATIVE = {"1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"}
STORED = {
    (bits, little): np.dtype(f"{'<' if little else '>'}u{bits // 8}") for bits in (8, 16, 32) for little in (0, 1)
}
OTHER_IMAGES = ("LOCALIZER", "SCOUT", "TOPOGRAM", "SCREEN SAVE")  # in ImageType
OTHER_UNITS = ("OD", "MGML", "Z_EFF", "ED", "EDW", "PCT")  # RescaleType: density, iodine, effective atomic number, ...


@dataclass(frozen=True)
class Geometry:
    """Identity and position of one slice, from its header."""

    patient_id: str  # empty where the file was anonymised
    study_id: str
    series_id: str
    position: float | None  # mm along the slice normal
    instance: int | None
    tilt: float  # degrees between the slice normal and the scanner's axis
    row_spacing: float  # mm; NaN where unknown
    column_spacing: float
    acquisition: int | None = None  # AcquisitionNumber; of two slices at one position, the earlier comes first
    instance_uid: str = ""  # SOPInstanceUID
    rows: int = 0  # pixels; 0 where unknown
    columns: int = 0
    burned_in: str = ""  # why the pixels may show text, such as the patient's name
    crc: int = field(default=0, compare=False)  # CRC-32 of a file's beginning, with SOPInstanceUID; of a whole PNG
    frame: int = 0  # of a multi-frame file, from 0
    further: tuple["Geometry", ...] = ()  # the other frames, in that of the first


@contextmanager
def refusing() -> Iterator[None]:
    """Turn errors of a file within this block into Unreadable.

    A damaged element may raise wherever it is first accessed: ValueError, KeyError, NotImplementedError, struct.error
    and errors of numpy were seen among thousands of mutated headers. Programming errors and those of a machine that
    has run out of something are raised as they are, as otherwise intact slices would be lost.
    """
    try:
        yield
    except (Unreadable, decoders.NoDecodingProcess, NameError, ImportError):
        raise
    except Exception as error:
        if exhausted(error):
            raise
        if isinstance(error, OSError):
            raise Unreadable(Reason.UNREADABLE, error.strerror or type(error).__name__) from None
        raise Unreadable(Reason.NOT_DICOM, type(error).__name__) from None


class CtFile(NamedTuple):
    """An open file with a valid header."""

    header: Header
    stream: parsed.Stream  # of the pixels: the file, or its inflated content
    rows: int
    columns: int
    frames: int
    dtype: np.dtype  # of the stored values in the file
    pixels: Pixels
    fragments: list[list[fragments.Fragment]]  # of each frame; empty unless compressed
    crc: int  # as in Geometry

    def geometry(self) -> Geometry:
        """Geometry of the first frame, with that of the others. Raises Unreadable."""
        first, *further = (_geometry(self, frame) for frame in range(self.frames))
        return replace(first, further=tuple(further)) if further else first

    def hounsfield(self, frame: int) -> np.ndarray | Unreadable:
        """int16 [rows, columns] in Hounsfield units, or why the frame is refused."""
        try:
            with refusing():
                return _hounsfield(self, frame)
        except Unreadable as refusal:
            return refusal


@contextmanager
def opened(path: Path) -> Iterator[CtFile]:
    """Open a file and validate its header. Raises Unreadable, also for errors of the file within the block."""
    with refusing():
        with open(path, "rb", buffering=0, opener=regular(MAX_FILE)) as file:
            head = file.read(plain.HEAD)
            crc, found = zlib.crc32(head[:IDENTITY]), plain.read(head)
            if found is not None:
                yield _validated(found[0], file, crc, found[1])
                return
        with open(path, "rb", opener=regular(MAX_FILE)) as file, parsed.opened(file) as (header, stream):
            yield _validated(header, stream, crc)


def geometry(path: Path) -> Geometry:
    """Identity and position from the header alone.

    Position is ImagePositionPatient projected on the normal of ImageOrientationPatient. Raises Unreadable, also for
    what would prevent `hounsfield`, as far as header and file size tell.
    """
    with opened(path) as file:
        return file.geometry()


def hounsfield(path: Path, frame: int = 0) -> np.ndarray:
    """A slice in Hounsfield units: int16 [rows, columns], clipped to -1024..3071. Raises Unreadable."""
    (found,) = hounsfields(path, [frame])
    if isinstance(found, Unreadable):
        raise found
    return found


def hounsfields(path: Path, frames: Iterable[int], crc: int | None = None) -> Iterator[np.ndarray | Unreadable]:
    """Yield `hounsfield` of several frames, or why a frame is refused. Raises Unreadable for the file.

    crc: that of the file's Geometry, if it was read before.
    """
    with opened(path) as file:
        require_same(file.crc, crc)
        yield from map(file.hounsfield, frames)


# ---- the header


def _validated(header: Header, stream: parsed.Stream, crc: int, pixels: Pixels | None = None) -> CtFile:
    """Raise Unreadable unless the header is that of a CT slice whose pixels the file can hold."""
    _require_ct(header)
    rows, columns, allocated = (integer(header, k) for k in ("Rows", "Columns", "BitsAllocated"))
    frames, bits = integer(header, "NumberOfFrames", 1), integer(header, "BitsStored")
    if not (0 < rows <= MAX_SIDE and 0 < columns <= MAX_SIDE) or allocated not in (8, 16, 32):
        raise Unreadable(Reason.BAD_SIZE, f"{rows} x {columns}, {allocated} bits")
    if not 1 <= bits <= allocated:
        raise Unreadable(Reason.BAD_SIZE, f"{bits} bits stored in {allocated}")
    if not 0 < frames <= MAX_FRAMES or rows * columns * frames > MAX_PIXELS:
        raise Unreadable(Reason.BAD_SIZE, f"{frames} frames of {rows} x {columns}")
    if pixels is None:
        assert not isinstance(header, PlainHeader)
        syntax = parsed.syntax(header)
        if syntax not in NATIVE and syntax not in decoders.SYNTAXES:
            raise Unreadable(Reason.NO_DECODER, f"transfer syntax {_quoted(syntax, '[0-9.]{1,64}')}")
        pixels = parsed.pixels(header, stream)
    dtype = STORED[allocated, pixels.little_endian]
    size = stream.seek(0, os.SEEK_END)
    found: list[list[fragments.Fragment]] = []
    if pixels.syntax in decoders.SYNTAXES:
        if allocated == 32:
            raise Unreadable(Reason.BAD_SIZE, "32 bits, compressed")
        if pixels.length is not None:
            raise Unreadable(Reason.NOT_DECODED, "compressed pixels that are not in fragments")
        stream.seek(pixels.offset)
        found = fragments.find(stream, size, frames, parsed.extended_offsets(header))
    else:
        expected = rows * columns * frames * dtype.itemsize
        there = min(pixels.length or 0, size - pixels.offset)
        if there < expected:
            raise Unreadable(Reason.TRUNCATED, f"{there} of {expected} bytes")
    return CtFile(header, stream, rows, columns, frames, dtype, pixels, found, crc)


def _require_ct(header: Header) -> None:
    modality = text(header, "Modality").upper()
    if modality != "CT" and (modality or text(header, "SOPClassUID") not in CT_CLASSES):
        detail = f"modality {_quoted(modality, '[A-Z]{2,3}|RT[A-Z]{4,6}')}" if modality else "no modality"
        raise Unreadable(Reason.NOT_CT_SLICE, detail)
    _refuse_localizer(text(header, "ImageType"))
    if integer(header, "SamplesPerPixel", 1) != 1:
        raise Unreadable(Reason.NOT_CT_SLICE, "colour")
    photometric = text(header, "PhotometricInterpretation")
    if photometric and not photometric.startswith("MONOCHROME"):
        detail = f"photometric interpretation {_quoted(photometric, '[A-Z_0-9 ]{3,15}')}"
        raise Unreadable(Reason.NOT_CT_SLICE, detail)


def _quoted(value: str, pattern: str) -> str:
    """A value for a message, if it matches: an element of damaged length may include the patient's name."""
    return value if re.fullmatch(pattern, value) else "(unreadable)"


def _refuse_localizer(image_type: str) -> None:
    for word in OTHER_IMAGES:
        if word in image_type.upper():
            raise Unreadable(Reason.NOT_CT_SLICE, f"a {word.lower()}")


def _geometry(file: CtFile, frame: int) -> Geometry:
    header = file.header
    identity = [identifier(header, k) for k in ("PatientID", "StudyInstanceUID", "SeriesInstanceUID")]
    if not all(identity if text(header, "PatientID") else identity[1:]):
        raise Unreadable(Reason.NO_IDENTITY)
    _scale(header, frame)
    _refuse_localizer(text(frame_item(header, "FrameType", frame), "FrameType"))
    origin, axes, spacing = (
        numbers(frame_item(header, keyword, frame), keyword, count)
        for keyword, count in (("ImagePositionPatient", 3), ("ImageOrientationPatient", 6), ("PixelSpacing", 2))
    )
    normal = _normal(axes)
    position = None if origin is None else sum(a * b for a, b in zip(origin, normal, strict=True))
    if spacing is None or not all(0 < side < 100 for side in spacing):
        spacing = (math.nan, math.nan)
    return Geometry(
        *identity,
        position=position if position is not None and abs(position) <= MAX_POSITION else None,
        instance=frame + 1 if file.frames > 1 else optional_integer(header, "InstanceNumber"),
        tilt=math.degrees(math.acos(min(abs(normal[2]), 1.0))),
        row_spacing=spacing[0],
        column_spacing=spacing[1],
        acquisition=optional_integer(header, "AcquisitionNumber"),
        instance_uid=identifier(header, "SOPInstanceUID"),
        rows=file.rows,
        columns=file.columns,
        burned_in=_burned_in(header),
        crc=file.crc,
        frame=frame,
    )


def _burned_in(header: Header) -> str:
    """Why the pixels may show text; empty if nothing says so. (PS3.3, C.7.6.1.1.1 and A.8)"""
    if text(header, "BurnedInAnnotation").upper() == "YES":
        return "BurnedInAnnotation is YES"
    return "Secondary Capture" if f"{text(header, 'SOPClassUID')}.".startswith(SECONDARY_CAPTURE) else ""


def _normal(axes: tuple[float, ...] | None) -> tuple[float, float, float]:
    """Unit normal of the slice with these row and column axes; z where they are missing or impossible."""
    if axes is None or max(map(abs, axes)) > 2:
        return 0.0, 0.0, 1.0
    ax, ay, az, bx, by, bz = axes
    x, y, z = ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx
    length = math.sqrt(x * x + y * y + z * z)
    return (x / length, y / length, z / length) if length > 0.5 else (0.0, 0.0, 1.0)


# ---- the pixels


def _hounsfield(file: CtFile, frame: int) -> np.ndarray:
    if not 0 <= frame < file.frames:
        raise ValueError(f"frame {frame} of {file.frames}")
    scale = _scale(file.header, frame)
    if file.fragments:
        if not file.fragments[frame]:
            raise Unreadable(Reason.NOT_DECODED, f"the fragments of frame {frame} of {file.frames} are unknown")
        if sum(length for _, length in file.fragments[frame]) > LARGEST * file.rows * file.columns + plain.HEAD:
            raise Unreadable(Reason.NOT_DECODED, "the compressed frame is larger than its pixels")
        data = fragments.read(file.stream, file.fragments[frame])
        stored = decoders.decode(file.pixels.syntax, data, file.rows, file.columns, file.dtype.itemsize)
        return units.hounsfield(stored, scale)
    stored = np.empty((file.rows, file.columns), file.dtype)
    file.stream.seek(file.pixels.offset + frame * stored.nbytes)
    if file.stream.readinto(stored.data) < stored.nbytes:
        raise Unreadable(Reason.TRUNCATED, "the file became shorter while it was read")
    return units.hounsfield(stored, scale, in_place=True)


def _scale(header: Header, frame: int) -> Scale:
    """Conversion of stored values to Hounsfield units. Without slope and intercept there is none."""
    pair: list[float] = []
    for keyword, default in (("RescaleSlope", 1.0), ("RescaleIntercept", 0.0)):
        item = frame_item(header, keyword, frame)
        number = numbers(item, keyword)
        if number is None and TAGS[keyword] in item:
            value = _quoted(text(item, keyword), "[-+.,eE0-9 ]{0,16}")
            raise Unreadable(Reason.BAD_RESCALE, f"{keyword} is {value!r}")
        pair.append(default if number is None else number[0])
    slope, intercept = pair
    if slope == 0 or not 1e-6 < abs(slope) < 1e3 or abs(intercept) > 1e5:
        raise Unreadable(Reason.BAD_RESCALE, f"slope {slope:g}, intercept {intercept:g}")
    rescale_type = text(frame_item(header, "RescaleType", frame), "RescaleType").upper()
    if rescale_type in OTHER_UNITS:
        raise Unreadable(Reason.NOT_HOUNSFIELD, f"rescale type {rescale_type}")
    if MODALITY_LUT in header:
        raise Unreadable(Reason.NOT_HOUNSFIELD, "a look-up table in place of slope and intercept")
    sign = integer(header, "PixelRepresentation", 0)
    if sign not in (0, 1):
        raise Unreadable(Reason.BAD_SIZE, f"PixelRepresentation is {sign}")
    signed = sign == 1
    return Scale(integer(header, "BitsStored"), signed, slope, intercept, _padding(header, signed))


def _padding(header: Header, signed: bool) -> tuple[int, int] | None:
    """Stored values from..to of PixelPaddingValue and PixelPaddingRangeLimit (PS3.3, C.7.5.1.1.2)."""
    value = numbers(header, "PixelPaddingValue")
    if value is None:
        return None
    limit = numbers(header, "PixelPaddingRangeLimit") or value
    # Some files write the padding of signed pixels as an unsigned number of the same 16 bits.
    ends = [(int(n[0]) + 0x8000) % 0x10000 - 0x8000 if signed else int(n[0]) % 0x10000 for n in (value, limit)]
    return min(ends), max(ends)
