"""The frames of encapsulated (compressed) pixel data, found without reading them (DICOM PS3.5, A.4)."""

import struct
from itertools import pairwise
from typing import BinaryIO

from ich.data.refusal import Reason, Unreadable

ITEM, END = 0xFFFEE000, 0xFFFEE0DD
MAX_FRAGMENTS = 100_000
Fragment = tuple[int, int]  # offset in the file, and length in bytes


def find(stream: BinaryIO, size: int, frames: int, offsets: tuple[int, ...] = ()) -> list[list[Fragment]]:
    """The fragments of each frame; an empty list where the file does not tell which are a frame's.

    stream: at the value of the pixel data, in a file of `size` bytes.
    offsets: the extended offset table, if any: of each frame from the first fragment.

    Raises Unreadable where the fragments are incomplete.
    """
    item = _item(stream, size)
    if item is None:
        raise Unreadable(Reason.TRUNCATED, "no frame")
    offset, length = item
    basic = stream.read(length) if length == 4 * frames else b""
    first = stream.seek(offset + length)  # the offset tables count from here
    found: list[Fragment] = []
    while item := _item(stream, size):
        found.append(item)
        stream.seek(item[1], 1)
        if len(found) > MAX_FRAGMENTS:
            raise Unreadable(Reason.BAD_SIZE, f"more than {MAX_FRAGMENTS} fragments")
    if len(found) < frames or not any(length for _, length in found):
        raise Unreadable(Reason.TRUNCATED, f"{len(found)} fragments for {frames} frames")
    if frames == 1:
        return [found]
    if len(found) == frames:
        return [[fragment] for fragment in found]
    offsets = offsets or struct.unpack(f"<{len(basic) // 4}L", basic)
    if len(offsets) != frames:
        return [[]] * frames
    numbers = {begin - 8 - first: i for i, (begin, _) in enumerate(found)}  # by offset of the item
    bounds = [numbers.get(offset, -1) for offset in offsets] + [len(found)]
    return [found[begin:end] if -1 < begin < end else [] for begin, end in pairwise(bounds)]


def read(stream: BinaryIO, fragments: list[Fragment]) -> bytes:
    """The bytes of a frame."""
    parts: list[bytes] = []
    for offset, length in fragments:
        stream.seek(offset)
        parts.append(stream.read(length))
    return b"".join(parts)


def _item(stream: BinaryIO, size: int) -> Fragment | None:
    """The item at which the stream is; None at the end of the sequence, which many files do not mark."""
    head = stream.read(8)
    if len(head) < 8:
        return None
    group, element, length = struct.unpack("<HHL", head)
    tag, offset = group << 16 | element, stream.tell()
    if tag == END:
        return None
    if tag != ITEM:
        raise Unreadable(Reason.NOT_DECODED, f"tag {tag:08x} among the fragments")
    if offset + length > size:
        raise Unreadable(Reason.TRUNCATED, f"a fragment of {length} bytes, of which {size - offset} are there")
    return offset, length
