"""DICOM headers without anything unusual, read without pydicom: those of most uncompressed files.

Strict: whatever is not surely read as pydicom reads it is left to pydicom (`read` gives None). So what becomes of a
file, read or refused, is what becomes of it by pydicom alone. (DICOM PS3.5, 7.1; PS3.10, 7.1)
"""

import struct
from typing import NamedTuple

from ich.data.dicom.elements import DEFLATED, ELEMENTS, MODALITY_LUT, OF_FRAMES, SHARED_BY_FRAMES, TAGS

HEAD = 1 << 14  # bytes that hold the whole header, or it is unusual. No length may look like the letters of a VR, "AA"
META_END, FIRST, PIXELS_BEGIN, PIXELS = 0x00030000, 0x00080000, 0x7FE00008, 0x7FE00010
SYNTAX, CHARACTERS = 0x00020010, 0x00080005
GROUP_LENGTH = b"\2\0\0\0UL\4\0"  # begins the file meta information
SYNTAXES = {b"1.2.840.10008.1.2\0": False, b"1.2.840.10008.1.2.1\0": True}  # whether elements name their VR
ASCII = (b"", b"ISO_IR 6", b"ISO_IR 100", b"ISO_IR 192")  # character sets whose ASCII is ASCII


def _numbered(vrs: str) -> dict[int, str]:
    return {int.from_bytes(vr.encode(), "little"): vr for vr in vrs.split()}


SHORT = _numbered("AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US")  # with lengths of 16 bits
LONG = _numbered("OB OD OF OL OV OW SQ SV UC UN UR UT UV")  # with lengths of 32 bits
NAMES = SHORT | LONG
NUMBERS = ("US", "SS")
WRITTEN = {"S": ("CS", "LO", "SH", "UI"), "D": ("DS", "IS"), "U": NUMBERS}
WANTED = {TAGS[keyword]: WRITTEN[written] for keyword, (written, _) in ELEMENTS.items()}  # by tag: its possible VRs
WANTED |= {SYNTAX: ("UI",), CHARACTERS: ("CS",)} | dict.fromkeys((MODALITY_LUT, SHARED_BY_FRAMES, OF_FRAMES), ())

_element = struct.Struct("<HHL").unpack_from
_length = struct.Struct("<L").unpack_from


class Unusual(Exception):
    """What only pydicom may read."""


class Element(NamedTuple):
    """As pydicom's raw elements; VR is None where the file does not say."""

    VR: str | None
    value: bytes


class Header(NamedTuple):
    """The elements of ELEMENTS that a file has, and as much of a pydicom Dataset as the readers of these ask for."""

    elements: dict[int, Element]
    syntax: str
    length: int  # of the pixels in bytes, as their element says
    offset: int  # of the first of them

    def get_item(self, tag: int) -> Element | None:
        return self.elements.get(tag)

    def get(self, keyword: str) -> None:
        raise NameError(f"{keyword} was to be read by pydicom")

    def __contains__(self, tag: object) -> bool:
        return tag in self.elements


def read(head: bytes) -> Header | None:
    """The header of a file that begins with these bytes; None where pydicom has to read it."""
    if head[128:140] != b"DICM" + GROUP_LENGTH or DEFLATED in head:
        return None
    elements: dict[int, Element] = {}
    try:
        place = _walk(head, 132, META_END, True, elements)
        syntax = elements.pop(SYNTAX).value
        explicit = SYNTAXES[syntax]
        place = _walk(head, place, PIXELS_BEGIN, explicit, elements)
        length, offset = _pixels(head, place, explicit)
    except (Unusual, KeyError, struct.error):  # the last where a header is longer than these bytes
        return None
    if elements.pop(CHARACTERS, Element(None, b"")).value.rstrip(b" ") not in ASCII:
        return None
    return Header(elements, syntax.rstrip(b"\0").decode(), length, offset)


def _walk(head: bytes, place: int, end: int, explicit: bool, elements: dict[int, Element]) -> int:
    """Collect what is wanted from `place` on; the place of the first element whose tag is `end` or above."""
    last = 0 if end == META_END else FIRST - 1
    wanted, code = WANTED.get, 0
    while True:
        group, number, length = _element(head, place)
        tag = group << 16 | number
        if tag >= end:
            return place
        begin = place + 8
        if explicit:
            code, length = length & 0xFFFF, length >> 16
            if code in LONG:
                (length,) = _length(head, begin)
                begin += 4
            elif code not in SHORT:
                raise Unusual
        place = begin + length
        if tag <= last or length & 1:
            raise Unusual
        last = tag
        kinds = wanted(tag)
        if kinds is not None:
            value, vr = head[begin:place], NAMES.get(code)
            if not kinds or (explicit and vr not in kinds):
                raise Unusual
            if length != 2 if kinds is NUMBERS else not value.isascii():
                raise Unusual
            elements[tag] = Element(vr, value)


def _pixels(head: bytes, place: int, explicit: bool) -> tuple[int, int]:
    """Length and offset of the pixels, whose element begins at `place`."""
    group, number, length = _element(head, place)
    offset = place + 8
    if explicit:
        if NAMES.get(length & 0xFFFF) not in ("OB", "OW"):
            raise Unusual
        (length,) = _length(head, offset)
        offset += 4
    if group << 16 | number != PIXELS or length == 0xFFFFFFFF:
        raise Unusual
    return length, offset
