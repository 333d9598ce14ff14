"""A fast parser for common DICOM headers: most uncompressed files need no pydicom.

`read` returns None for everything that it might read differently from pydicom, which then reads the file. So each file
is read or refused as by pydicom alone. (DICOM PS3.5, 7.1; PS3.10, 7.1)
"""

import struct
from typing import NamedTuple

from ich.data.dicom.elements import (
    DECIMALS,
    MODALITY_LUT,
    PER_FRAME_GROUPS,
    SHARED_GROUPS,
    SHORTS,
    TAGS,
    TEXTS,
    Element,
    PlainHeader,
)

HEAD = 1 << 14  # bytes read of a file; longer headers are left to pydicom. Shorter than 0x4141: no length is a VR, "AA"
META_END, FIRST, PIXELS_BEGIN, PIXELS = 0x00030000, 0x00080000, 0x7FE00008, 0x7FE00010
SYNTAX, CHARACTER_SET = 0x00020010, 0x00080005
# First element of the file meta information: group length, version, or SOP class as in half of the files of RSNA 2019.
FIRST_META = (b"\2\0\0\0UL\4\0", b"\2\0\1\0OB", b"\2\0\2\0UI")
EXPLICIT = {b"1.2.840.10008.1.2\0": False, b"1.2.840.10008.1.2.1\0": True}  # transfer syntax: is the VR explicit?
ASCII = (b"", b"ISO_IR 6", b"ISO_IR 100", b"ISO_IR 192")  # character sets that contain ASCII


def _by_code(vrs: str) -> dict[int, str]:
    return {int.from_bytes(vr.encode(), "little"): vr for vr in vrs.split()}


SHORT = _by_code("AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US")  # with lengths of 16 bits
LONG = _by_code("OB OD OF OL OV OW SQ SV UC UN UR UT UV")  # with lengths of 32 bits
VRS = SHORT | LONG
NUMBERS = ("US", "SS")
VRS_OF = {SYNTAX: ("UI",), CHARACTER_SET: ("CS",)}  # possible VRs of the elements that are read, by tag
for _keywords, _vrs in ((TEXTS, ("CS", "LO", "SH", "UI")), (DECIMALS, ("DS", "IS")), (SHORTS, NUMBERS)):
    VRS_OF |= {TAGS[keyword]: _vrs for keyword in _keywords}
VRS_OF |= dict.fromkeys((MODALITY_LUT, SHARED_GROUPS, PER_FRAME_GROUPS), ())  # left to pydicom

_element = struct.Struct("<HHL").unpack_from
_length = struct.Struct("<L").unpack_from


class Unusual(Exception):
    """The header must be read by pydicom."""


class Pixels(NamedTuple):
    """Encoding of the pixels, and their place in the file."""

    syntax: str
    little_endian: bool
    offset: int
    length: int | None  # bytes; None: compressed


def read(head: bytes) -> tuple[PlainHeader, Pixels] | None:
    """The header of a file that begins with these bytes; None where pydicom has to read it."""
    if head[128:132] != b"DICM" or not head.startswith(FIRST_META, 132):
        return None
    header = PlainHeader()
    try:
        place = walk(head, 132, META_END, True, header)
        syntax = header.pop(SYNTAX).value
        explicit = EXPLICIT[syntax]
        place = walk(head, place, PIXELS_BEGIN, explicit, header)
        group, number, length = _element(head, place)
        offset = place + 8
        if explicit:
            if VRS.get(length & 0xFFFF) not in ("OB", "OW"):
                return None
            (length,) = _length(head, offset)
            offset += 4
    except (Unusual, KeyError, struct.error):  # struct.error: the header is longer than `head`
        return None
    if group << 16 | number != PIXELS or length == 0xFFFFFFFF:
        return None
    if header.pop(CHARACTER_SET, Element(None, b"")).value.rstrip(b" ") not in ASCII:
        return None
    return header, Pixels(syntax.rstrip(b"\0").decode(), True, offset, length)


def walk(head: bytes, place: int, end: int, explicit: bool, header: PlainHeader) -> int:
    """Add elements from `place` on; return the place of the first element whose tag is at least `end`."""
    last = 0 if end == META_END else FIRST - 1
    vrs_of, code = VRS_OF.get, 0
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
        if tag <= last:
            raise Unusual
        last = tag
        vrs = vrs_of(tag)
        if vrs is not None:
            value, vr = head[begin:place], VRS.get(code)
            if not vrs or (explicit and vr not in vrs):
                raise Unusual
            if length != 2 if vrs is NUMBERS else not value.isascii():
                raise Unusual
            header[tag] = Element(vr, value)
