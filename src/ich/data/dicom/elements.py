"""Single elements of a DICOM header as plain numbers and text, read as a damaged header needs it."""

import math
from typing import Any, Protocol

import numpy as np
from pydicom.datadict import tag_for_keyword

from ich.data.refusal import Reason, Unreadable, exhausted

# The elements that are read, how their values are written (S text, D numbers as text, U 16-bit integers), and for
# multi-frame files the functional group that holds them.
ELEMENTS = {
    "PatientID": ("S", ""),
    "StudyInstanceUID": ("S", ""),
    "SeriesInstanceUID": ("S", ""),
    "SOPInstanceUID": ("S", ""),
    "SOPClassUID": ("S", ""),
    "Modality": ("S", ""),
    "ImageType": ("S", ""),
    "FrameType": ("S", "CTImageFrameTypeSequence"),
    "PhotometricInterpretation": ("S", ""),
    "ImagePositionPatient": ("D", "PlanePositionSequence"),
    "ImageOrientationPatient": ("D", "PlaneOrientationSequence"),
    "PixelSpacing": ("D", "PixelMeasuresSequence"),
    "RescaleSlope": ("D", "PixelValueTransformationSequence"),
    "RescaleIntercept": ("D", "PixelValueTransformationSequence"),
    "RescaleType": ("S", "PixelValueTransformationSequence"),
    "InstanceNumber": ("D", ""),
    "AcquisitionNumber": ("D", ""),
    "NumberOfFrames": ("D", ""),
    "Rows": ("U", ""),
    "Columns": ("U", ""),
    "SamplesPerPixel": ("U", ""),
    "BitsAllocated": ("U", ""),
    "BitsStored": ("U", ""),
    "PixelRepresentation": ("U", ""),
    "PixelPaddingValue": ("U", ""),
    "PixelPaddingRangeLimit": ("U", ""),
}
TAGS = {keyword: int(tag_for_keyword(keyword) or 0) for keyword in ELEMENTS}
MODALITY_LUT, SHARED_BY_FRAMES, OF_FRAMES = 0x00283000, 0x52009229, 0x52009230  # sequences
DEFLATED = b"1.2.840.10008.1.2.1.99"  # a transfer syntax


class Elements(Protocol):
    """A pydicom Dataset, or a `plain.Header`."""

    def get_item(self, key: Any, /) -> Any:
        """VR and value of an element, the latter as bytes unless pydicom had to parse it."""
        ...

    def get(self, key: str, /) -> Any:
        """An element's value as pydicom parses it."""
        ...

    def __contains__(self, tag: Any, /) -> bool: ...


def numbers(header: Elements, keyword: str, count: int = 1) -> tuple[float, ...] | None:
    """`count` finite numbers of an element, or None. An element that does not parse is an element that is not there."""
    try:
        element = header.get_item(TAGS[keyword])
        if element is None:
            return None
        value: Any = element.value
        written = ELEMENTS[keyword][0]
        if not isinstance(value, bytes):  # pydicom has parsed it already
            found = tuple(map(float, [value] if isinstance(value, str | int | float) else value))
        elif written == "D" and element.VR in ("DS", "IS", None):
            found = tuple([float(part.strip(b" \0")) for part in value.split(b"\\")])
        elif written == "U" and element.VR in ("US", "SS", None) and len(value) == 2:
            order = "little" if getattr(element, "is_little_endian", True) else "big"
            found = (float(int.from_bytes(value, order, signed=element.VR == "SS")),)
        else:
            found = tuple(map(float, np.atleast_1d(np.asarray(header.get(keyword), dtype=np.float64))))
    except Exception as error:
        if exhausted(error):
            raise
        return None
    return found if len(found) == count and all(map(math.isfinite, found)) else None


def whole(header: Elements, keyword: str, absent: int = -1) -> int:
    """A whole number; `absent` where it is not said. Raises Unreadable where something else is said."""
    number = numbers(header, keyword)
    if number is not None:
        return int(number[0])
    element = header.get_item(TAGS[keyword])
    if element is not None and element.value not in (None, b"", ""):
        raise Unreadable(Reason.BAD_SIZE, f"{keyword} is no number")
    return absent


def counted(header: Elements, keyword: str) -> int | None:
    """An integer as DICOM allows them (IS: 32 bits)."""
    number = numbers(header, keyword)
    return int(number[0]) if number is not None and abs(number[0]) < 2**31 else None


def text(header: Elements, keyword: str) -> str:
    """An element as text, of which only what prints is kept; several values stay joined by backslashes."""
    return _printable(_text(header, keyword))


def identifier(header: Elements, keyword: str) -> str:
    """An element as text; empty where a zero in it shows that its length is damaged: other elements are in it."""
    value = _text(header, keyword)
    return "" if "\0" in value else _printable(value)


def _printable(value: str) -> str:
    return value if value.isprintable() else "".join(c for c in value if c.isprintable()).strip()


def _text(header: Elements, keyword: str) -> str:
    try:
        element = header.get_item(TAGS[keyword])
        value: Any = None if element is None else element.value
        if isinstance(value, bytes) and value.isascii():
            value = value.decode("ascii")
        elif isinstance(value, bytes):  # the character set decides
            value = header.get(keyword)
        if not isinstance(value, str):
            value = "" if value is None else "\\".join(map(str, np.atleast_1d(value)))
    except Exception as error:
        if exhausted(error):
            raise
        return ""
    return str(value).strip(" \0")


def holder(header: Elements, keyword: str, frame: int) -> Elements:
    """The item that holds an element of a frame: its own functional group, the shared one, or the file's top."""
    group = ELEMENTS[keyword][1]
    if not group or SHARED_BY_FRAMES not in header:
        return header
    own = header.get("PerFrameFunctionalGroupsSequence") or []
    shared = header.get("SharedFunctionalGroupsSequence") or []
    for item in [*own[frame : frame + 1], *shared[:1]]:
        inner = item.get(group)
        if inner and TAGS[keyword] in inner[0]:
            return inner[0]
    return header
