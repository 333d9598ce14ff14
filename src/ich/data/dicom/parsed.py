"""DICOM headers of every kind, also damaged ones, parsed by pydicom."""

import contextlib
import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader, BytesIO, FileIO
from typing import Any

import pydicom
from pydicom.config import IGNORE, settings
from pydicom.dataset import Dataset
from pydicom.uid import ImplicitVRLittleEndian

from ich.data.dicom.elements import DEFLATED, Header, parsed_value
from ich.data.dicom.plain import Pixels
from ich.data.refusal import Reason, Unreadable

Stream = FileIO | BufferedReader | BytesIO
MAX_INFLATED = 1 << 29  # bytes of a deflated file
# The beginning of files without preamble: the prefix, or an element of group 2 or 8, in either byte order.
BARE = re.compile(rb"DICM[\2\x08]\0|[\2\x08]\0.\0|\0\x08\0.", re.DOTALL)
# RSNA's identifiers are not valid UIDs; pydicom would warn for each of 870,000 files.
settings.reading_validation_mode = IGNORE


@contextmanager
def opened(file: BufferedReader) -> Iterator[tuple[Dataset, Stream]]:
    """The header of a file, and the stream at the element of the pixels. Raises Unreadable and pydicom's errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stream = _with_preamble(file)
        _limit_inflation(stream)
        dataset = pydicom.dcmread(stream, stop_before_pixels=True)
        inflated: Any = dataset.buffer  # a deflated file, which pydicom inflates into memory
        if inflated is not None:
            stream = BytesIO(inflated.getvalue())
            stream.seek(inflated.tell())
        yield dataset, stream


def syntax(dataset: Dataset) -> str:
    """The transfer syntax."""
    return str(getattr(dataset.file_meta, "TransferSyntaxUID", ImplicitVRLittleEndian))


def _with_preamble(file: BufferedReader) -> BufferedReader | BytesIO:
    """The file; or a copy with preamble and prefix, of a file that lacks them. Raises Unreadable for a huge one."""
    head = file.peek(132)
    if head[128:132] == b"DICM" or not BARE.match(head):
        return file
    content = file.read(MAX_INFLATED + 1)
    if len(content) > MAX_INFLATED:
        raise Unreadable(Reason.BAD_SIZE, f"a file without preamble of more than {MAX_INFLATED} bytes")
    return BytesIO(bytes(128) + (b"" if content.startswith(b"DICM") else b"DICM") + content)


def _limit_inflation(file: BufferedReader | BytesIO) -> None:
    """Raise Unreadable for a deflate bomb, before pydicom allocates memory for it."""
    head = file.read(1024)
    file.seek(0)
    if DEFLATED not in head or len(head) < 144:
        return
    file.seek(144 + struct.unpack_from("<L", head, 140)[0])
    inflater, total = zlib.decompressobj(-zlib.MAX_WBITS), 0
    with contextlib.suppress(zlib.error):  # not deflated, or damaged: pydicom decides
        while total <= MAX_INFLATED and (block := inflater.unconsumed_tail or file.read(1 << 16)):
            total += len(inflater.decompress(block, 1 << 20))
    if total > MAX_INFLATED:
        raise Unreadable(Reason.BAD_SIZE, f"inflates to more than {MAX_INFLATED} bytes")
    file.seek(0)


def pixels(dataset: Dataset, stream: Stream) -> Pixels:
    """The pixels, at whose element the stream is. Raises Unreadable."""
    implicit, little = dataset.original_encoding
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
