"""DICOM headers as pydicom parses them: every kind of file, damaged ones too."""

import contextlib
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader, BytesIO, FileIO
from pathlib import Path
from typing import Any

import pydicom
from pydicom.config import IGNORE, settings
from pydicom.dataset import Dataset
from pydicom.uid import ImplicitVRLittleEndian

from ich.data.dicom.elements import DEFLATED
from ich.data.refusal import Reason, Unreadable

Stream = FileIO | BufferedReader | BytesIO
LARGEST_INFLATED = 1 << 29  # bytes of a deflated file
# RSNA's identifiers are no valid UIDs; the reader would warn at each of 870,000 files.
settings.reading_validation_mode = IGNORE


@contextmanager
def opened(path: Path) -> Iterator[tuple[Dataset, Stream]]:
    """The header of a file, and the bytes after it. Raises Unreadable, and whatever pydicom stumbles over."""
    with path.open("rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _refuse_inflation(file)
        dataset = pydicom.dcmread(file, stop_before_pixels=True)
        # pydicom leaves the stream at the element of the pixels; a deflated one it has inflated into memory.
        inflated: Any = dataset.buffer
        stream: Stream = file
        if inflated is not None:
            stream = BytesIO(inflated.getvalue())
            stream.seek(inflated.tell())
        yield dataset, stream


def syntax(dataset: Dataset) -> str:
    """The transfer syntax."""
    return str(getattr(dataset.file_meta, "TransferSyntaxUID", ImplicitVRLittleEndian))


def _refuse_inflation(file: Any) -> None:
    """A deflated file of a megabyte may inflate to a gigabyte, and the parser would take the memory for it."""
    head = file.peek(1024)
    if DEFLATED not in head or len(head) < 144:
        return
    file.seek(144 + struct.unpack_from("<L", head, 140)[0])
    inflater, total = zlib.decompressobj(-zlib.MAX_WBITS), 0
    with contextlib.suppress(zlib.error):  # then it is not deflated, or the parser says that it is damaged
        while total <= LARGEST_INFLATED and (block := inflater.unconsumed_tail or file.read(1 << 16)):
            total += len(inflater.decompress(block, 1 << 20))
    if total > LARGEST_INFLATED:
        raise Unreadable(Reason.BAD_SIZE, f"inflates to more than {LARGEST_INFLATED} bytes")
    file.seek(0)


def pixels(dataset: Dataset, stream: Stream) -> tuple[int | None, int]:
    """Length in bytes and offset of the pixels, at whose element the stream stands; None: compressed."""
    implicit, little = dataset.original_encoding
    order = "<" if little else ">"
    head = stream.read(8)
    if len(head) < 8 or struct.unpack(f"{order}HH", head[:4]) != (0x7FE0, 0x0010):
        raise Unreadable(Reason.TRUNCATED, "no pixel data")
    if not implicit and head[4:6] not in (b"OW", b"OB", b"UN"):
        raise Unreadable(Reason.NOT_DICOM, f"pixels of kind {head[4:6]!r}")
    (length,) = struct.unpack(f"{order}L", head[4:] if implicit else stream.read(4))
    return None if length == 0xFFFFFFFF else int(length), stream.tell()


def extended_table(dataset: Dataset) -> tuple[int, ...]:
    table = dataset.get("ExtendedOffsetTable") or b""
    return struct.unpack(f"<{len(table) // 8}Q", table[: len(table) // 8 * 8])
