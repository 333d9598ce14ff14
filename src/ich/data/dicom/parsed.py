"""DICOM headers of every kind, also damaged ones, parsed by pydicom within limits."""

import re
import struct
import time
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BufferedReader, BytesIO, FileIO
from typing import Any, cast

from pydicom.config import IGNORE, settings
from pydicom.dataset import Dataset
from pydicom.filereader import read_partial
from pydicom.uid import ImplicitVRLittleEndian

from ich.data.dicom import plain
from ich.data.dicom.elements import (
    DEFLATED,
    EXPLICIT,
    MODALITY_LUT,
    PER_FRAME_GROUPS,
    SHARED_GROUPS,
    TAGS,
    Header,
    PlainHeader,
    parsed_value,
)
from ich.data.dicom.plain import Pixels
from ich.data.refusal import Reason, Unreadable

Stream = FileIO | BufferedReader | BytesIO
MAX_COPIED = 1 << 28  # bytes of a deflated file, or of one without preamble; such files are copied into memory
MAX_READS = 500_000  # of a header, at least one per element; a slice has about 100 elements, 4,096 frames have 300,000
MAX_VALUE = 1 << 18  # bytes of an element that is read
SECONDS = 2.0  # of CPU time for a header; 4,096 frames take 0.5
READ = [*TAGS.values(), MODALITY_LUT, SHARED_GROUPS, PER_FRAME_GROUPS, 0x7FE00001]  # pydicom skips the other elements
FIRST_PIXELS = 0x7FE00008  # float, double float or integer pixel data
# The beginning of files without preamble: the prefix, or an element of group 2 or 8, in either byte order.
BARE = re.compile(rb"DICM[\2\x08]\0|[\2\x08]\0.\0|\0\x08\0.", re.DOTALL)
# RSNA's identifiers are not valid UIDs; pydicom would warn for each of 870,000 files.
settings.reading_validation_mode = IGNORE


class _Parsed:
    """A file for pydicom, which may call `read` MAX_READS times and for SECONDS. Raises Unreadable then."""

    def __init__(self, stream: BufferedReader | BytesIO) -> None:
        self._read, self.seek, self.tell, self._reads = stream.read, stream.seek, stream.tell, 0
        self._end = time.process_time() + SECONDS

    def read(self, size: int = -1) -> bytes:
        self._reads += 1
        if self._reads > MAX_READS or size > MAX_VALUE or time.process_time() > self._end:
            raise Unreadable(Reason.NOT_DICOM, "too many or too large elements")
        return self._read(size)


@contextmanager
def opened(file: BufferedReader, tags: Sequence[int] = READ) -> Iterator[tuple[Dataset, Stream]]:
    """Elements of a file's header, and the stream at the element of the pixels.

    Raises Unreadable and pydicom's errors.
    """
    last, place = 0, 0

    def at_pixels(tag: int, vr: str | None, length: int) -> bool:
        nonlocal last, place
        again = stream.tell() <= place + 6  # pydicom looks twice at the first element if its VR is not as declared
        if tag <= last and not again:  # PS3.5, 7.1: tags increase. pydicom would keep the last of two PatientIDs
            raise Unreadable(Reason.NOT_DICOM, "its elements are not in order")
        last, place = tag, stream.tell()
        return tag >= FIRST_PIXELS

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stream = _inflated(_with_preamble(file))
        header = read_partial(cast(Any, _Parsed(stream)), at_pixels, specific_tags=[*tags])
        if 0 in header:  # pydicom reads the elements of group 0, which no file has, before the others
            raise Unreadable(Reason.NOT_DICOM, "its elements are not in order")
        yield header, stream


def syntax(dataset: Dataset) -> str:
    """The transfer syntax."""
    return str(getattr(dataset.file_meta, "TransferSyntaxUID", ImplicitVRLittleEndian))


def _with_preamble(file: BufferedReader) -> BufferedReader | BytesIO:
    """The file; or a copy with preamble and prefix, of a file that lacks them. Raises Unreadable for a huge one."""
    head = file.peek(132)
    if head[128:132] == b"DICM" or not BARE.match(head):
        return file
    content = file.read(MAX_COPIED + 1)
    if len(content) > MAX_COPIED:
        raise Unreadable(Reason.BAD_SIZE, f"a file without preamble of more than {MAX_COPIED} bytes")
    return BytesIO(bytes(128) + (b"" if content.startswith(b"DICM") else b"DICM") + content)


def _inflated(file: BufferedReader | BytesIO) -> BufferedReader | BytesIO:
    """The file; or, of a deflated one, an inflated copy with the transfer syntax Explicit VR Little Endian.

    Raises Unreadable for a deflate bomb.
    """
    head = file.read(plain.HEAD)
    file.seek(0)
    if DEFLATED not in head:
        return file
    meta = PlainHeader()
    try:
        begin = plain.walk(head, 132, plain.META_END, True, meta)
    except (plain.Unusual, struct.error):
        raise Unreadable(Reason.NOT_DICOM, "file meta information of a deflated file") from None
    if meta[plain.SYNTAX].value.rstrip(b"\0") != DEFLATED:
        return file
    file.seek(begin)
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    copy = BytesIO()
    copy.write(head[:begin].replace(DEFLATED, EXPLICIT))
    while not inflater.eof and (block := inflater.unconsumed_tail or file.read(1 << 16)):
        copy.write(inflater.decompress(block, 1 << 20))
        if copy.tell() > MAX_COPIED:
            raise Unreadable(Reason.BAD_SIZE, f"inflates to more than {MAX_COPIED} bytes")
    if not inflater.eof:
        raise Unreadable(Reason.TRUNCATED, "deflated")
    copy.seek(0)
    return copy


def pixels(dataset: Dataset, stream: Stream) -> Pixels:
    """The pixels, at whose element the stream is. Raises Unreadable."""
    declared, little = dataset.original_encoding
    implicit = getattr(dataset.get_item(TAGS["Rows"]), "is_implicit_VR", declared)  # some files are not as declared
    order = "<" if little else ">"
    head = stream.read(8)
    if len(head) < 8 or struct.unpack(f"{order}HH", head[:4]) != (0x7FE0, 0x0010):
        raise Unreadable(Reason.TRUNCATED, "no pixel data")
    if not implicit and head[4:6] not in (b"OW", b"OB", b"UN"):
        raise Unreadable(Reason.NOT_DICOM, f"pixels with VR {head[4:6]!r}")
    (length,) = struct.unpack(f"{order}L", head[4:] if implicit else stream.read(4))
    return Pixels(syntax(dataset), bool(little), stream.tell(), None if length == 0xFFFFFFFF else length)


def extended_offsets(header: Header) -> tuple[int, ...]:
    """The extended offset table; empty where there is none."""
    table = parsed_value(header, "ExtendedOffsetTable") or b""
    return struct.unpack(f"<{len(table) // 8}Q", table[: len(table) // 8 * 8])
