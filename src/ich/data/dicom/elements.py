"""Numbers and text of single DICOM elements, tolerant of damaged values."""

import math
from typing import Any, NamedTuple

import numpy as np
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset

from ich.data.refusal import Reason, Unreadable, exhausted

# The elements that are read, by the encoding of their values.
TEXTS = ("PatientID", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID", "Modality", "ImageType")
TEXTS += ("FrameType", "PhotometricInterpretation", "RescaleType", "BurnedInAnnotation")
DECIMALS = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept")
DECIMALS += ("InstanceNumber", "AcquisitionNumber", "NumberOfFrames")  # numbers as text
SHORTS = ("Rows", "Columns", "SamplesPerPixel", "BitsAllocated", "BitsStored", "PixelRepresentation")
SHORTS += ("PixelPaddingValue", "PixelPaddingRangeLimit")  # 16-bit integers
GROUPS = {  # functional groups that hold them in multi-frame files
    "FrameType": "CTImageFrameTypeSequence",
    "ImagePositionPatient": "PlanePositionSequence",
    "ImageOrientationPatient": "PlaneOrientationSequence",
    "PixelSpacing": "PixelMeasuresSequence",
    "RescaleSlope": "PixelValueTransformationSequence",
    "RescaleIntercept": "PixelValueTransformationSequence",
    "RescaleType": "PixelValueTransformationSequence",
}
TAGS = {keyword: int(tag_for_keyword(keyword) or 0) for keyword in TEXTS + DECIMALS + SHORTS}
LONGEST = 1 << 10  # bytes of a value; the standard allows 64 characters for each number or identifier
MODALITY_LUT, SHARED_GROUPS, PER_FRAME_GROUPS = 0x00283000, 0x52009229, 0x52009230  # sequences
DEFLATED, EXPLICIT = b"1.2.840.10008.1.2.1.99", b"1.2.840.10008.1.2.1\0\0\0"  # transfer syntaxes


class Element(NamedTuple):
    """A raw element, little endian; its VR is None in implicit VR files."""

    VR: str | None
    value: bytes


class PlainHeader(dict[int, Element]):
    """Raw elements by tag, with the methods of a pydicom Dataset that this module uses."""

    get_item = dict.get


Header = Dataset | PlainHeader


def parsed_value(header: Header, keyword: str) -> Any:
    """The value of an element as parsed by pydicom; None where it is absent or the header is plain."""
    return header.get(keyword) if isinstance(header, Dataset) else None


def numbers(header: Header, keyword: str, count: int = 1) -> tuple[float, ...] | None:
    """`count` finite numbers of an element; None where it is absent or malformed."""
    try:
        element: Any = header.get_item(TAGS[keyword])
        if element is None:
            return None
        value = element.value
        if isinstance(value, bytes) and len(value) > LONGEST:
            return None
        if not isinstance(value, bytes):  # already parsed by pydicom
            found = tuple(map(float, [value] if isinstance(value, str | int | float) else value))
        elif keyword in DECIMALS and element.VR in ("DS", "IS", None):
            found = tuple([float(part.strip(b" \0")) for part in value.split(b"\\")])
        elif keyword in SHORTS and element.VR in ("US", "SS", None) and len(value) == 2:
            order = "little" if getattr(element, "is_little_endian", True) else "big"
            found = (float(int.from_bytes(value, order, signed=element.VR == "SS")),)
        else:
            found = tuple(map(float, np.atleast_1d(np.asarray(parsed_value(header, keyword), dtype=np.float64))))
    except Exception as error:
        if exhausted(error):
            raise
        return None
    return found if len(found) == count and all(map(math.isfinite, found)) else None


def integer(header: Header, keyword: str, default: int = -1) -> int:
    """An integer; `default` where the element is absent or empty. Raises Unreadable for a malformed one."""
    found = numbers(header, keyword)
    if found is not None:
        return int(found[0])
    element: Any = header.get_item(TAGS[keyword])
    if element is not None and element.value not in (None, b"", ""):
        raise Unreadable(Reason.BAD_SIZE, f"{keyword} is not a number")
    return default


def optional_integer(header: Header, keyword: str) -> int | None:
    """An integer of at most 32 bits (VR IS); None where it is absent or malformed."""
    found = numbers(header, keyword)
    return int(found[0]) if found is not None and abs(found[0]) < 2**31 else None


def text(header: Header, keyword: str) -> str:
    """The printable characters of an element; several values stay joined by backslashes."""
    return _printable(_text(header, keyword))


def identifier(header: Header, keyword: str) -> str:
    """`text`, but empty where a NUL or the length shows that the element is damaged and includes others."""
    value = _text(header, keyword)
    return "" if "\0" in value or len(value) > LONGEST else _printable(value)


def _printable(value: str) -> str:
    return value if value.isprintable() else "".join(c for c in value if c.isprintable()).strip()


def _text(header: Header, keyword: str) -> str:
    try:
        element: Any = header.get_item(TAGS.get(keyword) or int(tag_for_keyword(keyword) or 0))
        value = None if element is None else element.value
        if isinstance(value, bytes) and (value.isascii() or len(value) > LONGEST):
            value = value[: LONGEST + 1].decode("ascii", "replace")
        elif isinstance(value, bytes):  # depends on the character set
            value = parsed_value(header, keyword)
        if not isinstance(value, str):
            value = "" if value is None else "\\".join(map(str, np.atleast_1d(value)))
    except Exception as error:
        if exhausted(error):
            raise
        return ""
    return str(value).strip(" \0")


def frame_item(header: Header, keyword: str, frame: int) -> Header:
    """The item with an element of a frame: from its own functional groups, the shared ones, or the top level."""
    if keyword not in GROUPS or SHARED_GROUPS not in header:
        return header
    own = parsed_value(header, "PerFrameFunctionalGroupsSequence") or []
    shared = parsed_value(header, "SharedFunctionalGroupsSequence") or []
    for item in [*own[frame : frame + 1], *shared[:1]]:
        inner = item.get(GROUPS[keyword])
        if inner and TAGS[keyword] in inner[0]:
            return inner[0]
    return header
