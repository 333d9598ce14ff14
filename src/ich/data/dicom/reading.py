"""CT files: the header is checked, then gives geometry, and the pixels give Hounsfield units."""

import math
import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ich.data import decoders, fragments, units
from ich.data.dicom import parsed, plain
from ich.data.dicom.elements import MODALITY_LUT, TAGS, Elements, counted, holder, identifier, numbers, text, whole
from ich.data.refusal import Reason, Unreadable, exhausted
from ich.data.units import Scale

LARGEST_SIDE = 4096  # pixels; a header that claims more is damaged
LARGEST_FILE = 1 << 30  # pixels of all frames: 4,096 slices of 512 x 512
FARTHEST = 1e5  # mm; no scanner is a hundred metres long
CT_CLASSES = tuple(f"1.2.840.10008.5.1.4.1.1.2{suffix}" for suffix in ("", ".1", ".2"))
NATIVE = {"1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"}
STORED = {(bits, little): np.dtype(f"{'<' if little else '>'}u{bits // 8}") for bits in (8, 16) for little in (0, 1)}
DECODER_REASONS = {
    decoders.DecoderHung: Reason.DECODER_HUNG,
    decoders.DecoderCrashed: Reason.DECODER_CRASHED,
    decoders.DecoderError: Reason.NOT_DECODED,
}
NO_SLICES = ("LOCALIZER", "SCOUT", "TOPOGRAM", "SCREEN SAVE")  # in ImageType
NO_UNITS = ("OD", "MGML", "Z_EFF", "ED", "EDW", "PCT")  # RescaleType: density, iodine, effective atomic number, ...


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


class refusing:
    """Within this block an error of a file is Unreadable.

    A damaged element raises wherever it is first touched, and whatever the parser stumbles over: ValueError, KeyError,
    NotImplementedError, struct.error and numpy's own were seen among thousands of mutated headers. Errors of this
    program stay as they are, and so do those of a machine that has run out of something: sound slices would be lost.
    """

    def __enter__(self) -> None: ...

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        kept = (Unreadable, decoders.NoDecodingProcess, NameError, ImportError)
        if not isinstance(error, Exception) or isinstance(error, kept) or exhausted(error):
            return
        if isinstance(error, OSError):
            raise Unreadable(Reason.UNREADABLE, error.strerror or type(error).__name__) from None
        raise Unreadable(Reason.NOT_DICOM, type(error).__name__) from None


class CtFile(NamedTuple):
    """An open file whose header is sound. `stream` holds the pixels: the file, or what was inflated of it."""

    header: Elements
    stream: parsed.Stream
    rows: int
    columns: int
    frames: int
    kind: np.dtype  # of the stored values as they lie in the file
    syntax: str
    offset: int  # of the first uncompressed pixel
    pieces: fragments.Fragments | None  # of compressed pixels

    def geometry(self) -> Geometry:
        """Geometry of the first frame, with that of the others. Raises Unreadable."""
        first, *further = (_geometry(self, frame) for frame in range(self.frames))
        return replace(first, further=tuple(further)) if further else first

    def hounsfield(self, frame: int) -> np.ndarray | Unreadable:
        """int16 [rows, columns] in Hounsfield units; of a frame that is refused, why."""
        try:
            with refusing():
                return _hounsfield(self, frame)
        except Unreadable as refusal:
            return refusal


@contextmanager
def opened(path: Path) -> Iterator[CtFile]:
    """Open a file and check its header. Raises Unreadable, also for any error of the file within the block."""
    with refusing():
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait for ever
            raise Unreadable(Reason.UNREADABLE, "not a regular file")
        with open(path, "rb", buffering=0) as file:
            header = plain.read(file.read(plain.HEAD))
            if header is not None:
                yield _checked(header, file)
                return
        with parsed.opened(path) as (header, stream):
            yield _checked(header, stream)


def geometry(path: Path) -> Geometry:
    """Read the header alone. Position is ImagePositionPatient projected on the normal of ImageOrientationPatient.

    Raises Unreadable, also for what would prevent `hounsfield`, as far as header and file size tell.
    """
    with opened(path) as file:
        return file.geometry()


def hounsfield(path: Path, frame: int = 0) -> np.ndarray:
    """The slice in Hounsfield units: int16 [rows, columns], clipped to -1024..3071. Raises Unreadable."""
    (found,) = hounsfields(path, [frame])
    if isinstance(found, Unreadable):
        raise found
    return found


def hounsfields(path: Path, frames: Sequence[int]) -> list[np.ndarray | Unreadable]:
    """`hounsfield` of several frames of a file; one that is refused gives why. Raises Unreadable for the file."""
    with opened(path) as file:
        return [file.hounsfield(frame) for frame in frames]


# ---- the header


def _checked(header: plain.Header | parsed.Dataset, stream: parsed.Stream) -> CtFile:
    """Refuse what cannot be a CT slice, or whose pixels cannot be there. Raises Unreadable."""
    _refuse_other_than_ct(header)
    rows, columns, allocated = (whole(header, k) for k in ("Rows", "Columns", "BitsAllocated"))
    frames, bits = whole(header, "NumberOfFrames", 1), whole(header, "BitsStored")
    if not (0 < rows <= LARGEST_SIDE and 0 < columns <= LARGEST_SIDE) or allocated not in (8, 16):
        raise Unreadable(Reason.BAD_SIZE, f"{rows} x {columns}, {allocated} bits")
    if not 1 <= bits <= allocated:
        raise Unreadable(Reason.BAD_SIZE, f"{bits} bits stored in {allocated}")
    if frames < 1 or rows * columns * frames > LARGEST_FILE:
        raise Unreadable(Reason.BAD_SIZE, f"{frames} frames of {rows} x {columns}")
    little = True
    if isinstance(header, plain.Header):
        syntax, length, offset = header.syntax, header.length, header.offset
    else:
        syntax, little = parsed.syntax(header), header.original_encoding[1]
        if syntax not in NATIVE and syntax not in decoders.SYNTAXES:
            raise Unreadable(Reason.NO_DECODER, f"transfer syntax {_quoted(syntax, '[0-9.]{1,64}')}")
        length, offset = parsed.pixels(header, stream)
    kind = STORED[allocated, bool(little)]
    size = stream.seek(0, os.SEEK_END)
    pieces = None
    if not isinstance(header, plain.Header) and syntax in decoders.SYNTAXES:
        if length is not None:
            raise Unreadable(Reason.NOT_DECODED, "compressed pixels that are not in fragments")
        stream.seek(offset)
        pieces = fragments.find(stream, size, frames, parsed.extended_table(header))
    else:
        wanted = rows * columns * frames * kind.itemsize
        there = min(length or 0, size - offset)
        if there < wanted:
            raise Unreadable(Reason.TRUNCATED, f"{there} of {wanted} bytes")
    return CtFile(header, stream, rows, columns, frames, kind, syntax, offset, pieces)


def _refuse_other_than_ct(header: Elements) -> None:
    modality = text(header, "Modality").upper()
    if modality != "CT" and (modality or text(header, "SOPClassUID") not in CT_CLASSES):
        said = f"modality {_quoted(modality, '[A-Z]{2,3}|RT[A-Z]{4,6}')}" if modality else "no modality"
        raise Unreadable(Reason.NOT_CT_SLICE, said)
    _refuse_localizer(text(header, "ImageType"))
    if whole(header, "SamplesPerPixel", 1) != 1:
        raise Unreadable(Reason.NOT_CT_SLICE, "colour")
    shown = text(header, "PhotometricInterpretation")
    if shown and not shown.startswith("MONOCHROME"):
        raise Unreadable(Reason.NOT_CT_SLICE, f"photometric interpretation {_quoted(shown, '[A-Z_0-9 ]{3,15}')}")


def _quoted(value: str, kind: str) -> str:
    """A value for a message, if it is of this kind: an element of damaged length may hold the names that follow it."""
    return value if re.fullmatch(kind, value) else "(unreadable)"


def _refuse_localizer(kind: str) -> None:
    said = next((word for word in NO_SLICES if word in kind.upper()), None)
    if said:
        raise Unreadable(Reason.NOT_CT_SLICE, f"a {said.lower()}")


def _geometry(file: CtFile, frame: int) -> Geometry:
    header = file.header
    identity = [identifier(header, k) for k in ("PatientID", "StudyInstanceUID", "SeriesInstanceUID")]
    if not all(identity):
        raise Unreadable(Reason.NO_IDENTITY)
    _scale(header, frame)
    _refuse_localizer(text(holder(header, "FrameType", frame), "FrameType"))
    origin, axes, spacing = (
        numbers(holder(header, keyword, frame), keyword, count)
        for keyword, count in (("ImagePositionPatient", 3), ("ImageOrientationPatient", 6), ("PixelSpacing", 2))
    )
    normal = _normal(axes)
    place = None if origin is None else sum(a * b for a, b in zip(origin, normal, strict=True))
    known = spacing is not None and all(0 < side < 100 for side in spacing)
    return Geometry(
        *identity,
        position=place if place is not None and abs(place) <= FARTHEST else None,
        instance=frame + 1 if file.frames > 1 else counted(header, "InstanceNumber"),
        tilt=math.degrees(math.acos(min(abs(normal[2]), 1.0))),
        row_spacing=spacing[0] if spacing and known else math.nan,
        column_spacing=spacing[1] if spacing and known else math.nan,
        acquisition=counted(header, "AcquisitionNumber"),
        instance_uid=identifier(header, "SOPInstanceUID"),
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


def _hounsfield(file: CtFile, frame: int) -> np.ndarray:
    if not 0 <= frame < file.frames:
        raise ValueError(f"frame {frame} of {file.frames}")
    scale = _scale(file.header, frame)
    if file.pieces is not None:
        return units.hounsfield(_decoded(file, frame), scale)
    stored = np.empty((file.rows, file.columns), file.kind)
    file.stream.seek(file.offset + frame * stored.nbytes)
    if file.stream.readinto(stored.data) < stored.nbytes:
        raise Unreadable(Reason.TRUNCATED, "it was longer when its header was read")
    return units.hounsfield(stored, scale, in_place=True)


def _decoded(file: CtFile, frame: int) -> np.ndarray:
    assert file.pieces is not None
    data = file.pieces.read(file.stream, frame, file.frames)
    try:
        return decoders.decode(file.syntax, data, file.rows, file.columns, file.kind.itemsize)
    except decoders.DecoderError as error:
        raise Unreadable(DECODER_REASONS[type(error)], str(error)) from None


def _scale(header: Elements, frame: int) -> Scale:
    """How stored values become Hounsfield units. Absent slope and intercept mean that they are already."""
    pair: list[float] = []
    for keyword, absent in (("RescaleSlope", 1.0), ("RescaleIntercept", 0.0)):
        place = holder(header, keyword, frame)
        number = numbers(place, keyword)
        if number is None and TAGS[keyword] in place:
            said = _quoted(text(place, keyword), "[-+.,eE0-9 ]{0,16}")
            raise Unreadable(Reason.BAD_RESCALE, f"{keyword} is {said!r}")
        pair.append(absent if number is None else number[0])
    slope, intercept = pair
    if slope == 0 or not 1e-6 < abs(slope) < 1e3 or abs(intercept) > 1e5:
        raise Unreadable(Reason.BAD_RESCALE, f"slope {slope:g}, intercept {intercept:g}")
    kind = text(holder(header, "RescaleType", frame), "RescaleType").upper()
    if kind in NO_UNITS:
        raise Unreadable(Reason.NOT_HOUNSFIELD, f"rescale type {kind}")
    if MODALITY_LUT in header:
        raise Unreadable(Reason.NOT_HOUNSFIELD, "a look-up table in place of slope and intercept")
    sign = whole(header, "PixelRepresentation", 0)
    if sign not in (0, 1):
        raise Unreadable(Reason.BAD_SIZE, f"PixelRepresentation is {sign}")
    signed = sign == 1
    return Scale(whole(header, "BitsStored"), signed, slope, intercept, _padding(header, signed))


def _padding(header: Elements, signed: bool) -> tuple[int, int] | None:
    """Stored values from..to of PixelPaddingValue and PixelPaddingRangeLimit (PS3.3, C.7.5.1.1.2)."""
    value = numbers(header, "PixelPaddingValue")
    if value is None:
        return None
    limit = numbers(header, "PixelPaddingRangeLimit") or value
    # Files write the value of signed pixels as an unsigned number now and then; its 16 bits mean the same.
    ends = [(int(n[0]) + 0x8000) % 0x10000 - 0x8000 if signed else int(n[0]) % 0x10000 for n in (value, limit)]
    return min(ends), max(ends)
