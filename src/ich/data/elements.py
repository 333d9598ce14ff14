"""Single elements of a DICOM header as plain numbers and text, read as a damaged header needs it."""

import math
import struct
from typing import Any

import numpy as np
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag

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
TAGS = {keyword: BaseTag(tag_for_keyword(keyword) or 0) for keyword in ELEMENTS}


def numbers(dataset: Dataset, keyword: str, count: int = 1) -> tuple[float, ...] | None:
    """`count` finite numbers of an element, or None. An element that does not parse is an element that is not there."""
    try:
        element = dataset.get_item(TAGS[keyword])
        if element is None:
            return None
        value: Any = element.value
        written = ELEMENTS[keyword][0]
        if not isinstance(value, bytes):  # pydicom has parsed it already
            found = tuple(map(float, [value] if isinstance(value, str | int | float) else value))
        elif written == "D" and element.VR in ("DS", "IS", None):
            found = tuple(float(part.strip(b" \0")) for part in value.split(b"\\"))
        elif written == "U" and element.VR in ("US", "SS", None) and len(value) == 2 * count:
            order, sign = "<" if getattr(element, "is_little_endian", True) else ">", "h" if element.VR == "SS" else "H"
            found = tuple(map(float, struct.unpack(f"{order}{count}{sign}", value)))
        else:
            found = tuple(map(float, np.atleast_1d(np.asarray(dataset.get(keyword), dtype=np.float64))))
    except Exception as error:
        if exhausted(error):
            raise
        return None
    return found if len(found) == count and all(map(math.isfinite, found)) else None


def whole(dataset: Dataset, keyword: str, absent: int = -1) -> int:
    """A whole number; `absent` where it is not said. Raises Unreadable where something else is said."""
    number = numbers(dataset, keyword)
    if number is not None:
        return int(number[0])
    element = dataset.get_item(TAGS[keyword])
    if element is not None and element.value not in (None, b"", ""):
        raise Unreadable(Reason.BAD_SIZE, f"{keyword} is no number")
    return absent


def counted(dataset: Dataset, keyword: str) -> int | None:
    """An integer as DICOM allows them (IS: 32 bits)."""
    number = numbers(dataset, keyword)
    return int(number[0]) if number is not None and abs(number[0]) < 2**31 else None


def text(dataset: Dataset, keyword: str) -> str:
    """An element as text, of which only what prints is kept; several values stay joined by backslashes."""
    try:
        element = dataset.get_item(TAGS[keyword])
        value: Any = None if element is None else element.value
        if isinstance(value, bytes) and value.isascii():
            value = value.decode("ascii")
        elif isinstance(value, bytes):  # the character set decides
            value = dataset.get(keyword)
        if not isinstance(value, str):
            value = "" if value is None else "\\".join(map(str, np.atleast_1d(value)))
    except Exception as error:
        if exhausted(error):
            raise
        return ""
    value = str(value).strip(" \0")
    return value if value.isprintable() else "".join(c for c in value if c.isprintable()).strip()


def holder(dataset: Dataset, keyword: str, frame: int) -> Dataset:
    """The item that holds an element of a frame: its own functional group, the shared one, or the file's top."""
    group = ELEMENTS[keyword][1]
    if not group or "SharedFunctionalGroupsSequence" not in dataset:
        return dataset
    own = dataset.get("PerFrameFunctionalGroupsSequence") or []
    shared = dataset.get("SharedFunctionalGroupsSequence") or []
    for item in [*own[frame : frame + 1], *shared[:1]]:
        inner = item.get(group)
        if inner and TAGS[keyword] in inner[0]:
            return inner[0]
    return dataset
